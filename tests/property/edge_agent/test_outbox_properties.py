"""Any order of telling, sending and acknowledging, with repeats and restarts, loses no status."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from edge_agent.store.journal import Report
from edge_agent.store.store import Store
from shared.messages import Command, CommandTarget, Rejected, Status
from shared.states import TruckStatus

TARGET = CommandTarget(component="b", version="2", sha256="a" * 64, length=1, document="{}", url="u")
JOBS = st.sampled_from(["job-1", "job-2"])


class Outbox(RuleBasedStateMachine):
    """The office keeps what it got by message_id; the truck must never lose what it has not."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="outbox-"))
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        self.told: list[tuple[str, str, int | None]] = []  # what must arrive, in its order
        self.office: dict[str, Status] = {}
        self.sent: list[Status] = []

    def do(self, coroutine: Any) -> Any:
        return self.runner.run(coroutine)

    @initialize()
    def begin(self) -> None:
        self.store: Store = self.do(self.stack.enter_async_context(Store.open(self.folder / "db")))
        self.store_id = self.store.store_id
        for job_id in ("job-1", "job-2"):
            command = Command(
                command_id="c", job_id=job_id, attempt=1, revision=1, kind="install", targets=(TARGET,)
            )
            self.do(self.store.take_command(command))
            self.told.append((job_id, "received", None))

    @rule(job_id=JOBS, step=st.sampled_from(["retrying", "waiting"]))
    def a_step(self, job_id: str, step: str) -> None:
        number = len(self.told)
        self.do(
            self.store.tell(job_id, 1, Report(status=TruckStatus.FLASHING, step=step, progress=number % 100))
        )
        self.told.append((job_id, step, number % 100))

    @rule(job_id=JOBS, percent=st.integers(0, 100))
    def progress(self, job_id: str, percent: int) -> None:
        report = Report(status=TruckStatus.FLASHING, step="writing", progress=percent, thin=True)
        self.do(self.store.tell(job_id, 1, report))

    @rule(limit=st.integers(1, 5))
    def send(self, limit: int) -> None:
        batch = self.do(self.store.next_statuses(limit))
        assert [one.seq for one in batch] == sorted({one.seq for one in batch})
        self.sent = batch

    @rule(data=st.data())
    def the_office_takes_some_and_acks(self, data: st.DataObject) -> None:
        known = [*self.sent, *self.office.values()]
        if not known:
            return
        some = data.draw(st.lists(st.sampled_from(known), max_size=4))
        for one in some:
            assert self.office.setdefault(one.message_id, one) == one
        ids = [one.message_id for one in some]
        rejected = [Rejected(message_id=one, reason="no") for one in ids[2:]]
        self.do(self.store.acked([*ids[:2], "unknown"], rejected))

    @rule()
    def the_agent_restarts(self) -> None:
        self.do(self.stack.aclose())
        self.stack = AsyncExitStack()
        self.store = self.do(self.stack.enter_async_context(Store.open(self.folder / "db")))
        assert self.store.store_id == self.store_id
        assert not self.store.was_replaced

    @invariant()
    def nothing_is_lost(self) -> None:
        if not hasattr(self, "store"):
            return
        waiting = self.do(self.store.next_statuses(200, most_bytes=10**9))
        everything = sorted(
            {one.message_id: one for one in [*self.office.values(), *waiting]}.values(),
            key=lambda one: one.seq,
        )
        assert len({one.seq for one in everything}) == len(everything)
        steps = [(one.job_id, one.step, one.progress) for one in everything if one.step != "writing"]
        assert steps == self.told[: len(steps)]
        assert len(steps) == len(self.told)
        writing = [one.job_id for one in waiting if one.step == "writing"]
        assert len(writing) == len(set(writing))

    def teardown(self) -> None:
        self.do(self.stack.aclose())
        self.runner.close()
        shutil.rmtree(self.folder)


TestOutbox = Outbox.TestCase
TestOutbox.settings = settings(max_examples=20, stateful_step_count=25, deadline=None)
