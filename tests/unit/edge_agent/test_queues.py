"""What waits for the office: bounds in rows and bytes, few writes, samples, an older database."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime
from pathlib import Path

import pytest

from edge_agent.errors import StoreFailed
from edge_agent.store import queue_bounds
from edge_agent.store.journal import Report
from edge_agent.store.pending import MOST_SAMPLES
from edge_agent.store.queue_bounds import Queue, QueueLimits
from edge_agent.store.samples import MOST_IN_MESSAGE
from edge_agent.store.sqlite import load_migrations
from edge_agent.store.store import Store
from shared.messages import Command, CommandTarget, Sample
from shared.states import TruckStatus

TARGET = CommandTarget(component="b", version="2", sha256="a" * 64, length=1, document="{}", url="u")
SELDOM = QueueLimits(write_every_s=3600)
AT = datetime(2027, 1, 1, tzinfo=UTC)


def command(job_id: str = "job-1") -> Command:
    return Command(command_id="c", job_id=job_id, attempt=1, revision=1, kind="install", targets=(TARGET,))


def sample(value: float) -> Sample:
    return Sample(name="battery", value=value, unit="V", at=AT)


def progress(percent: int, step: str = "writing") -> Report:
    return Report(status=TruckStatus.FLASHING, step=step, progress=percent, thin=True)


async def test_progress_and_samples_cost_one_write_however_many_come(tmp_path: Path) -> None:
    async with Store.open(tmp_path / "agent.db", limits=SELDOM) as store:
        await store.take_command(command())
        await store.flush()
        wal = tmp_path / "agent.db-wal"
        before = wal.stat().st_size
        for number in range(1000):
            await store.tell("job-1", 1, progress(number % 100))
            store.telemetry(sample(number))
        # One write at the begin at the most: the next one is due in an hour.
        assert wal.stat().st_size - before <= 40 * 4120
        await store.flush()
        assert wal.stat().st_size - before <= 120 * 4120
        [_, told] = await store.next_statuses()
        assert (told.step, told.progress) == ("writing", 99)
        waiting = await store.next_samples()
        assert waiting is not None
        assert [one.value for one in waiting.samples] == list(range(1000))


async def test_a_step_never_overtakes_its_attempts_progress(tmp_path: Path) -> None:
    async with Store.open(tmp_path / "agent.db", limits=SELDOM) as store:
        await store.take_command(command())
        await store.tell("job-1", 1, progress(10, "erasing"))
        await store.tell("job-1", 1, progress(50))
        await store.tell("job-1", 1, Report(status=TruckStatus.FLASHING, step="activating"))
        steps = [(one.step, one.progress) for one in await store.next_statuses()]
        assert steps == [("received", None), ("erasing", 10), ("writing", 50), ("activating", None)]


async def test_what_waits_in_memory_is_written_at_a_clean_end(tmp_path: Path) -> None:
    async with Store.open(tmp_path / "agent.db", limits=SELDOM) as store:
        await store.take_command(command())
        await store.flush()
        await store.tell("job-1", 1, progress(77))
        store.telemetry(sample(1), sample(float("nan")), sample(float("inf")), sample(2))
    async with Store.open(tmp_path / "agent.db") as store:
        assert [one.progress for one in await store.next_statuses()] == [None, 77]
        waiting = await store.next_samples()
        assert waiting is not None
        assert [one.value for one in waiting.samples] == [1, 2]


async def test_what_could_not_be_written_waits_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Store.open(tmp_path / "agent.db", limits=SELDOM) as store:
        await store.take_command(command())
        await store.flush()
        await store.tell("job-1", 1, progress(5))
        store.telemetry(sample(1))

        async def full(_: object) -> None:
            raise StoreFailed("disk is full")

        with monkeypatch.context() as patch:
            patch.setattr(store._file, "write", full)
            with pytest.raises(StoreFailed):
                await store.flush()
            store.telemetry(sample(2))
            with pytest.raises(StoreFailed):
                await store.tell("job-1", 1, Report(status=TruckStatus.FLASHING, step="activating"))
        await store.flush()
        assert [one.progress for one in await store.next_statuses()] == [None, 5]
        waiting = await store.next_samples()
        assert waiting is not None
        assert [one.value for one in waiting.samples] == [1, 2]


async def test_memory_is_bounded_and_the_oldest_samples_go(tmp_path: Path) -> None:
    async with Store.open(tmp_path / "agent.db", limits=SELDOM) as store:
        for number in range(MOST_SAMPLES + 10):
            store.telemetry(sample(number))
        assert store._pending.dropped == 10
        await store.flush()
        waiting = await store.next_samples(most_bytes=10**9)
        assert waiting is not None
        assert len(waiting.samples) == MOST_IN_MESSAGE
        assert waiting.samples[0].value == 10


async def test_samples_keep_their_bound_and_the_oldest_go_first(tmp_path: Path) -> None:
    limits = QueueLimits(most_samples=500, write_every_s=3600)
    async with Store.open(tmp_path / "agent.db", limits=limits) as store:
        for number in range(1000):
            store.telemetry(sample(number))
        await store.flush()
        seen: list[float] = []
        while (waiting := await store.next_samples(most_bytes=5000)) is not None:
            seen += [one.value for one in waiting.samples]
            await store.samples_sent(waiting.upto)
        assert seen == list(range(500, 1000))


async def test_a_lowered_bound_is_kept_from_the_start(tmp_path: Path) -> None:
    async with Store.open(tmp_path / "agent.db", limits=SELDOM) as store:
        await store.take_command(command())
        for number in range(1000):
            store.telemetry(sample(number))
    async with Store.open(tmp_path / "agent.db", limits=QueueLimits(most_samples=200)) as store:
        used = await store._file.read(lambda db: queue_bounds.use(db, Queue.TELEMETRY))
        assert 0 < used.rows <= 200
        assert await store.pending_statuses() == 1


async def test_the_use_is_exact_after_any_transaction(tmp_path: Path) -> None:
    async with Store.open(tmp_path / "agent.db") as store:
        for number in range(5):
            await store.take_command(command(f"job-{number}"))
        first, second, *_ = await store.next_statuses()
        await store.acked([first.message_id, second.message_id], [])

        def fails(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM outbox")
            raise ValueError

        with pytest.raises(ValueError):
            await store._file.write(fails)

        def count(db: sqlite3.Connection) -> tuple[int, int]:
            [(rows, size)] = db.execute("SELECT count(*), sum(length(body)) FROM outbox").fetchall()
            return rows, size + rows * queue_bounds.ROW_BYTES

        used = await store._file.read(lambda db: queue_bounds.use(db, Queue.STATUS))
        assert (used.rows, used.bytes) == await store._file.read(count)
        assert used.rows == 3


async def test_a_database_of_the_first_version_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "agent.db"
    old = sqlite3.connect(path)
    old.executescript(f"{load_migrations()[0]}; PRAGMA user_version = 1;")
    old.close()
    async with Store.open(path) as store:
        assert not store.was_replaced
        await store.take_command(command())
        store.telemetry(sample(1))
    # And the old agent finds all that it knows, as it left it.
    old = sqlite3.connect(path)
    assert old.execute("SELECT count(*) FROM outbox").fetchone() == (1,)
    old.execute(
        "INSERT INTO outbox (message_id, job_id, attempt, step, thin, final, body)"
        " VALUES ('m', 'j', 1, 's', 0, 0, '')"
    )
    old.close()
