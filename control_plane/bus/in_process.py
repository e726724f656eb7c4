"""The bus of a single process: a table between publishers and groups.

Durable by the database: a message is one row a subscribed group, written in one transaction and
deleted when the group has handled it. Memory holds one batch a group. A group that is `most_waiting`
messages behind makes the bus refuse more with BusUnavailable, so that publishers wait and the table
stays bounded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg

from control_plane.bus import store
from control_plane.bus.base import MAX_VALUE_BYTES, BusMessage, BusUnavailable, EventRefused, Handler
from control_plane.bus.store import Delivery
from control_plane.db import Connection, Database
from control_plane.dead_letters.service import DeadLetter, DeadLetterService
from control_plane.errors import Conflict, Unavailable
from control_plane.loops import Loop
from shared.backoff import OUTBOX_BACKOFF, OUTBOX_TRIES, Backoff
from shared.logs import get_log
from shared.topics import BUS_TOPICS

log = get_log("control_plane.bus")

SOURCE = "bus"
"""The source of this room's dead letters."""
POLL_S = 1.0
_TOPICS = frozenset(topic.name for topic in BUS_TOPICS)


@dataclass(frozen=True, kw_only=True)
class _Group:
    name: str
    topics: frozenset[str]
    handler: Handler
    loop: Loop


class InProcessBus:
    """`control_plane.bus.base.Bus` on the table bus_deliveries."""

    def __init__(
        self,
        db: Database,
        dead_letters: DeadLetterService,
        *,
        batch: int = 100,
        most_waiting: int = 100_000,
        backoff: Backoff = OUTBOX_BACKOFF,
    ) -> None:
        self._db = db
        self._dead_letters = dead_letters
        self._batch = batch
        self._most_waiting = most_waiting
        self._backoff = backoff
        self._groups: dict[str, _Group] = {}
        self._full: str | None = None
        self._counted_at = float("-inf")
        dead_letters.register(SOURCE, self)

    def subscribe(self, group: str, topics: Sequence[str], handler: Handler) -> None:
        """See Bus. A group that subscribes for the first time gets what is published from then on."""
        if group in self._groups or not set(topics) <= _TOPICS:
            raise ValueError(f"group {group} is subscribed already, or a topic of {topics} is unknown")
        loop = Loop(name=f"bus.{group}", step=lambda: self._step(group))
        self._groups[group] = _Group(name=group, topics=frozenset(topics), handler=handler, loop=loop)

    def health(self) -> dict[str, bool]:
        """Whether each group's newest step ended well."""
        return {group.loop.name: group.loop.healthy for group in self._groups.values()}

    async def publish(self, messages: Sequence[BusMessage]) -> None:
        """See Bus. All messages or none."""
        for message in messages:
            if message.topic not in _TOPICS:
                raise EventRefused(message.event_id, f"there is no topic {message.topic[:80]!r}")
            if len(message.payload) > MAX_VALUE_BYTES:
                raise EventRefused(
                    message.event_id, f"{len(message.payload)} bytes are over {MAX_VALUE_BYTES}"
                )
        deliveries = [
            (group.name, message)
            for message in messages
            for group in self._groups.values()
            if message.topic in group.topics
        ]
        await self._check_room()
        try:
            async with self._db.transaction() as connection:
                await store.add(connection, deliveries)
        except Unavailable as error:
            raise BusUnavailable(f"the bus's table is away: {error.message}") from error
        for name in {name for name, _ in deliveries}:
            self._groups[name].loop.wake.set()

    async def run(self) -> None:
        """See Bus."""
        async with asyncio.TaskGroup() as tasks:
            for group in self._groups.values():
                tasks.create_task(group.loop.run(), name=group.loop.name)

    async def replay(self, connection: Connection, letter: DeadLetter) -> None:
        """A dead message is delivered again, to the group that failed and no other. Raises Conflict."""
        about = letter.reference
        group = self._groups.get(str(about.get("group")))
        if group is None:
            raise Conflict(f"no group {about.get('group')} is there to take it")
        message = BusMessage(
            topic=str(about["topic"]),
            key=str(about["key"]),
            event_id=str(about["event_id"]),
            payload=letter.raw,
        )
        await store.add(connection, [(group.name, message)])

    async def drop(self, connection: Connection, letter: DeadLetter) -> None:
        """Nothing waits behind a dead message of a group."""

    async def _check_room(self) -> None:
        """Raise BusUnavailable when a group is too far behind; counted once a second at most."""
        now = asyncio.get_running_loop().time()
        if now - self._counted_at >= 1.0:
            try:
                async with self._db.transaction() as connection:
                    self._full = None
                    for name in self._groups:
                        if await store.waiting(connection, name, self._most_waiting) >= self._most_waiting:
                            self._full = name
            except Unavailable as error:
                raise BusUnavailable(f"the bus's table is away: {error.message}") from error
            self._counted_at = now
        if self._full is not None:
            raise BusUnavailable(f"group {self._full} is {self._most_waiting} messages behind")

    async def _step(self, name: str) -> float:
        """Handle one batch of a group; returns the seconds to rest."""
        group = self._groups[name]
        async with self._db.transaction() as connection:
            batch = await store.next_batch(connection, name, self._batch)
            due_s = None if batch else await store.next_due_s(connection, name)
        if not batch:
            return POLL_S if due_s is None else min(POLL_S, max(0.01, due_s))
        error = await self._handled(group, batch)
        if error is None:
            return 0.0
        if len(batch) == 1:
            await self._failed(group, batch[0], error)
            return 0.0
        # Something in the batch fails: one by one, so that only the failing key waits.
        stuck: set[tuple[str, str]] = set()
        for delivery in batch:
            key = (delivery.message.topic, delivery.message.key)
            if key in stuck:
                continue
            error = await self._handled(group, [delivery])
            if error is not None:
                stuck.add(key)
                await self._failed(group, delivery, error)
        return 0.0

    async def _handled(self, group: _Group, batch: Sequence[Delivery]) -> Exception | None:
        """Give a batch to the handler and forget it when that went well; else the handler's error.

        Raises Unavailable when the handler's means are away.
        """
        try:
            await group.handler([delivery.message for delivery in batch])
        except (asyncpg.DeadlockDetectedError, asyncpg.SerializationError) as error:
            raise Unavailable(f"group {group.name} collided with others: {error}") from error
        except Unavailable:
            raise
        except Exception as error:
            return error
        async with self._db.transaction() as connection:
            await store.handled(connection, [delivery.delivery_id for delivery in batch])
        return None

    async def _failed(self, group: _Group, delivery: Delivery, error: Exception) -> None:
        tries = delivery.tries + 1
        message = delivery.message
        reason = f"{type(error).__name__}: {error}".replace("\x00", "")[:2000]
        log.warning(
            "bus.delivery_failed",
            group=group.name,
            topic=message.topic,
            event_id=message.event_id,
            tries=tries,
            exc_info=error,
        )

        async def act(connection: Connection) -> None:
            if tries < OUTBOX_TRIES:
                wait_s = self._backoff.delay_s(delivery.tries)
                await store.failed(connection, delivery.delivery_id, reason, wait_s)
                return
            await self._dead_letters.add(
                connection,
                source=SOURCE,
                device_id=None,
                job_id=None,
                message_id=f"{group.name}.{message.event_id}",
                reason=f"group {group.name} failed {tries} times: {reason}",
                raw=message.payload,
                reference={
                    "group": group.name,
                    "topic": message.topic,
                    "key": message.key,
                    "event_id": message.event_id,
                },
            )
            await store.handled(connection, [delivery.delivery_id])

        await self._db.run(act)
