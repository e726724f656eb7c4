"""The outbox worker on a real database, with a bus that can be away or refuse."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from control_plane.bus.base import BusMessage, BusUnavailable, EventRefused
from control_plane.db import Connection, Database
from control_plane.errors import Conflict
from control_plane.outbox.leases import Lease
from control_plane.outbox.service import OutboxService, job_event
from control_plane.outbox.worker import OutboxWorker
from shared.messages import Event
from shared.topics import DEVICE_COMMANDS, JOB_EVENTS


@dataclass(kw_only=True)
class FakeBus:
    """A bus that keeps what it took; `away` and `refuses` are its moods."""

    away: bool = False
    refuses: Callable[[BusMessage], bool] = lambda _: False
    took: list[BusMessage] = field(default_factory=list)
    entered: Callable[[], Any] | None = None
    hang: asyncio.Event | None = None

    async def publish(self, messages: Sequence[BusMessage]) -> None:
        if self.entered is not None:
            await self.entered()
        if self.hang is not None:
            await self.hang.wait()
        if self.away:
            raise BusUnavailable("the bus is away")
        for message in messages:
            if self.refuses(message):
                raise EventRefused(message.event_id, "I do not like it")
        self.took += messages

    def subscribe(self, group: str, topics: Sequence[str], handler: Any) -> None:
        raise AssertionError("nobody subscribes here")

    async def run(self) -> None:
        raise AssertionError("nobody runs this")

    def of(self, job_id: str) -> list[int]:
        """Versions of a job's events in the order in which they left."""
        events = [Event.from_json(message.payload) for message in self.took]
        return [event.version for event in events if event.job_id == job_id]


@pytest.fixture
def bus() -> FakeBus:
    return FakeBus()


@pytest.fixture
def worker(desk: Any, bus: FakeBus) -> OutboxWorker:
    return OutboxWorker(
        db=desk.db,
        bus=bus,
        dead_letters=desk.letters,
        lease=Lease(db=desk.db, name="outbox"),
        metrics=desk.metrics,
    )


async def write(db: Database, job_id: str, *versions: int) -> None:
    events = [
        job_event(
            "job.state_changed", job_id=job_id, device_id="truck-001", version=v, data={}, topic=JOB_EVENTS
        )
        for v in versions
    ]
    await db.run(lambda c: OutboxService().add(c, events))


async def make_due(db: Database) -> None:
    async with db.transaction() as connection:
        await connection.execute("UPDATE event_outbox SET next_try_at = clock_timestamp()")


async def test_events_leave_in_order_with_their_keys(desk: Any, worker: OutboxWorker, bus: FakeBus) -> None:
    worker.batch = 3
    for version in (1, 2, 3):
        await write(desk.db, "job-a", version)
        await write(desk.db, "job-b", version)
    to_device = job_event(
        "job.ready_to_execute",
        job_id="job-b",
        device_id="truck-007",
        version=4,
        data={"x": 1},
        topic=DEVICE_COMMANDS,
    )
    await desk.db.run(lambda c: OutboxService().add(c, [to_device]))
    for _ in range(3):
        assert await worker.step() == 0.0
    assert (bus.of("job-a"), bus.of("job-b")) == ([1, 2, 3], [1, 2, 3, 4])
    assert {(m.topic, m.key) for m in bus.took} == {
        ("job.events", "job.state_changed"),
        ("device.commands", "truck-007"),
    }
    assert await worker.step() > 0
    assert len(bus.took) == 7
    assert "outbox_pending_total 0.0" in desk.metrics.as_text().decode()


async def test_an_event_is_there_if_and_only_if_its_transaction_is(
    desk: Any, worker: OutboxWorker, bus: FakeBus
) -> None:
    event = job_event("e", job_id="job-a", device_id="t", version=1, data={}, topic=JOB_EVENTS)

    async def fails_at_the_end(connection: Connection) -> None:
        await OutboxService().add(connection, [event])
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await desk.db.run(fails_at_the_end)
    await worker.step()
    assert bus.took == []


