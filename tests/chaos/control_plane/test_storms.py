"""What once stopped the first system: errors that ate the pool, one slow part that stopped all."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest

from control_plane.bus.base import BusMessage
from control_plane.bus.in_process import InProcessBus
from control_plane.db import Database
from control_plane.dead_letters.service import DeadLetterService
from control_plane.errors import Unavailable
from control_plane.loops import Loop
from control_plane.metrics import Metrics
from control_plane.outbox.leases import Lease
from control_plane.outbox.service import OutboxService, job_event
from control_plane.outbox.worker import OutboxWorker
from shared.backoff import Backoff
from shared.topics import JOB_EVENTS

AT_ONCE = Backoff(first_s=0.001, most_s=0.001)


async def test_an_error_storm_leaves_the_pool_whole(database_dsn: str) -> None:
    async with Database(database_dsn, most_connections=4, name="storm") as db:

        async def ill(kind: int) -> None:
            async with db.transaction() as connection:
                match kind % 5:
                    case 0:
                        await connection.execute("SELECT 1/0")
                    case 1:
                        await connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
                    case 2:
                        raise RuntimeError("a bug between two statements")
                    case 3:
                        await connection.execute("SET LOCAL statement_timeout = '5ms'")
                        await connection.execute("SELECT pg_sleep(5)")
                    case _:
                        await connection.execute("SELECT 1")
                        await asyncio.sleep(3600)

        tasks = [asyncio.create_task(ill(kind)) for kind in range(100)]
        # Those that wait for ever are cancelled in the middle of their transaction.
        async with asyncio.timeout(60):
            while any(not task.done() for task in tasks):
                for task in tasks[4::5]:
                    task.cancel()
                await asyncio.sleep(0.01)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(r) for r in results} == {
            asyncpg.DivisionByZeroError,
            Unavailable,
            RuntimeError,
            asyncio.CancelledError,
        }
        # All connections can be had at once, and none is left in a transaction.
        both = asyncio.Barrier(4)

        async def well() -> int:
            async with db.transaction() as connection:
                await both.wait()
                found: int = await connection.fetchval(
                    "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'storm'"
                    " AND state LIKE 'idle in transaction (aborted)'"
                )
                return found

        async with asyncio.timeout(30):
            assert await asyncio.gather(*(well() for _ in range(4))) == [0, 0, 0, 0]


async def test_the_driver_boundary_says_unavailable_when_the_pool_is_empty(
    database_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("control_plane.db.ACQUIRE_TIMEOUT_S", 0.05)
    async with Database(database_dsn, most_connections=1) as db, db.transaction():
        with pytest.raises(Unavailable):
            await db.fetch("SELECT 1")


async def test_a_group_that_stands_still_stops_nobody_else(database: Database) -> None:
    letters = DeadLetterService(database)
    bus = InProcessBus(database, letters, backoff=AT_ONCE)
    stuck, seen = asyncio.Event(), []

    async def slow(_: Any) -> None:
        await stuck.wait()

    async def quick(messages: Any) -> None:
        seen.extend(messages)

    bus.subscribe("slow", (JOB_EVENTS.name,), slow)
    bus.subscribe("quick", (JOB_EVENTS.name,), quick)
    worker = OutboxWorker(
        db=database,
        bus=bus,
        dead_letters=letters,
        lease=Lease(db=database, name="outbox"),
        metrics=Metrics(),
    )
    running = asyncio.create_task(bus.run())
    try:
        for version in range(1, 51):
            event = job_event("e", job_id="j", device_id="t", version=version, data={}, topic=JOB_EVENTS)
            await database.run(lambda c, event=event: OutboxService().add(c, [event]))  # type: ignore[misc]
            await worker.step()
        async with asyncio.timeout(30):
            while len(seen) < 50:
                await asyncio.sleep(0.01)
        # The one that stands still holds no connection meanwhile.
        [row] = await database.fetch(
            "SELECT count(*) AS n FROM pg_stat_activity WHERE datname = current_database()"
            " AND state LIKE 'idle in transaction%'"
        )
        assert row["n"] == 0
        [waiting] = await database.fetch(
            "SELECT count(*) AS n FROM bus_deliveries WHERE consumer_group = 'slow'"
        )
        assert waiting["n"] == 50
    finally:
        stuck.set()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_step_that_waits_for_a_lock_stops_no_other_loop(database: Database) -> None:
    await database.fetch("INSERT INTO leases VALUES ('held', 0, 'me', now()) RETURNING name")
    turns = 0

    async def blocked() -> float:
        await database.fetch("UPDATE leases SET holder = 'you' RETURNING name")
        return 3600.0

    async def free() -> float:
        nonlocal turns
        await database.fetch("SELECT 1")
        turns += 1
        return 0.0

    slow = Loop(name="slow", step=blocked)
    async with database.transaction() as connection:
        await connection.execute("SELECT * FROM leases FOR UPDATE")
        tasks = [asyncio.create_task(loop.run()) for loop in (slow, Loop(name="free", step=free))]
        async with asyncio.timeout(30):
            while turns < 50:
                await asyncio.sleep(0.005)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_message_that_kills_its_handler_each_time_ends_among_the_dead(database: Database) -> None:
    letters = DeadLetterService(database)
    bus = InProcessBus(database, letters, backoff=AT_ONCE)

    async def handler(messages: Any) -> None:
        raise RecursionError("poison")

    bus.subscribe("group", (JOB_EVENTS.name,), handler)
    running = asyncio.create_task(bus.run())
    try:
        await bus.publish(
            [
                BusMessage(topic=JOB_EVENTS.name, key=f"k{n}", event_id=f"e{n}", payload=b"x")
                for n in range(20)
            ]
        )
        async with asyncio.timeout(60):
            while len(await letters.page(limit=100)) < 20:
                await asyncio.sleep(0.02)
        assert await database.fetch("SELECT 1 FROM bus_deliveries") == []
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
