"""Any order, any repetition and any split of a truck's statuses give the same job: pure, and in the
real database through the whole of `JobService.apply`."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from control_plane.db import Connection, Database
from control_plane.devices.service import DeviceService
from control_plane.firmware.service import FirmwareService
from control_plane.jobs.merge import Progress, Wanted, merge
from control_plane.jobs.service import JobService, Report, Verdict
from control_plane.outbox.service import OutboxService
from shared.ids import new_id
from shared.messages import Error, Status, TargetResult, ToldCause
from shared.states import JOB_TERMINAL, JobState, TruckStatus

SHA = "a" * 64
WANTED = {"brakes": Wanted(version="1.1.0", sha256=SHA)}
RIGHT = (TargetResult(component="brakes", version="1.1.0", sha256=SHA),)
STORES = 3

Word = tuple[int, Status]
"""A status and the number of the store that it comes from."""


@st.composite
def words(draw: st.DrawFn) -> list[Word]:
    """Distinct statuses as agents write them: within a store each seq once."""
    places = draw(
        st.lists(st.tuples(st.integers(1, STORES), st.integers(1, 12)), min_size=1, max_size=10, unique=True)
    )
    found = []
    for store_no, seq in places:
        kind = draw(st.sampled_from(list(TruckStatus)))
        read_back = draw(st.sampled_from([RIGHT, None])) if kind is TruckStatus.DONE else None
        found.append(
            (
                store_no,
                Status(
                    message_id=f"m-{store_no}-{seq}",
                    job_id="job",
                    attempt=draw(st.integers(1, 2)),
                    seq=seq,
                    status=kind,
                    step=draw(st.sampled_from(["url_expired", "writing", "too_late"])),
                    progress=draw(st.none() | st.integers(0, 100)),
                    reason=draw(st.none() | st.just(f"reason {seq}")),
                    causes=draw(st.none() | st.just((ToldCause(code=f"cause_{seq}"),))),
                    error=Error(code="e", text=str(seq)) if kind is TruckStatus.ERROR else None,
                    targets=read_back,
                    at=datetime(2026, 11, 25, tzinfo=UTC),
                ),
            )
        )
    return found


STARTS = st.sampled_from([JobState.SCHEDULED, JobState.READY, JobState.DISPATCHED, JobState.SILENT])


def merged(start: Progress, order: Sequence[Word]) -> Progress:
    job = start
    for store_no, word in order:
        job = merge(job, WANTED, word, store_no) or job
    return job


@given(found=words(), start=STARTS, seed=st.integers(0, 2**32), repeats=st.integers(0, 5))
def test_any_order_and_repetition_gives_the_same_job(
    found: list[Word], start: JobState, seed: int, repeats: int
) -> None:
    rng = random.Random(seed)
    fresh = Progress(state=start, attempt=1)
    in_order = sorted(found, key=lambda w: (w[1].attempt, w[0], w[1].seq))
    shuffled = found + [rng.choice(found) for _ in range(repeats)]
    rng.shuffle(shuffled)
    assert merged(fresh, shuffled) == merged(fresh, in_order)


@given(found=words(), start=STARTS)
def test_an_end_stands_until_an_earlier_end_or_a_newer_attempt(found: list[Word], start: JobState) -> None:
    job = Progress(state=start, attempt=1)
    for store_no, word in found:
        after = merge(job, WANTED, word, store_no) or job
        if job.state in JOB_TERMINAL and after.attempt == job.attempt:
            assert after.state in JOB_TERMINAL
            assert after.key <= job.key
        assert after.attempt >= job.attempt
        job = after


@given(found=words(), state=st.sampled_from([JobState.ABANDONED, JobState.CANCELLED, JobState.ERROR]))
def test_what_the_office_ended_no_word_of_that_attempt_moves(found: list[Word], state: JobState) -> None:
    ended = Progress(state=state, attempt=2)
    assert merged(ended, found) == ended


async def new_job(db: Database, job_id: str) -> None:
    async with db.transaction() as connection:
        await connection.execute(
            "INSERT INTO devices (device_id) VALUES ('truck-001') ON CONFLICT DO NOTHING"
        )
        await connection.execute(
            "INSERT INTO firmwares (firmware_id, kind, version, hardware, release_counter, length, sha256,"
            " document, state, created_by) VALUES ('f', 'k', '1.1.0', '{b}', 1, 5, $1, '', 'published', 't')"
            " ON CONFLICT DO NOTHING",
            SHA,
        )
        # Jobs of earlier examples give up their place as the one live job.
        await connection.execute(
            "UPDATE jobs SET state = 'abandoned'"
            " WHERE state NOT IN ('done', 'error', 'cancelled', 'abandoned')"
        )
        await connection.execute(
            "INSERT INTO jobs (job_id, device_id, state, scheduled_at, created_by)"
            " VALUES ($1, 'truck-001', 'dispatched', now(), 'test')",
            job_id,
        )
        await connection.execute(
            "INSERT INTO job_targets (job_id, component, firmware_id, kind, version, sha256, length)"
            " VALUES ($1, 'brakes', 'f', 'k', '1.1.0', $2, 5)",
            job_id,
            SHA,
        )


async def kept(db: Database, job_id: str) -> dict[str, Any]:
    """All that is kept of a job but what counts changes and tellings, times, and its id."""
    [row] = await db.fetch(
        "SELECT state, attempt, step, progress, reason, error, merged_attempt, merged_store_no, merged_seq,"
        " merged_message_id, finished_at IS NULL AS open, read_back_version, read_back_sha256"
        " FROM jobs JOIN job_targets USING (job_id) WHERE job_id = $1",
        job_id,
    )
    return dict(row)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(found=words(), data=st.data())
async def test_the_database_keeps_the_same_row_whatever_the_order_and_split(
    database: Database, found: list[Word], data: st.DataObject
) -> None:
    devices = DeviceService(database)
    jobs = JobService(database, devices, FirmwareService(database, None), OutboxService())  # type: ignore[arg-type]
    rows = []
    for _ in range(2):
        job_id = new_id()
        await new_job(database, job_id)
        order = data.draw(st.permutations(found + found[:3]))
        size = data.draw(st.integers(1, 5))
        verdicts = []
        for at in range(0, len(order), size):
            reports = [
                Report(
                    device_id="truck-001",
                    store_no=store_no,
                    status=Status.from_obj(word.to_obj() | {"job_id": job_id}),
                )
                for store_no, word in order[at : at + size]
            ]

            async def act(connection: Connection, reports: list[Report] = reports) -> list[Verdict]:
                return [one.verdict for one in await jobs.apply(connection, reports)]

            verdicts += await database.run(act)
        row = await kept(database, job_id)
        rows.append(row)
        assert verdicts.count(Verdict.DUPLICATE) == len(found[:3])
        assert row["open"] == (JobState(row["state"]) not in JOB_TERMINAL)
        # Each distinct status is in the history once; events are as many as changes of state, in order.
        [lines] = await database.fetch(
            "SELECT count(*) AS n, count(DISTINCT message_id) AS ids FROM job_history WHERE job_id = $1",
            job_id,
        )
        assert (lines["n"], lines["ids"]) == (len(found), len(found))
        versions = [
            event["job_version"]
            for event in await database.fetch(
                "SELECT job_version FROM event_outbox WHERE job_id = $1 ORDER BY outbox_id", job_id
            )
        ]
        assert versions == sorted(versions)
    expected = merged(
        Progress(state=JobState.DISPATCHED, attempt=1),
        sorted(found, key=lambda w: (w[1].attempt, w[0], w[1].seq)),
    )
    assert rows[0] == rows[1]
    assert (rows[0]["state"], rows[0]["step"]) == (expected.state, expected.step)
    assert rows[0]["merged_message_id"] == expected.key.message_id
