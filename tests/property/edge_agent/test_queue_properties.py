"""A small, full queue under any order of telling, sampling, sending, acknowledging and restarting."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from edge_agent.errors import OutboxFull
from edge_agent.store import queue_bounds
from edge_agent.store.journal import Change, Report
from edge_agent.store.queue_bounds import Queue, QueueLimits
from edge_agent.store.store import Store
from shared.messages import Command, CommandTarget, Sample, Status
from shared.states import TruckStatus, UpdateState

STEPS = ["retrying", "waiting", "stranded"]
LIMITS = QueueLimits(most_statuses=8, most_status_bytes=6000, most_samples=30, write_every_s=3600)
LARGEST = 400 + queue_bounds.ROW_BYTES + 300


class FullQueue(RuleBasedStateMachine):
    """What the office has and what waits, together, must hold each final and each newest step."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="queue-"))
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        self.office: dict[str, Status] = {}
        self.newest: dict[tuple[str, str], str] = {}  # of each job and step: its last reason
        self.finals: list[str] = []
        self.jobs = 0
        self.measured = 0
        self.received: list[float] = []

    def do(self, coroutine: Any) -> Any:
        return self.runner.run(coroutine)

    def open(self) -> None:
        self.store: Store = self.do(
            self.stack.enter_async_context(Store.open(self.folder / "db", limits=LIMITS))
        )

    @initialize()
    def begin(self) -> None:
        self.open()

    @rule()
    def a_command(self) -> None:
        target = CommandTarget(
            component=f"b{self.jobs}", version="2", sha256="a" * 64, length=1, document="{}", url="u"
        )
        job_id = f"job-{self.jobs}"
        command = Command(
            command_id="c", job_id=job_id, attempt=1, revision=1, kind="install", targets=(target,)
        )
        try:
            self.do(self.store.take_command(command))
        except OutboxFull:
            return
        self.newest[job_id, "received"] = ""
        self.jobs += 1

    @rule(data=st.data(), step=st.sampled_from(STEPS), size=st.integers(0, 400))
    def a_step(self, data: st.DataObject, step: str, size: int) -> None:
        if not self.jobs:
            return
        job_id = f"job-{data.draw(st.integers(0, self.jobs - 1))}"
        reason = f"{len(self.newest)} ".ljust(size, "x")[:400]
        self.do(self.store.tell(job_id, 1, Report(status=TruckStatus.FLASHING, step=step, reason=reason)))
        self.newest[job_id, step] = reason

    @rule(data=st.data(), percent=st.integers(0, 100))
    def progress(self, data: st.DataObject, percent: int) -> None:
        if self.jobs:
            job_id = f"job-{data.draw(st.integers(0, self.jobs - 1))}"
            report = Report(status=TruckStatus.FLASHING, step="writing", progress=percent, thin=True)
            self.do(self.store.tell(job_id, 1, report))

    @rule()
    def an_end(self) -> None:
        live = self.do(self.store.live())
        if live:
            entry = live[0]
            report = Report(status=TruckStatus.DONE, step="finished", progress=100)
            self.do(self.store.record(Change(entry=replace(entry, state=UpdateState.DONE), report=report)))
            self.finals.append(entry.job_id)

    @rule(count=st.integers(1, 20))
    def samples(self, count: int) -> None:
        for _ in range(count):
            self.measured += 1
            at = datetime(2027, 1, 1, tzinfo=UTC)
            self.store.telemetry(Sample(name="v", value=self.measured, unit="V", at=at))

    @rule()
    def memory_is_written(self) -> None:
        self.do(self.store.flush())

    @rule(limit=st.integers(1, 4), take=st.integers(0, 4))
    def the_office_takes_some(self, limit: int, take: int) -> None:
        batch = self.do(self.store.next_statuses(limit))[:take]
        for one in batch:
            self.office[one.message_id] = one
        self.do(self.store.acked([one.message_id for one in batch], []))

    @rule(keeps=st.booleans())
    def samples_are_sent(self, keeps: bool) -> None:
        waiting = self.do(self.store.next_samples(most_bytes=500))
        if waiting is not None and keeps:
            self.received += [one.value for one in waiting.samples]
            self.do(self.store.samples_sent(waiting.upto))

    @rule()
    def a_restart(self) -> None:
        self.do(self.stack.aclose())
        self.stack = AsyncExitStack()
        self.open()

    @invariant()
    def all_is_kept(self) -> None:
        if not hasattr(self, "store"):
            return
        waiting = self.do(self.store.next_statuses(200, most_bytes=10**9))
        assert [one.seq for one in waiting] == sorted({one.seq for one in waiting})
        known = sorted([*self.office.values(), *waiting], key=lambda one: one.seq)
        ends = [one.job_id for one in known if one.status is TruckStatus.DONE]
        assert ends == self.finals
        last = {(one.job_id, one.step): one.reason or "" for one in known if one.step != "writing"}
        for key, reason in self.newest.items():
            assert last[key] == reason
        # Above the bound stand only the newest of each step, and ends.
        above = self.jobs * (len(STEPS) + 3)
        used = self.do(self.store._file.read(lambda db: queue_bounds.use(db, Queue.STATUS)))
        assert used.rows <= LIMITS.most_statuses + above
        assert used.bytes <= LIMITS.most_status_bytes + above * LARGEST

    @invariant()
    def samples_are_bounded_and_in_order(self) -> None:
        if not hasattr(self, "store"):
            return
        used = self.do(self.store._file.read(lambda db: queue_bounds.use(db, Queue.TELEMETRY)))
        assert used.rows <= LIMITS.most_samples
        assert self.received == sorted(set(self.received))

    def teardown(self) -> None:
        self.do(self.stack.aclose())
        self.runner.close()
        shutil.rmtree(self.folder)


TestFullQueue = FullQueue.TestCase
TestFullQueue.settings = settings(max_examples=20, stateful_step_count=30, deadline=None)
