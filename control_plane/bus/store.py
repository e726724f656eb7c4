"""SQL of the in-process bus: one row for each group that still has to handle a message."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from control_plane.bus.base import BusMessage
from control_plane.db import Connection, load_queries

_SQL = load_queries("control_plane.bus")


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """A message that a group still has to handle. `tries` counts its failures so far."""

    delivery_id: int
    tries: int
    message: BusMessage


async def add(connection: Connection, deliveries: Sequence[tuple[str, BusMessage]]) -> None:
    """Write (group, message) pairs; one that still waits is not written twice."""
    await connection.executemany(
        _SQL["add"], [(group, m.topic, m.key, m.event_id, m.payload) for group, m in deliveries]
    )


async def next_batch(connection: Connection, group: str, limit: int) -> list[Delivery]:
    """A group's oldest messages that may be handled now, in order."""
    rows = await connection.fetch(_SQL["next_batch"], group, limit)
    return [
        Delivery(
            delivery_id=row["delivery_id"],
            tries=row["tries"],
            message=BusMessage(
                topic=row["topic"], key=row["key"], event_id=row["event_id"], payload=row["payload"]
            ),
        )
        for row in rows
    ]


async def next_due_s(connection: Connection, group: str) -> float | None:
    """Seconds until a group's next retry; None when none waits."""
    due: float | None = await connection.fetchval(_SQL["next_due_s"], group)
    return due


async def handled(connection: Connection, delivery_ids: Sequence[int]) -> None:
    """They are done with."""
    await connection.execute(_SQL["handled"], delivery_ids)


async def failed(connection: Connection, delivery_id: int, reason: str, wait_s: float) -> None:
    """One failed: again after `wait_s`."""
    await connection.execute(_SQL["failed"], delivery_id, reason, wait_s)


async def waiting(connection: Connection, group: str, most: int) -> int:
    """How many messages a group has still to handle, counted up to `most`."""
    count: int = await connection.fetchval(_SQL["waiting"], group, most)
    return count
