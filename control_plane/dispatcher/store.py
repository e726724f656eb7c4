"""SQL of the commands: one row a live job, holding the newest thing that its truck must be told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from control_plane.db import Connection, load_queries
from shared.messages import CommandKind

_SQL = load_queries("control_plane.dispatcher")


@dataclass(frozen=True, kw_only=True)
class CommandRow:
    """A command that may have to be sent. `tries` counts how often it went out."""

    job_id: str
    device_id: str
    command_id: str
    attempt: int
    revision: int
    kind: CommandKind
    tries: int


async def put(connection: Connection, rows: Sequence[CommandRow]) -> None:
    """Write rows; one of an older revision than what is there changes nothing."""
    await connection.executemany(
        _SQL["put"], [(r.job_id, r.device_id, r.command_id, r.attempt, r.revision, r.kind) for r in rows]
    )


async def due(connection: Connection, limit: int) -> list[str]:
    """Jobs whose command is due, the longest due first; nothing is locked."""
    return [row["job_id"] for row in await connection.fetch(_SQL["due"], limit)]


async def lock_due(connection: Connection, job_ids: Sequence[str]) -> list[CommandRow]:
    """Those of these commands that are still due, locked."""
    rows = await connection.fetch(_SQL["lock_due"], job_ids)
    return [CommandRow(**{**dict(row), "kind": CommandKind(row["kind"])}) for row in rows]


async def next_due_s(connection: Connection) -> float | None:
    """Seconds until the next command is due; None when none waits."""
    found: float | None = await connection.fetchval(_SQL["next_due_s"])
    return found


async def sent(connection: Connection, delays_s: Mapping[str, float]) -> None:
    """These go out now; by job_id, the time until the next try."""
    await connection.executemany(_SQL["sent"], list(delays_s.items()))


async def unsent(connection: Connection, command_ids: Sequence[str], delay_s: float) -> None:
    """These did not go out after all."""
    await connection.execute(_SQL["unsent"], command_ids, delay_s)


async def postpone(connection: Connection, job_ids: Sequence[str], delay_s: float) -> None:
    """These are not looked at before `delay_s` has passed."""
    await connection.execute(_SQL["postpone"], job_ids, delay_s)


async def remove(connection: Connection, job_ids: Sequence[str]) -> None:
    """There is nothing more to tell about these."""
    await connection.execute(_SQL["remove"], job_ids)


async def heard(connection: Connection, device_id: str, revisions: Mapping[str, int]) -> None:
    """A truck said which revision it has of which job."""
    job_ids, known = list(revisions), list(revisions.values())
    await connection.execute(_SQL["known"], device_id, job_ids, known)
    await connection.execute(_SQL["unknown"], device_id, job_ids, known)


async def answered(connection: Connection, answers: Sequence[tuple[str, Sequence[CommandKind]]]) -> None:
    """Statuses showed that the truck has the command of a job, if it is of one of these kinds."""
    await connection.executemany(_SQL["answered"], answers)
