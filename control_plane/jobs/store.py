"""SQL of the jobs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import asyncpg
import msgspec

from control_plane.db import Connection, load_queries
from control_plane.jobs.merge import Progress, StatusKey
from control_plane.jobs.model import Job, Line, Target
from shared.messages import CommandKind, Error, TargetResult, ToldCause
from shared.states import JobState

_SQL = load_queries("control_plane.jobs")


def _error_in(value: str | None) -> Error | None:
    return None if value is None else Error.from_obj(msgspec.json.decode(value))


def _error_out(error: Error | None) -> str | None:
    return None if error is None else msgspec.json.encode(error.to_obj()).decode()


def _causes_in(value: str | None) -> tuple[ToldCause, ...]:
    return tuple(ToldCause.from_obj(one) for one in msgspec.json.decode(value or "[]"))


def _causes_out(causes: Sequence[ToldCause]) -> str | None:
    return msgspec.json.encode([one.to_obj() for one in causes]).decode() if causes else None


def _job(row: asyncpg.Record, targets: Sequence[Target]) -> Job:
    return Job(
        job_id=row["job_id"],
        device_id=row["device_id"],
        now=Progress(
            state=JobState(row["state"]),
            attempt=row["attempt"],
            key=StatusKey(
                attempt=row["merged_attempt"],
                store_no=row["merged_store_no"],
                seq=row["merged_seq"],
                message_id=row["merged_message_id"],
            ),
            step=row["step"],
            progress=row["progress"],
            reason=row["reason"],
            causes=_causes_in(row["causes"]),
            error=_error_in(row["error"]),
            read_back=tuple(
                TargetResult(component=t.component, version=t.read_back_version, sha256=t.read_back_sha256)
                for t in targets
                if t.read_back_version is not None and t.read_back_sha256 is not None
            ),
        ),
        version=row["version"],
        revision=row["revision"],
        command_kind=CommandKind(row["command_kind"]),
        scheduled_at=row["scheduled_at"],
        created_by=row["created_by"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        dispatched_at=row["dispatched_at"],
        finished_at=row["finished_at"],
        targets=tuple(targets),
        release_path=row["release_path"],
    )


async def _with_targets(connection: Connection, rows: Sequence[asyncpg.Record]) -> list[Job]:
    if not rows:
        return []
    of_job: dict[str, list[Target]] = {row["job_id"]: [] for row in rows}
    for row in await connection.fetch(_SQL["targets"], list(of_job)):
        fields = dict(row)
        of_job[fields.pop("job_id")].append(Target(**fields))
    return [_job(row, of_job[row["job_id"]]) for row in rows]


async def insert(
    connection: Connection,
    *,
    job_id: str,
    device_id: str,
    scheduled_at: datetime | None,
    created_by: str,
    targets: Sequence[Target],
    release_path: str | None = None,
) -> Job:
    """A new scheduled job; without a time it is due now. Raises UniqueViolationError beside a live one."""
    row = await connection.fetchrow(
        _SQL["insert_job"], job_id, device_id, scheduled_at, created_by, release_path
    )
    assert row is not None
    await connection.executemany(
        _SQL["insert_target"],
        [(job_id, t.component, t.firmware_id, t.kind, t.version, t.sha256, t.length) for t in targets],
    )
    return _job(row, targets)


async def live_job_of(connection: Connection, device_id: str) -> str | None:
    """The id of the device's live job."""
    found: str | None = await connection.fetchval(_SQL["live_job_of"], device_id)
    return found


async def get(connection: Connection, job_id: str) -> Job | None:
    """One job."""
    jobs = await _with_targets(connection, await connection.fetch(_SQL["get"], job_id))
    return jobs[0] if jobs else None


async def lock(connection: Connection, job_ids: Sequence[str]) -> dict[str, Job]:
    """These jobs, locked in the order of their ids, as every room does it: no deadlock among them."""
    rows = await connection.fetch(_SQL["lock"], sorted(set(job_ids)))
    return {job.job_id: job for job in await _with_targets(connection, rows)}


