"""SQL of the local installs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import asyncpg
import msgspec

from control_plane.db import Connection, load_queries
from control_plane.jobs.merge import Progress, StatusKey
from control_plane.local_installs.model import LocalInstall, Said
from shared.messages import Error, TargetResult, ToldCause, WantedTarget
from shared.states import JobState
from shared.wire import Wire

_SQL = load_queries("control_plane.local_installs")

Key = tuple[str, str]
"""device_id and job_id."""


def _install(row: asyncpg.Record) -> LocalInstall:
    error = row["error"]
    return LocalInstall(
        device_id=row["device_id"],
        job_id=row["job_id"],
        said=Said(
            now=Progress(
                state=JobState(row["state"]),
                attempt=row["attempt"],
                key=StatusKey(
                    attempt=row["attempt"],
                    store_no=row["merged_store_no"],
                    seq=row["merged_seq"],
                    message_id=row["merged_message_id"],
                ),
                step=row["step"],
                progress=row["progress"],
                reason=row["reason"],
                causes=tuple(ToldCause.from_obj(one) for one in msgspec.json.decode(row["causes"])),
                error=None if error is None else Error.from_obj(msgspec.json.decode(error)),
                read_back=tuple(TargetResult.from_obj(one) for one in msgspec.json.decode(row["read_back"])),
            ),
            wanted=tuple(WantedTarget.from_obj(one) for one in msgspec.json.decode(row["wanted"])),
            said_at=row["said_at"],
        ),
        first_seen_at=row["first_seen_at"],
        updated_at=row["updated_at"],
    )


def _json(values: Sequence[Wire]) -> str:
    return msgspec.json.encode([one.to_obj() for one in values]).decode()


def _values(key: Key, said: Said) -> tuple[Any, ...]:
    now = said.now
    error = None if now.error is None else msgspec.json.encode(now.error.to_obj()).decode()
    return (
        *(*key, now.state, now.attempt, now.step, now.progress, now.reason, error),
        *(_json(said.wanted), _json(now.read_back), said.said_at),
        *(now.key.store_no, now.key.seq, now.key.message_id, _json(now.causes)),
    )


async def lock(connection: Connection, keys: Sequence[Key]) -> dict[Key, LocalInstall]:
    """Those of these that there are, locked in the order of their keys."""
    rows = await connection.fetch(_SQL["lock"], [key[0] for key in keys], [key[1] for key in keys])
    return {(row["device_id"], row["job_id"]): _install(row) for row in rows}


async def insert_or_lock(connection: Connection, key: Key, said: Said) -> LocalInstall | None:
    """A new row; or the one that somebody else has put there meanwhile, locked and unchanged."""
    row = await connection.fetchrow(_SQL["insert_or_lock"], *_values(key, said))
    assert row is not None
    return None if row["is_new"] else _install(row)


async def update(connection: Connection, key: Key, said: Said) -> None:
    """Write what is said of a locked one."""
    await connection.execute(_SQL["update"], *_values(key, said))


async def prune(connection: Connection, device_id: str, most: int) -> int:
    """Forget the oldest of a device above `most`; returns how many."""
    gone: int = await connection.fetchval(_SQL["prune"], device_id, most)
    return gone


async def page(
    connection: Connection,
    *,
    device_id: str | None,
    job_id: str | None,
    state: str | None,
    before: tuple[datetime, str] | None,
    limit: int,
) -> list[LocalInstall]:
    """From the newest to the oldest."""
    at, last = before or (None, None)
    rows = await connection.fetch(_SQL["page"], device_id, job_id, state, at, last, limit)
    return [_install(row) for row in rows]
