"""SQL of the dead letters."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import asyncpg
import msgspec

from control_plane.db import Connection, load_queries

_SQL = load_queries("control_plane.dead_letters")


@dataclass(frozen=True, kw_only=True)
class DeadLetter:
    """Something that could not be handled. `raw` is its bytes as they came (empty in lists);
    `reference` is what its source needs to replay it.
    """

    dead_letter_id: str
    source: str
    device_id: str | None
    job_id: str | None
    message_id: str | None
    reason: str
    raw: bytes
    reference: dict[str, Any]
    created_at: datetime
    resolved_at: datetime | None
    resolution: str | None
    resolved_by: str | None


def _letter(row: asyncpg.Record) -> DeadLetter:
    return DeadLetter(**{**dict(row), "reference": msgspec.json.decode(row["reference"])})


async def add(
    connection: Connection,
    *,
    dead_letter_id: str,
    source: str,
    device_id: str | None,
    job_id: str | None,
    message_id: str | None,
    reason: str,
    raw: bytes,
    reference: dict[str, Any],
    most_open_per_device: int,
) -> str | None:
    """Insert or reopen; None when the letter is there already or the device has too many."""
    found: str | None = await connection.fetchval(
        _SQL["add"],
        dead_letter_id,
        source,
        device_id,
        job_id,
        message_id,
        reason,
        raw,
        msgspec.json.encode(reference).decode(),
        most_open_per_device,
    )
    return found


async def get(connection: Connection, dead_letter_id: str, *, lock: bool) -> DeadLetter | None:
    """One letter whole; `lock` keeps others from deciding on it."""
    row = await connection.fetchrow(_SQL["lock" if lock else "get"], dead_letter_id)
    return None if row is None else _letter(row)


async def page(
    connection: Connection,
    *,
    source: str | None,
    device_id: str | None,
    resolved_too: bool,
    before: tuple[datetime, str] | None,
    limit: int,
) -> list[DeadLetter]:
    """Letters from the newest to the oldest, without their bytes."""
    at, last = before or (None, None)
    rows = await connection.fetch(_SQL["page"], source, device_id, resolved_too, at, last, limit)
    return [_letter(row) for row in rows]


async def resolve(connection: Connection, dead_letter_id: str, resolution: str, by: str) -> None:
    """A person has decided."""
    await connection.execute(_SQL["resolve"], dead_letter_id, resolution, by)
