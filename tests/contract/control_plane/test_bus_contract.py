"""What every bus promises (control_plane/bus/base.py). `BUSES` makes each kind; all pass the same suite.

A bus can be stopped and made again on the same ground, which is how a process restarts.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from control_plane.bus.base import MAX_VALUE_BYTES, BusMessage, BusUnavailable, EventRefused
from control_plane.bus.in_process import InProcessBus
from control_plane.db import Database
from control_plane.dead_letters.service import DeadLetterService
from control_plane.errors import Conflict, Unavailable
from shared.backoff import Backoff

FAST = Backoff(first_s=0.01, most_s=0.08)
STATUS, EVENTS = "device.status", "job.events"
NEVER = Backoff(first_s=3600.0, most_s=3600.0)


def message(number: int, key: str = "truck-001", topic: str = STATUS) -> BusMessage:
    return BusMessage(topic=topic, key=key, event_id=f"{topic}.{key}.{number}", payload=str(number).encode())


@dataclass(kw_only=True)
class Group:
    """A consumer group that notes what it handled; `fails` decides what it refuses."""

    name: str
    topics: tuple[str, ...] = (STATUS,)
    fails: Callable[[BusMessage], BaseException | None] = lambda _: None
    handled: list[tuple[str, int]] = field(default_factory=list)
    tries: list[int] = field(default_factory=list)

    async def handle(self, messages: Sequence[BusMessage]) -> None:
        for one in messages:
            self.tries.append(int(one.payload))
            if (error := self.fails(one)) is not None:
                raise error
        self.handled += [(one.key, int(one.payload)) for one in messages]

    def of(self, key: str) -> list[int]:
        """What it handled of a key, in order, repeats left out."""
        return list(dict.fromkeys(number for its, number in self.handled if its == key))


Running = Callable[..., Any]


class InProcess:
    """Makes in-process buses on one database."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self.letters = DeadLetterService(db)

    def make(self, *, backoff: Backoff = FAST, most_waiting: int = 100_000) -> InProcessBus:
        self.letters = DeadLetterService(self.db)
        return InProcessBus(self.db, self.letters, batch=10, backoff=backoff, most_waiting=most_waiting)


BUSES: dict[str, Callable[[Database], InProcess]] = {"in-process": InProcess}


@pytest.fixture(params=sorted(BUSES))
def ground(request: pytest.FixtureRequest, database: Database) -> InProcess:
    return BUSES[request.param](database)


@asynccontextmanager
async def running(bus: InProcessBus, *groups: Group) -> AsyncIterator[InProcessBus]:
    for group in groups:
        bus.subscribe(group.name, group.topics, group.handle)
    task = asyncio.create_task(bus.run())
    try:
        yield bus
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while True:
            found = condition()
            if found if isinstance(found, bool) else await found:
                return
            await asyncio.sleep(0.005)


async def test_every_group_gets_every_message_of_its_topics_in_order_per_key(ground: InProcess) -> None:
    statuses = Group(name="status")
    both = Group(name="both", topics=(STATUS, EVENTS))
    async with running(ground.make(), statuses, both) as bus:
        for start in range(0, 60, 20):
            await bus.publish(
                [message(n, key=f"truck-{n % 3}") for n in range(start, start + 20)]
                + [message(start, key="job.created", topic=EVENTS)]
            )
        await until(lambda: len(both.handled) >= 63 and len(statuses.handled) >= 60)
    for group in (statuses, both):
        for key in range(3):
            assert group.of(f"truck-{key}") == [n for n in range(60) if n % 3 == key]
    assert both.of("job.created") == [0, 20, 40]
    assert statuses.of("job.created") == []


async def test_a_group_that_fails_delays_no_other_and_only_its_key(ground: InProcess) -> None:
    ill = Group(name="ill", fails=lambda m: ValueError("no") if (m.key, m.payload) == ("bad", b"1") else None)
    well = Group(name="well")
    async with running(ground.make(backoff=NEVER), ill, well) as bus:
        await bus.publish([message(0, key="bad"), message(1, key="bad"), message(2, key="bad")])
        await bus.publish([message(n, key="good") for n in range(10, 15)])
        await until(lambda: ill.of("good") == [10, 11, 12, 13, 14])
        await until(lambda: well.of("bad") == [0, 1, 2])
        await bus.publish([message(15, key="good")])
        await until(lambda: ill.of("good")[-1:] == [15] == well.of("good")[-1:])
    # 2 waits behind 1, though it would have gone well.
    assert ill.of("bad") == [0]
    assert ill.tries.count(2) <= 1
    assert well.of("good") == [10, 11, 12, 13, 14, 15]