async def test_a_refused_event_waits_1_2_4_8_s_and_then_is_dead_with_its_reason(
    desk: Any, worker: OutboxWorker, bus: FakeBus
) -> None:
    await write(desk.db, "job-a", 1, 2, 3)
    await write(desk.db, "job-b", 1)
    bus.refuses = lambda m: Event.from_json(m.payload).job_id == "job-a" and b'"version":2' in m.payload
    waits = []
    for _ in range(4):
        await worker.step()
        row = await desk.row(
            "SELECT tries, extract(epoch FROM next_try_at - clock_timestamp())::float8 AS wait"
            " FROM event_outbox WHERE job_id = 'job-a' AND job_version = 2"
        )
        waits.append((row["tries"], row["wait"]))
        await worker.step()  # not due: nothing happens
        await make_due(desk.db)
    for (tries, wait), (number, most) in zip(waits, [(1, 1), (2, 2), (3, 4), (4, 8)], strict=True):
        assert tries == number
        assert most - 1 < wait <= most
    # Meanwhile the others went, and of this job only what stood before it.
    assert (bus.of("job-a"), bus.of("job-b")) == ([1], [1])
    await worker.step()
    [letter] = await desk.letters.page()
    assert (letter.source, letter.job_id) == ("outbox", "job-a")
    assert "refused it 5 times: I do not like it" in letter.reason
    await make_due(desk.db)
    await worker.step()
    assert bus.of("job-a") == [1]
    text = desk.metrics.as_text().decode()
    assert "outbox_errors_total 5.0" in text
    assert "outbox_pending_total 2.0" in text
    # Other jobs' new events go on behind it.
    await write(desk.db, "job-b", 2)
    await worker.step()
    assert bus.of("job-b") == [1, 2]


@pytest.mark.parametrize(("decision", "left"), [("replay", [1, 2, 3, 4]), ("drop", [1, 3, 4])])
async def test_behind_a_dead_event_its_job_waits_for_a_person(
    desk: Any, worker: OutboxWorker, bus: FakeBus, decision: str, left: list[int]
) -> None:
    await write(desk.db, "job-a", 1, 2, 3)
    bus.refuses = lambda m: b'"version":2' in m.payload
    for _ in range(5):
        await worker.step()
        await make_due(desk.db)
    await write(desk.db, "job-a", 4)
    await worker.step()
    assert bus.of("job-a") == [1]
    bus.refuses = lambda _: False
    [letter] = await desk.letters.page()
    await getattr(desk.letters, decision)(letter.dead_letter_id, by="anna")
    await worker.step()
    assert bus.of("job-a") == left
    with pytest.raises(Conflict):
        await desk.letters.replay(letter.dead_letter_id, by="anna")


async def test_while_the_bus_is_away_nothing_dies_and_then_all_goes_in_order(
    desk: Any, worker: OutboxWorker, bus: FakeBus
) -> None:
    bus.away = True
    rests = []
    for version in range(1, 31):
        await write(desk.db, "job-a", version)
        rests.append(await worker.step())
    assert rests[:6] == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    assert await desk.count("dead_letters") == 0
    row = await desk.row("SELECT max(tries) AS tries, count(*) AS n FROM event_outbox WHERE sent_at IS NULL")
    assert (row["tries"], row["n"]) == (0, 30)
    bus.away = False
    while await worker.step() == 0.0:
        pass
    assert bus.of("job-a") == list(range(1, 31))


async def test_nothing_is_locked_or_open_while_the_bus_is_spoken_to(
    desk: Any, worker: OutboxWorker, bus: FakeBus
) -> None:
    seen: list[tuple[int, int]] = []

    async def look() -> None:
        row = await desk.row(
            "SELECT (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND pid <> pg_backend_pid() AND state LIKE 'idle in transaction%') AS open,"
            " (SELECT count(*) FROM pg_locks l JOIN pg_class c ON c.oid = l.relation"
            " WHERE c.relname = 'event_outbox' AND l.pid <> pg_backend_pid()) AS locks"
        )
        seen.append((row["open"], row["locks"]))

    bus.entered = look
    await write(desk.db, "job-a", 1)
    await worker.step()
    assert seen == [(0, 0)]


