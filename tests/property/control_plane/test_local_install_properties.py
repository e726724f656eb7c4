"""Any order, any repetition and any split of the statuses of a job that began at a truck give the same row:
pure, and in the real database, with several jobs and trucks in one batch."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from control_plane.db import Connection, Database
from control_plane.jobs.service import Outcome, Report, Verdict
from control_plane.local_installs.model import Word, merge_words
from control_plane.local_installs.service import LocalInstallService
from shared.messages import Error, Status, TargetResult, ToldCause, WantedTarget
from shared.states import JOB_TERMINAL, STATUS_TO_JOB, TruckStatus

TRUCKS = ("truck-001", "truck-002")
JOBS = ("local-a", "local-b")


@st.composite
def words(draw: st.DrawFn, job_id: str | None = None) -> list[Word]:
    """Distinct statuses as agents write them: within a store each seq once."""
    places = draw(
        st.lists(st.tuples(st.integers(1, 3), st.integers(1, 12)), min_size=1, max_size=10, unique=True)
    )
    found = []
    for store_no, seq in places:
        kind = draw(st.sampled_from(list(TruckStatus)))
        sha256 = draw(st.sampled_from(["a" * 64, "b" * 64]))
        wants = draw(st.booleans())
        found.append(
            (
                store_no,
                Status(
                    message_id=f"m-{store_no}-{seq}",
                    job_id=job_id or draw(st.sampled_from(JOBS)),
                    attempt=draw(st.integers(1, 2)),
                    seq=seq,
                    status=kind,
                    step=draw(st.sampled_from(["writing", "waiting", "finished"])),
                    progress=draw(st.none() | st.integers(0, 100)),
                    reason=draw(st.none() | st.just(f"reason {seq}")),
                    causes=draw(st.none() | st.just((ToldCause(code="brake_not_set", detail=str(seq)),))),
                    error=Error(code="e", text=str(seq)) if kind is TruckStatus.ERROR else None,
                    targets=(TargetResult(component="brakes", version="1.1.0", sha256=sha256),)
                    if kind is TruckStatus.DONE
                    else None,
                    wanted=(WantedTarget(component="brakes", version="1.1.0", sha256="a" * 64),)
                    if wants
                    else None,
                    at=datetime(2026, 11, 25, tzinfo=UTC) + timedelta(seconds=seq),
                ),
            )
        )
    return found


def in_order(found: list[Word]) -> list[Word]:
    return sorted(found, key=lambda word: (word[1].attempt, word[0], word[1].seq))


@given(found=words("local-a"), seed=st.integers(0, 2**32), repeats=st.integers(0, 5), cut=st.integers(0, 15))
def test_any_order_repetition_and_split_gives_the_same_row(
    found: list[Word], seed: int, repeats: int, cut: int
) -> None:
    rng = random.Random(seed)
    shuffled = found + [rng.choice(found) for _ in range(repeats)]
    rng.shuffle(shuffled)
    once, verdicts = merge_words(None, shuffled)
    assert once == merge_words(None, in_order(found))[0]
    assert len(verdicts) == len(shuffled)
    assert verdicts[0] is Verdict.APPLIED
    first, rest = shuffled[: max(1, cut)], shuffled[max(1, cut) :]
    before, early = merge_words(None, first)
    after, late = merge_words(before, rest)
    assert (after, early + late) == (once, verdicts)
    # What was repeated whole changes nothing any more.
    assert merge_words(once, shuffled)[0] is once


@given(found=words("local-a"))
def test_what_is_shown_is_the_word_of_one_status(found: list[Word]) -> None:
    said, _ = merge_words(None, found)
    [winner] = [one for _, one in found if one.message_id == said.now.key.message_id]
    assert said.wanted == (winner.wanted or ())
    assert (said.now.step, said.now.progress, said.now.reason) == (
        winner.step,
        winner.progress,
        winner.reason,
    )
    assert said.now.attempt == max(one.attempt for _, one in found)
    ends = [
        one
        for _, one in found
        if one.attempt == said.now.attempt and STATUS_TO_JOB[one.status] in JOB_TERMINAL
    ]
    assert (said.now.state in JOB_TERMINAL) == bool(ends)


Sent = tuple[str, Word]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(found=st.lists(st.tuples(st.sampled_from(TRUCKS), words()), min_size=1, max_size=3), data=st.data())
async def test_the_database_keeps_the_same_rows_whatever_the_order_and_split(
    database: Database, found: list[tuple[str, list[Word]]], data: st.DataObject
) -> None:
    installs = LocalInstallService(database)
    # Two lists of one truck may hold the same place twice: the first stays.
    sent: dict[tuple[str, str], Sent] = {}
    for device_id, several in found:
        for word in several:
            sent.setdefault((device_id, word[1].message_id), (device_id, word))
    statuses = list(sent.values())
    tables = []
    for _ in range(2):
        await emptied(database)
        order = data.draw(st.permutations(statuses + statuses[:3]))
        size = data.draw(st.integers(1, 6))
        outcomes: list[Outcome] = []
        for at in range(0, len(order), size):
            reports = [
                Report(device_id=device_id, store_no=store_no, status=status)
                for device_id, (store_no, status) in order[at : at + size]
            ]

            async def act(connection: Connection, reports: list[Report] = reports) -> list[Outcome]:
                return await installs.apply(connection, reports)

            outcomes += await database.run(act)
        assert [outcome.report.status for outcome in outcomes] == [status for _, (_, status) in order]
        assert Verdict.REJECTED not in {outcome.verdict for outcome in outcomes}
        tables.append(await kept(database))
    assert tables[0] == tables[1]
    for device_id, job_id in tables[0]:
        those = [word for device, word in statuses if device == device_id and word[1].job_id == job_id]
        said, _ = merge_words(None, in_order(those))
        [stored] = await installs.page(device_id=device_id, job_id=job_id)
        assert stored.said == said


async def emptied(database: Database) -> None:
    async with database.transaction() as connection:
        await connection.execute("DELETE FROM local_installs")
        await connection.execute(
            "INSERT INTO devices (device_id) SELECT unnest($1::text[]) ON CONFLICT DO NOTHING", TRUCKS
        )


async def kept(database: Database) -> dict[tuple[str, str], dict[str, Any]]:
    """All rows but for the times by the office's clock."""
    rows = [dict(row) for row in await database.fetch("SELECT * FROM local_installs")]
    return {
        (row["device_id"], row["job_id"]): {
            name: value for name, value in row.items() if name not in {"first_seen_at", "updated_at"}
        }
        for row in rows
    }