async def test_a_message_that_fails_five_times_is_dead_and_its_followers_go(ground: InProcess) -> None:
    ill = Group(name="ill", fails=lambda m: ValueError("no\x00pe") if m.payload == b"1" else None)
    async with running(ground.make(), ill) as bus:
        await bus.publish([message(n) for n in range(3)])
        await until(lambda: ill.of("truck-001") == [0, 2])
        [letter] = await ground.letters.page()
    assert (letter.source, letter.reference["group"]) == ("bus", "ill")
    assert "failed 5 times: ValueError: no" in letter.reason
    assert (await ground.letters.get(letter.dead_letter_id)).raw == b"1"
    # Each of the five tries may be made with its followers first and then, to find it, alone.
    assert 5 <= ill.tries.count(1) <= 10


async def test_the_waits_between_tries_are_1_2_4_8_s(ground: InProcess, database: Database) -> None:
    ill = Group(name="ill", fails=lambda _: ValueError("no"))
    waits = []
    async with running(ground.make(backoff=Backoff(first_s=1.0, most_s=8.0)), ill) as bus:
        await bus.publish([message(1)])
        for tries in (1, 2, 3, 4):

            async def failed(tries: int = tries) -> bool:
                rows = await database.fetch("SELECT 1 FROM bus_deliveries WHERE tries = $1", tries)
                return bool(rows)

            await until(failed)
            async with database.transaction() as connection:
                waits.append(
                    await connection.fetchval(
                        "SELECT extract(epoch FROM next_try_at - clock_timestamp())::float8"
                        " FROM bus_deliveries"
                    )
                )
                await connection.execute("UPDATE bus_deliveries SET next_try_at = clock_timestamp()")
        await until(lambda: _has_letters(ground))
    for wait, most in zip(waits, (1, 2, 4, 8), strict=True):
        assert most - 1 < wait <= most


async def _has_letters(ground: InProcess) -> bool:
    return bool(await ground.letters.page())


async def test_means_that_are_away_do_not_count_as_tries(ground: InProcess) -> None:
    away = True
    ill = Group(name="ill", fails=lambda _: Unavailable("the database is away") if away else None)
    async with running(ground.make(), ill) as bus:
        await bus.publish([message(n) for n in range(3)])
        await until(lambda: len(ill.tries) > OUTAGES)
        assert await ground.letters.page() == []
        away = False
        await until(lambda: ill.of("truck-001") == [0, 1, 2])
    assert await ground.letters.page() == []


OUTAGES = 2


async def test_what_was_published_survives_a_restart(ground: InProcess) -> None:
    stuck = Group(name="group", fails=lambda _: Unavailable("not now"))
    async with running(ground.make(), stuck) as bus:
        await bus.publish([message(n) for n in range(5)])
        await until(lambda: bool(stuck.tries))
    again = Group(name="group")
    async with running(ground.make(), again):
        await until(lambda: again.of("truck-001") == [0, 1, 2, 3, 4])


async def test_a_crash_between_handling_and_forgetting_repeats(ground: InProcess) -> None:
    first = Group(name="group")
    started = asyncio.Event()

    async def hang(messages: Sequence[BusMessage]) -> None:
        await first.handle(messages)
        started.set()
        await asyncio.Event().wait()

    bus = ground.make()
    bus.subscribe("group", (STATUS,), hang)
    task = asyncio.create_task(bus.run())
    await bus.publish([message(1)])
    await started.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    again = Group(name="group")
    async with running(ground.make(), again):
        await until(lambda: again.of("truck-001") == [1])


async def test_an_event_that_still_waits_is_not_there_twice(ground: InProcess) -> None:
    open_ = False
    group = Group(name="group", fails=lambda _: None if open_ else Unavailable("not now"))
    async with running(ground.make(), group) as bus:
        await bus.publish([message(1), message(1)])
        await bus.publish([message(1)])
        open_ = True
        await until(lambda: bool(group.handled))
        await bus.publish([message(2)])
        await until(lambda: ("truck-001", 2) in group.handled)
    assert group.handled == [("truck-001", 1), ("truck-001", 2)]


