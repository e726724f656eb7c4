"""Which statuses are safe in the database: collected per truck, told after the commit."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

from control_plane.dispatcher.worker import Publisher
from control_plane.errors import Unavailable
from shared import topics
from shared.logs import get_log
from shared.messages import Ack, Rejected

log = get_log("control_plane.event_processor")

# Both together stay far below the bound of one message, whatever characters a reason has.
MOST_ACCEPTED = 800
MOST_REJECTED = 20
MOST_REASON = 300


@dataclass(kw_only=True)
class Acks:
    """What trucks are to be told; each message_id once."""

    accepted: dict[str, dict[str, None]] = field(default_factory=dict)
    rejected: dict[str, dict[str, str]] = field(default_factory=dict)

    def accept(self, device_id: str, message_id: str) -> None:
        """It is stored, now or before."""
        self.accepted.setdefault(device_id, {})[message_id] = None

    def reject(self, device_id: str, message_id: str, reason: str) -> None:
        """It can't be taken over; it is among the dead letters."""
        self.rejected.setdefault(device_id, {})[message_id] = reason[:MOST_REASON]

    def messages(self) -> Iterator[tuple[str, Ack]]:
        """(device_id, ack) pairs, each ack small enough for one message."""
        for device_id, ids in self.accepted.items():
            every = list(ids)
            for at in range(0, len(every), MOST_ACCEPTED):
                yield device_id, Ack(accepted=tuple(every[at : at + MOST_ACCEPTED]))
        for device_id, reasons in self.rejected.items():
            pairs = list(reasons.items())
            for at in range(0, len(pairs), MOST_REJECTED):
                part = pairs[at : at + MOST_REJECTED]
                yield device_id, Ack(rejected=tuple(Rejected(message_id=i, reason=why) for i, why in part))


async def send(acks: Acks, mqtt: Publisher) -> None:
    """Tell the trucks. An ack that can't be sent now is lost: its truck sends again and gets another."""
    if not mqtt.connected:
        return
    lost = [
        result
        for result in await asyncio.gather(
            *(mqtt.publish(topics.acks(device_id), ack.to_json()) for device_id, ack in acks.messages()),
            return_exceptions=True,
        )
        if result is not None
    ]
    for error in lost:
        if not isinstance(error, Unavailable):
            raise error
    if lost:
        log.warning("event_processor.acks_lost", acks=len(lost))
