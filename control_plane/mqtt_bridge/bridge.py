"""From trucks' MQTT topics to the bus, in batches, keyed by device; it reads no message's inside.

What is no truck's topic or larger than a message may be becomes a dead letter with its bytes. When
`handle` returns, everything is durable: on the bus or among the dead letters.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from control_plane.bus.base import Bus, BusMessage
from control_plane.db import Connection, Database
from control_plane.dead_letters.service import DeadLetterService
from control_plane.metrics import Metrics
from control_plane.mqtt import Received
from shared import topics
from shared.errors import BadMessage
from shared.ids import BadId, new_id
from shared.messages import FromDevice
from shared.wire import MAX_MESSAGE_BYTES

SOURCE = "mqtt"
"""The source of this room's dead letters."""


@dataclass(frozen=True, kw_only=True)
class _Bad:
    device_id: str | None
    reason: str
    message: Received


@dataclass(kw_only=True)
class MqttBridge:
    """The handler of the office's MQTT connection."""

    bus: Bus
    db: Database
    dead_letters: DeadLetterService
    metrics: Metrics

    async def handle(self, received: Sequence[Received]) -> None:
        """Put messages on the bus in their order. Raises Unavailable, then none may be acknowledged."""
        now = datetime.now(UTC)
        good: list[BusMessage] = []
        bad: list[_Bad] = []
        counts: Counter[str] = Counter()
        for message in received:
            try:
                sender = topics.parse_from_truck(message.topic)
            except (BadMessage, BadId) as error:
                counts["bad"] += 1
                bad.append(_Bad(device_id=None, reason=error.message, message=message))
                continue
            if len(message.payload) > MAX_MESSAGE_BYTES:
                counts["bad"] += 1
                reason = f"{len(message.payload)} bytes are over {MAX_MESSAGE_BYTES}"
                bad.append(_Bad(device_id=sender.device_id, reason=reason, message=message))
                continue
            counts[sender.kind] += 1
            if message.payload:
                good.append(_on_bus(sender, message.payload, now))
        if bad:
            await self.db.run(lambda connection: self._keep(connection, bad))
        if good:
            await self.bus.publish(good)
        for kind, count in counts.items():
            self.metrics.mqtt_messages_total.labels(kind=kind).inc(count)

    async def _keep(self, connection: Connection, bad: Sequence[_Bad]) -> None:
        for one in bad:
            await self.dead_letters.add(
                connection,
                source=SOURCE,
                device_id=one.device_id,
                job_id=None,
                message_id=hashlib.sha256(one.message.payload).hexdigest(),
                reason=one.reason,
                raw=one.message.payload,
                reference={"topic": one.message.topic[:200]},
            )


def _on_bus(sender: topics.FromTruck, payload: bytes, now: datetime) -> BusMessage:
    """A truck's message as it travels on the bus.

    A batch that a truck sends again while its first copy still waits on the bus gets the same
    event_id, so that a backlog does not grow by repeats. A `hello` never does: the same words mean
    something else after an offline in between.
    """
    repeatable = sender.kind in ("update", "manifest")
    digest = hashlib.sha256(b"\0".join((sender.device_id.encode(), sender.kind.encode(), payload)))
    message = FromDevice(
        device_id=sender.device_id,
        kind=sender.kind,
        payload=payload.decode("latin-1"),
        received_at=now,
    )
    topic = topics.DEVICE_TELEMETRY if sender.kind == "telemetry" else topics.DEVICE_STATUS
    return BusMessage(
        topic=topic.name,
        key=sender.device_id,
        event_id=digest.hexdigest() if repeatable else new_id(),
        # Not to_json: as text in JSON a truck's 128 kB may grow beyond the bound of one message.
        payload=msgspec.json.encode(message.to_obj()),
    )