async def test_a_dead_message_is_replayed_to_its_group_alone_or_dropped(ground: InProcess) -> None:
    broken = True
    ill = Group(name="ill", fails=lambda _: ValueError("no") if broken else None)
    well = Group(name="well")
    async with running(ground.make(), ill, well) as bus:
        await bus.publish([message(1), message(2, key="other")])

        async def both_dead() -> bool:
            return len(await ground.letters.page()) == 2

        await until(both_dead)
        by_key = {one.reference["key"]: one.dead_letter_id for one in await ground.letters.page()}
        broken = False
        await ground.letters.drop(by_key["other"], by="anna")
        await ground.letters.replay(by_key["truck-001"], by="anna")
        await until(lambda: ill.handled == [("truck-001", 1)])
        for dead_letter_id in by_key.values():
            with pytest.raises(Conflict):
                await ground.letters.replay(dead_letter_id, by="anna")
    assert sorted(well.handled) == [("other", 2), ("truck-001", 1)]


async def test_a_message_that_dies_again_after_its_replay_is_open_again(ground: InProcess) -> None:
    ill = Group(name="ill", fails=lambda _: ValueError("no"))
    async with running(ground.make(), ill) as bus:
        await bus.publish([message(1)])
        await until(lambda: _has_letters(ground))
        [letter] = await ground.letters.page()
        await ground.letters.replay(letter.dead_letter_id, by="anna")
        await until(lambda: _has_letters(ground))
    assert len(ill.tries) >= 10


async def test_a_dead_message_of_a_group_that_is_gone_stays(ground: InProcess) -> None:
    async with running(ground.make(), Group(name="ill", fails=lambda _: ValueError("no"))) as bus:
        await bus.publish([message(1)])
        await until(lambda: _has_letters(ground))
    async with running(ground.make(), Group(name="other")):
        [letter] = await ground.letters.page()
        with pytest.raises(Conflict):
            await ground.letters.replay(letter.dead_letter_id, by="anna")
        assert (await ground.letters.get(letter.dead_letter_id)).resolution is None


async def test_what_the_bus_does_not_take_it_refuses_by_name_and_takes_nothing(ground: InProcess) -> None:
    group = Group(name="group")
    async with running(ground.make(), group) as bus:
        for bad in (
            BusMessage(topic="no.such", key="k", event_id="bad", payload=b"1"),
            BusMessage(topic=STATUS, key="k", event_id="bad", payload=b"x" * (MAX_VALUE_BYTES + 1)),
        ):
            with pytest.raises(EventRefused) as caught:
                await bus.publish([message(1), bad])
            assert caught.value.event_id == "bad"
        await bus.publish([message(2)])
        await until(lambda: bool(group.handled))
    assert group.of("truck-001") == [2]
    with pytest.raises(ValueError, match="group"):
        bus.subscribe("group", (STATUS,), group.handle)
    with pytest.raises(ValueError, match="unknown"):
        bus.subscribe("new", ("no.such",), group.handle)


async def test_a_group_too_far_behind_makes_publishers_wait(ground: InProcess, database: Database) -> None:
    open_ = False
    slow = Group(name="slow", fails=lambda _: None if open_ else Unavailable("not now"))
    async with running(ground.make(most_waiting=20), slow) as bus:

        async def full() -> bool:
            try:
                await bus.publish([message(n) for n in range(20)])
            except BusUnavailable as error:
                return "slow" in error.message
            return False

        await until(full)
        [row] = await database.fetch("SELECT count(*) AS n FROM bus_deliveries")
        assert row["n"] == 20
        open_ = True

        async def room() -> bool:
            return not await full()

        await until(room)
        await until(lambda: slow.of("truck-001") == list(range(20)))


async def test_a_message_nobody_subscribed_to_costs_nothing(ground: InProcess, database: Database) -> None:
    async with running(ground.make(), Group(name="events", topics=(EVENTS,))) as bus:
        await bus.publish([message(1)])
    assert await database.fetch("SELECT 1 FROM bus_deliveries") == []