async def page(
    connection: Connection,
    *,
    device_id: str | None,
    state: str | None,
    before: tuple[datetime, str] | None,
    limit: int,
) -> list[Job]:
    """Jobs from the newest to the oldest."""
    at, last = before or (None, None)
    rows = await connection.fetch(_SQL["page"], device_id, state, at, last, limit)
    return await _with_targets(connection, rows)


async def history(connection: Connection, job_id: str, most: int) -> tuple[list[Line], int]:
    """The newest `most` lines in the order in which they were written, and how many there are in all."""
    rows = await connection.fetch(_SQL["history"], job_id, most)
    lines = [
        Line(
            **{
                **dict(row),
                "job_id": job_id,
                "error": _error_in(row["error"]),
                "causes": _causes_in(row["causes"]),
            }
        )
        for row in rows
    ]
    total: int = len(lines)
    if total == most:
        total = await connection.fetchval(_SQL["history_length"], job_id)
    return lines[::-1], total


async def add_history(connection: Connection, lines: Sequence[Line]) -> None:
    """Write history; the database's clock dates it."""
    await connection.executemany(
        _SQL["add_history"],
        [
            (
                *(one.job_id, one.attempt, one.version, one.from_state, one.to_state, one.cause),
                *(one.applied, one.status, one.step, one.progress, one.reason, _error_out(one.error)),
                *(one.message_id, one.store_no, one.seq, one.device_at, _causes_out(one.causes)),
            )
            for one in lines
        ],
    )


async def update(connection: Connection, job: Job) -> Job:
    """Write what may change of a job that the caller has locked; returns it with its new times."""
    now = job.now
    row = await connection.fetchrow(
        _SQL["update"],
        *(job.job_id, now.state, job.version, now.attempt, job.revision, job.command_kind),
        *(now.step, now.progress, now.reason, _error_out(now.error)),
        *(now.key.attempt, now.key.store_no, now.key.seq, now.key.message_id, _causes_out(now.causes)),
    )
    assert row is not None
    return _job(row, job.targets)


async def set_read_back(connection: Connection, job_id: str, results: Sequence[TargetResult]) -> None:
    """What the components answered; replaces what is there."""
    await connection.execute(_SQL["clear_read_back"], job_id)
    await connection.executemany(
        _SQL["set_read_back"], [(job_id, r.component, r.version, r.sha256) for r in results]
    )


async def lock_due(connection: Connection, limit: int) -> list[Job]:
    """Scheduled jobs whose time has come by the database's clock, locked; others' locked ones are left."""
    return await _with_targets(connection, await connection.fetch(_SQL["lock_due"], limit))


async def next_due_s(connection: Connection) -> float | None:
    """Seconds until the next scheduled job is due; None when none is scheduled."""
    due: float | None = await connection.fetchval(_SQL["next_due_s"])
    return due


async def lock_uncommanded(
    connection: Connection, limit: int, job_ids: Sequence[str] | None = None
) -> list[Job]:
    """Jobs (of `job_ids`, when given) with a revision that the dispatcher has not taken over, locked."""
    rows = await connection.fetch(_SQL["lock_uncommanded"], limit, job_ids)
    return await _with_targets(connection, rows)


async def commanded(connection: Connection, job_ids: Sequence[str]) -> None:
    """The dispatcher has taken over the newest revision of these."""
    await connection.execute(_SQL["commanded"], job_ids)


async def add_seen(
    connection: Connection, statuses: Sequence[tuple[str, str, str]]
) -> set[tuple[str, str, str]]:
    """Remember (job_id, message_id, status); returns those that were new."""
    ordered = sorted(set(statuses))
    rows = await connection.fetch(
        _SQL["add_seen"], [s[0] for s in ordered], [s[1] for s in ordered], [s[2] for s in ordered]
    )
    return {(row["job_id"], row["message_id"], row["status"]) for row in rows}
