"""SQL of the outbox: records in, frozen values out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from control_plane.db import Connection, load_queries

_SQL = load_queries("control_plane.outbox")


@dataclass(frozen=True, kw_only=True)
class NewEvent:
    """An event to be written: where it goes, and its bytes (a shared.messages.Event)."""

    event_id: str
    job_id: str
    job_version: int
    topic: str
    key: str
    event_type: str
    payload: bytes


@dataclass(frozen=True, kw_only=True)
class PendingEvent(NewEvent):
    """An event that waits. `tries` counts what the bus refused so far."""

    outbox_id: int
    tries: int


async def add(connection: Connection, events: Sequence[NewEvent]) -> None:
    """Write events."""
    await connection.executemany(
        _SQL["add"],
        [(e.event_id, e.job_id, e.job_version, e.topic, e.key, e.event_type, e.payload) for e in events],
    )


async def next_batch(connection: Connection, limit: int) -> list[PendingEvent]:
    """The oldest events that may leave now, in the order in which they must."""
    return [PendingEvent(**dict(row)) for row in await connection.fetch(_SQL["next_batch"], limit)]


async def mark_sent(connection: Connection, outbox_ids: Sequence[int]) -> None:
    """The bus has them."""
    await connection.execute(_SQL["mark_sent"], outbox_ids)


async def mark_refused(connection: Connection, outbox_id: int, reason: str, wait_s: float) -> None:
    """The bus refused one: again after `wait_s`."""
    await connection.execute(_SQL["mark_refused"], outbox_id, reason, wait_s)


async def mark_dead(connection: Connection, outbox_id: int, reason: str) -> bool:
    """No more tries; False when it was dead already."""
    return await connection.fetchval(_SQL["mark_dead"], outbox_id, reason) is not None


async def replay(connection: Connection, event_id: str) -> bool:
    """A dead event may try again; False when there is no such one."""
    return await connection.fetchval(_SQL["replay"], event_id) is not None


async def drop(connection: Connection, event_id: str) -> bool:
    """Forget a dead event, so that its followers go; False when there is no such one."""
    return await connection.fetchval(_SQL["drop"], event_id) is not None


async def pending(connection: Connection) -> int:
    """How many events wait, dead ones too."""
    count: int = await connection.fetchval(_SQL["pending"])
    return count


async def next_due_s(connection: Connection) -> float | None:
    """Seconds until the next refused event is due; None when none waits for its time."""
    due: float | None = await connection.fetchval(_SQL["next_due_s"])
    return due


async def clean(connection: Connection, older_than_s: float, limit: int) -> int:
    """Delete sent events older than that; returns how many."""
    tag: str = await connection.execute(_SQL["clean"], older_than_s, limit)
    return int(tag.rsplit(" ", 1)[1])


async def take_lease(connection: Connection, name: str, slot: int, holder: str, for_s: float) -> bool:
    """Take or renew a slot; False while another holds it."""
    return await connection.fetchval(_SQL["take_lease"], name, slot, holder, for_s) is not None


async def drop_lease(connection: Connection, name: str, slot: int, holder: str) -> None:
    """Give a slot back."""
    await connection.execute(_SQL["drop_lease"], name, slot, holder)