async def test_a_crash_between_publish_and_mark_publishes_again(
    desk: Any, worker: OutboxWorker, bus: FakeBus
) -> None:
    await write(desk.db, "job-a", 1, 2)

    def crash(point: str) -> None:
        if point == "outbox.before_mark":
            raise RuntimeError("power cut")

    worker.reached = crash
    with pytest.raises(RuntimeError):
        await worker.step()
    worker.reached = lambda _: None
    await worker.step()
    assert bus.of("job-a") == [1, 2, 1, 2]
    assert len({m.event_id for m in bus.took}) == 2


async def test_sent_events_are_cleaned_and_only_those(desk: Any, worker: OutboxWorker, bus: FakeBus) -> None:
    await write(desk.db, "job-a", 1, 2, 3)
    bus.refuses = lambda m: b'"version":3' in m.payload
    await worker.step()
    assert await worker.clean() > 0
    assert await desk.count("event_outbox") == 3
    worker.keep_sent_s = 0.0
    await worker.clean()
    assert (await desk.row("SELECT job_version FROM event_outbox"))["job_version"] == 3


async def test_one_holder_at_a_time_and_a_dead_one_is_followed(desk: Any, bus: FakeBus) -> None:
    first, second = (Lease(db=desk.db, name="outbox", for_s=3600.0) for _ in range(2))
    assert await first.hold() is not None
    assert await second.hold() is None
    assert await first.hold() is not None
    # The first one's process is gone; its time runs out.
    async with desk.db.transaction() as connection:
        await connection.execute("UPDATE leases SET expires_at = clock_timestamp()")
    assert await second.hold() is not None
    # Giving back what it no longer has takes nothing from the second.
    await first.give_back()
    third = Lease(db=desk.db, name="outbox", for_s=3600.0)
    assert await third.hold() is None
    await second.give_back()
    assert await third.hold() is not None
    assert await Lease(db=desk.db, name="outbox", slot=1).hold() is not None


async def test_a_worker_without_the_lease_publishes_nothing(
    desk: Any, worker: OutboxWorker, bus: FakeBus
) -> None:
    other = Lease(db=desk.db, name="outbox", for_s=3600.0)
    await other.hold()
    await write(desk.db, "job-a", 1)
    assert await worker.step() > 0
    assert bus.took == []
    await other.give_back()
    await worker.step()
    assert bus.of("job-a") == [1]


async def test_a_worker_that_hangs_longer_than_its_lease_lets_go(
    desk: Any, worker: OutboxWorker, bus: FakeBus
) -> None:
    worker.lease = Lease(db=desk.db, name="outbox", for_s=0.2)
    bus.hang = asyncio.Event()
    await write(desk.db, "job-a", 1)
    assert await worker.step() == 1.0  # the bus counts as away
    assert (await desk.row("SELECT sent_at FROM event_outbox"))["sent_at"] is None
    bus.hang = None
    await worker.step()
    assert bus.of("job-a") == [1]


async def test_two_workers_and_a_moving_lease_keep_every_jobs_order(desk: Any, bus: FakeBus) -> None:
    workers = [
        OutboxWorker(
            db=desk.db,
            bus=bus,
            dead_letters=desk.letters,
            lease=Lease(db=desk.db, name="outbox", for_s=0.05),
            metrics=desk.metrics,
            batch=3,
        )
        for _ in range(2)
    ]
    for version in range(1, 13):
        await write(desk.db, "job-a", version)
        await write(desk.db, "job-b", version)
    async with asyncio.timeout(30):
        while (await desk.row("SELECT count(*) AS n FROM event_outbox WHERE sent_at IS NULL"))["n"]:
            await asyncio.gather(*(worker.step() for worker in workers))
    for job_id in ("job-a", "job-b"):
        assert list(dict.fromkeys(bus.of(job_id))) == list(range(1, 13))
