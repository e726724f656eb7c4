"""Publishes the outbox: in order per job, in batches, at least once, by one holder at a time.

- Nothing is locked and no transaction is open while the bus is spoken to.
- An event that the bus refuses is tried again after 1, 2, 4, 8 s and then becomes a dead letter.
  Its job's later events wait until a person replays or drops it; other jobs go on.
- While the bus is away nothing counts as a try; everything waits and leaves in order afterwards.
- A crash between publish and mark publishes again: consumers are idempotent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from control_plane.bus.base import Bus, BusMessage, BusUnavailable, EventRefused
from control_plane.db import Connection, Database
from control_plane.dead_letters.service import DeadLetterService
from control_plane.metrics import Metrics
from control_plane.outbox import store
from control_plane.outbox.leases import Lease
from control_plane.outbox.service import SOURCE
from control_plane.outbox.store import PendingEvent
from shared.backoff import OUTBOX_BACKOFF, OUTBOX_TRIES, Backoff
from shared.logs import get_log

log = get_log("control_plane.outbox")

POLL_S = 1.0
MOST_CLEANED = 1000


@dataclass(kw_only=True)
class OutboxWorker:
    """Empties the outbox. `step` and `clean` are run by `control_plane.loops`.

    `reached` is told the names of points where a test may end the process.
    """

    db: Database
    bus: Bus
    dead_letters: DeadLetterService
    lease: Lease
    metrics: Metrics
    batch: int = 200
    keep_sent_s: float = 24 * 3600.0
    backoff: Backoff = OUTBOX_BACKOFF
    reached: Callable[[str], None] = lambda _: None
    _bus_failures: int = 0

    async def step(self) -> float:
        """Publish one batch; returns the seconds to rest."""
        until = await self.lease.hold()
        if until is None:
            return POLL_S
        async with self.db.transaction() as connection:
            events = await store.next_batch(connection, self.batch)
            self.metrics.outbox_pending_total.set(await store.pending(connection))
            due_s = None if events else await store.next_due_s(connection)
        if not events:
            return min(POLL_S, max(0.01, due_s)) if due_s is not None else POLL_S
        try:
            # A worker that stands still has lost its lease by then, and another publishes.
            async with asyncio.timeout_at(until):
                await self._publish(events)
        except (BusUnavailable, TimeoutError) as error:
            self.metrics.outbox_errors_total.inc()
            if self._bus_failures == 0:
                log.warning("outbox.bus_lost", error=str(error), waiting=len(events))
            self._bus_failures += 1
            return self.backoff.delay_s(self._bus_failures - 1)
        if self._bus_failures:
            log.info("outbox.bus_returned", failures=self._bus_failures)
            self._bus_failures = 0
        return 0.0

    async def _publish(self, events: Sequence[PendingEvent]) -> None:
        """Publish a batch; what is refused, and its job's later events, are taken out of it."""
        left = list(events)
        self.reached("outbox.before_publish")
        while left:
            try:
                await self.bus.publish(
                    [
                        BusMessage(topic=e.topic, key=e.key, event_id=e.event_id, payload=e.payload)
                        for e in left
                    ]
                )
            except EventRefused as error:
                refused = next((e for e in left if e.event_id == error.event_id), left[0])
                await self._refused(refused, error.message)
                at = left.index(refused)
                left = left[:at] + [e for e in left[at:] if e.job_id != refused.job_id]
                continue
            self.reached("outbox.before_mark")
            async with self.db.transaction() as connection:
                await store.mark_sent(connection, [e.outbox_id for e in left])
            return

    async def _refused(self, event: PendingEvent, reason: str) -> None:
        self.metrics.outbox_errors_total.inc()
        tries = event.tries + 1
        log.warning(
            "outbox.event_refused",
            event_id=event.event_id,
            job_id=event.job_id,
            event_type=event.event_type,
            tries=tries,
            reason=reason,
        )

        async def act(connection: Connection) -> None:
            if tries < OUTBOX_TRIES:
                await store.mark_refused(
                    connection, event.outbox_id, reason, self.backoff.delay_s(event.tries)
                )
            elif await store.mark_dead(connection, event.outbox_id, reason):
                await self.dead_letters.add(
                    connection,
                    source=SOURCE,
                    device_id=None,
                    job_id=event.job_id,
                    message_id=event.event_id,
                    reason=f"the bus refused it {tries} times: {reason}",
                    raw=event.payload,
                    reference={
                        "event_id": event.event_id,
                        "topic": event.topic,
                        "event_type": event.event_type,
                    },
                )

        await self.db.run(act)

    async def clean(self) -> float:
        """Delete sent events that are old enough; returns the seconds to rest."""
        async with self.db.transaction() as connection:
            cleaned = await store.clean(connection, self.keep_sent_s, MOST_CLEANED)
        if cleaned:
            log.info("outbox.sent_cleaned", events=cleaned)
        return 0.0 if cleaned == MOST_CLEANED else 60.0
