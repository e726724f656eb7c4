"""Sends commands: paced, only to trucks that are online, again with backoff until they answer.

Nothing is published while a transaction is open: a claim decides and commits, then the commands are
built with fresh URLs and go out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

from control_plane.bus.base import BusMessage
from control_plane.db import Database
from control_plane.dispatcher.build import build_command
from control_plane.dispatcher.pace import Pace
from control_plane.dispatcher.service import CommandService, Outgoing
from control_plane.errors import Unavailable
from control_plane.loops import Wake
from control_plane.metrics import Metrics
from control_plane.storage.base import FirmwareFiles
from shared.errors import OtaError
from shared.logs import get_log
from shared.messages import CommandKind, Event
from shared.topics import DEVICE_COMMANDS, JOB_EVENTS, commands
from shared.wire import decode_json

log = get_log("control_plane.dispatcher")

GROUP = "command-dispatcher-group"
TOPICS = (DEVICE_COMMANDS.name, JOB_EVENTS.name)
POLL_S = 1.0
MOST_AT_ONCE = 50
MOST_TAKEN_OVER = 500
UNSENT_RETRY_S = 1.0


class Publisher(Protocol):
    """What the dispatcher needs of the MQTT connection."""

    @property
    def connected(self) -> bool: ...

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Raises Unavailable."""
        ...


@dataclass(kw_only=True)
class Dispatcher:
    """Consumer and sender. `step` is run by `control_plane.loops`; `wake` ends its rest.

    `outbox` is woken when events were written. `url_for_s` is how long a download URL is good,
    `command_for_s` how long a truck may wait before it begins. `reached` is told the names of points
    where a test may end the process.
    """

    db: Database
    service: CommandService
    files: FirmwareFiles
    mqtt: Publisher
    pace: Pace
    metrics: Metrics
    wake: Wake
    outbox: Wake
    url_for_s: float = 6 * 3600.0
    command_for_s: float = 24 * 3600.0
    reached: Callable[[str], None] = lambda _: None

    async def handle(self, messages: Sequence[BusMessage]) -> None:
        """The consumer: writes command rows and commits; the job's row says what they hold."""
        ready: set[str] = set()
        ended: set[str] = set()
        for message in messages:
            event = Event.from_obj(decode_json(message.payload))
            if event.job_id is None:
                continue
            if message.topic == DEVICE_COMMANDS.name:
                ready.add(event.job_id)
            elif event.event_type == "job.completed":
                ended.add(event.job_id)
        if ended:
            await self.db.run(lambda connection: self.service.remove(connection, sorted(ended)))
        if ready:
            ids = sorted(ready)
            await self.db.run(lambda connection: self.service.take_over(connection, len(ids), ids))
            self.wake.set()

    async def step(self) -> float:
        """Sweep, then send what is due and allowed; returns the seconds to rest."""
        # Events only wake: a job whose event was lost or late gets its row here.
        taken = await self.db.run(lambda c: self.service.take_over(c, MOST_TAKEN_OVER))
        if not self.mqtt.connected:
            return POLL_S
        allowed = min(self.pace.allowed(asyncio.get_running_loop().time()), MOST_AT_ONCE)
        if allowed < 1:
            return max(0.005, self.pace.wait_s())
        claim = await self.db.run(lambda connection: self.service.claim(connection, allowed))
        self.pace.take(len(claim.outgoing))
        if claim.wrote_events:
            self.outbox.set()
        if claim.outgoing:
            self.reached("dispatcher.before_publish")
            await self._send(claim.outgoing)
        if claim.looked_at == allowed or taken == MOST_TAKEN_OVER:
            return 0.0 if claim.outgoing or taken else 0.05
        async with self.db.transaction() as connection:
            due_s = await self.service.next_due_s(connection)
        return POLL_S if due_s is None else min(POLL_S, max(0.01, due_s))

    async def _send(self, outgoing: Sequence[Outgoing]) -> None:
        """Publish all at once. Raises Unavailable when some could not go; those are due again soon."""
        went = await asyncio.gather(*(self._send_one(out) for out in outgoing))
        lost = [out.row.command_id for out, ok in zip(outgoing, went, strict=True) if not ok]
        if lost:
            await self.db.run(lambda c: self.service.unsent(c, lost, UNSENT_RETRY_S))
            raise Unavailable(f"{len(lost)} commands could not be handed to the broker")

    async def _send_one(self, out: Outgoing) -> bool:
        expires_at = datetime.now(UTC) + timedelta(seconds=self.command_for_s)
        row = out.row
        try:
            command = build_command(
                out, url_of=lambda sha256: self.files.url(sha256, for_s=self.url_for_s), expires_at=expires_at
            )
            await self.mqtt.publish(commands(row.device_id), command.to_json())
        except Unavailable:
            return False
        except OtaError:
            # One command that can't be built holds up no other; it is tried again with backoff.
            log.exception("dispatcher.command_not_built", job_id=row.job_id)
            return True
        self.metrics.commands_sent_total.labels(kind=row.kind.value).inc()
        spared = sum(one.image_length - one.length for one in out.deltas.values())
        if row.kind is CommandKind.INSTALL and row.tries == 0:
            self.metrics.deltas_offered_total.inc(len(out.deltas))
            self.metrics.delta_bytes_spared_total.inc(spared)
        log.info(
            "dispatcher.command_sent",
            job_id=row.job_id,
            device_id=row.device_id,
            kind=row.kind,
            revision=row.revision,
            tries=row.tries + 1,
            deltas=len(out.deltas),
            delta_spares_bytes=spared,
        )
        return True
