"""What every event bus promises, whatever carries it.

- `publish` hands messages to every group subscribed to their topics, at least once, in order per
  (topic, key). When it returns they are durable.
- Each consumer group is on its own: one that fails retries after 1, 2, 4, 8 s and dead-letters
  alone, durably, and only the messages of the failing key wait meanwhile.
- A handler gets batches, in order per key, and must be idempotent: a crash repeats. It returns when
  the effects are committed. Handlers write the outbox; they never publish.
- A handler that raises Unavailable says that its own means are away: nothing counts as a try.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from control_plane.errors import OfficeError, Unavailable

MAX_VALUE_BYTES = 1024 * 1024
"""The largest payload (Kafka's default): a truck's 128 kB message as text inside a FromDevice fits."""


@dataclass(frozen=True, kw_only=True)
class BusMessage:
    """One message. `event_id` is chosen by its first writer and kept on every retry."""

    topic: str
    key: str
    event_id: str
    payload: bytes


class BusUnavailable(Unavailable):
    """The bus is away or full: nothing is wrong with the messages, all of them wait."""

    code = "bus_unavailable"


class EventRefused(OfficeError):
    """The bus will not take this one message as it is. The rest may be published again without it."""

    code = "event_refused"

    def __init__(self, event_id: str, reason: str) -> None:
        super().__init__(reason)
        self.event_id = event_id


Handler = Callable[[Sequence[BusMessage]], Awaitable[None]]


class Bus(Protocol):
    """An event bus. Groups subscribe before `run`, which delivers until it is cancelled."""

    async def publish(self, messages: Sequence[BusMessage]) -> None:
        """Make messages durable for every subscribed group.

        Raises BusUnavailable (which of them went out is unknown; publish all again) or
        EventRefused (publish the others again).
        """
        ...

    def subscribe(self, group: str, topics: Sequence[str], handler: Handler) -> None:
        """Give a group's messages of these topics to `handler`; one call a group."""
        ...

    async def run(self) -> None:
        """Deliver to all groups until cancelled; what is unfinished then is delivered again."""
        ...
