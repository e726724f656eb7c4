"""Statuses on their way to the office: numbered, kept until acknowledged, thinned where allowed.

Functions on a connection inside a transaction of `store`. By class:

- final: never dropped. There is one for each attempt, and no new attempt is taken while the queue is full.
- step: never dropped while there is room. In a full queue the newest of *equal* steps of one attempt
  (waiting, retrying for weeks) replaces the oldest, so that the newest word of every step of every
  attempt is always there. An attempt has a bounded number of steps (shared.states.Step, and MOST_STEPS
  of `telling`), which bounds what stands above the limit.
- progress (thin; also steps told again by a later try): only the newest of its job, attempt and step.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from datetime import datetime

import msgspec

from edge_agent.store.journal import MOST_TEXT, Report
from edge_agent.store.queue_bounds import Queue, use
from shared.causes import as_said, as_told
from shared.ids import is_local_job, new_id
from shared.messages import Command, Rejected, Status, WantedTarget
from shared.states import TruckStatus

_FINAL = frozenset({TruckStatus.DONE, TruckStatus.ERROR, TruckStatus.CANCELLED})


def queue(
    connection: sqlite3.Connection,
    *,
    job_id: str,
    attempt: int,
    report: Report,
    at: datetime,
    begins: Command | None = None,
) -> Status:
    """Number a report, give it an id, keep it. Returns it as it will travel.

    `begins`: the command of an attempt that has no journal row yet.
    """
    final = report.status in _FINAL
    where = "job_id = ? AND attempt = ? AND step = ? AND final = 0"
    if report.thin:
        connection.execute(f"DELETE FROM outbox WHERE {where} AND thin = 1", (job_id, attempt, report.step))
    elif not final:
        # Two for one: a queue that is over its bound, in rows or in bytes, comes back under it.
        for _ in range(2):
            if not full(connection):
                break
            connection.execute(
                f"DELETE FROM outbox WHERE seq = (SELECT min(seq) FROM outbox WHERE {where})",
                (job_id, attempt, report.step),
            )
    message_id = _new_id(at)
    cursor = connection.execute(
        "INSERT INTO outbox (message_id, job_id, attempt, step, thin, final, body)"
        " VALUES (?, ?, ?, ?, ?, ?, '')",
        (message_id, job_id, attempt, report.step, report.thin, final),
    )
    assert cursor.lastrowid is not None
    status = Status(
        message_id=message_id,
        job_id=job_id,
        attempt=attempt,
        seq=cursor.lastrowid,
        status=report.status,
        step=report.step,
        progress=report.progress,
        reason=None if report.reason is None else report.reason[:MOST_TEXT],
        causes=as_told(report.causes),
        error=report.error,
        targets=report.targets,
        wanted=_wanted(connection, job_id, attempt, begins) if is_local_job(job_id) else None,
        at=at,
    )
    connection.execute("UPDATE outbox SET body = ? WHERE seq = ?", (encode(status), status.seq))
    return status


def _wanted(
    connection: sqlite3.Connection, job_id: str, attempt: int, command: Command | None
) -> tuple[WantedTarget, ...] | None:
    """What a job of this truck's own is to install, which nobody else could tell the office."""
    if command is None:
        row = connection.execute(
            "SELECT command FROM journal WHERE job_id = ? AND attempt = ?", (job_id, attempt)
        ).fetchone()
        if row is None or row["command"] is None:
            return None
        command = Command.from_json(row["command"].encode())
    return tuple(
        WantedTarget(component=one.component, version=one.version, sha256=one.sha256)
        for one in command.targets
    )


def _new_id(at: datetime) -> str:
    """An id that nobody else gives, and that grows with time: neighbours of the queue are neighbours in the
    index of ids, too, so that a batch's ack touches few pages of the flash.
    """
    return f"{max(0, int(at.timestamp() * 1000)):012x}{new_id()[:20]}"


def tell_again(connection: sqlite3.Connection, told: Status, at: datetime) -> None:
    """Queue a status that was told before, as the newest word; not while the same one still waits.

    A final one goes out as it was, with its id and number: an attempt has one, however often it is asked for.
    """
    row = connection.execute(
        "SELECT max(seq) FROM outbox WHERE job_id = ? AND attempt = ?", (told.job_id, told.attempt)
    ).fetchone()
    if row[0] is not None and row[0] >= told.seq:
        return
    if told.status in _FINAL:
        connection.execute(
            "INSERT INTO outbox (seq, message_id, job_id, attempt, step, thin, final, body)"
            " VALUES (?, ?, ?, ?, ?, 0, 1, ?)",
            (told.seq, told.message_id, told.job_id, told.attempt, told.step, encode(told)),
        )
        return
    queue(connection, job_id=told.job_id, attempt=told.attempt, report=report_of(told), at=at)


def report_of(told: Status) -> Report:
    """What a status said, apart from its id, number and time."""
    return Report(
        status=told.status,
        step=told.step,
        progress=told.progress,
        reason=told.reason,
        causes=as_said(told.causes),
        error=told.error,
        targets=told.targets,
    )


def page(connection: sqlite3.Connection, limit: int, most_bytes: int) -> list[Status]:
    """The oldest statuses by seq, at most `limit` and about `most_bytes` of JSON, but at least one."""
    out: list[Status] = []
    size = 0
    for row in connection.execute("SELECT body FROM outbox ORDER BY seq LIMIT ?", (limit,)):
        size += len(row["body"].encode())
        if out and size > most_bytes:
            break
        out.append(decode(row["body"]))
    return out


def drop(
    connection: sqlite3.Connection, accepted: Sequence[str], rejected: Sequence[Rejected]
) -> list[tuple[Rejected, Status]]:
    """Delete what the office has; ids that are gone already are no error. Returns what it refused."""
    refused: list[tuple[Rejected, Status]] = []
    for one in rejected:
        row = connection.execute("SELECT body FROM outbox WHERE message_id = ?", (one.message_id,)).fetchone()
        if row is not None:
            refused.append((one, decode(row["body"])))
    ids = [*accepted, *(one.message_id for one in rejected)]
    connection.executemany("DELETE FROM outbox WHERE message_id = ?", ((one,) for one in ids))
    return refused


def full(connection: sqlite3.Connection) -> bool:
    """So much waits that no new work is taken."""
    return use(connection, Queue.STATUS).full


def count(connection: sqlite3.Connection) -> int:
    """Statuses that wait for their ack."""
    [(found,)] = connection.execute("SELECT count(*) FROM outbox").fetchall()
    return int(found)


def encode(status: Status) -> str:
    """A status as it is kept."""
    return msgspec.json.encode(status.to_obj()).decode()


def decode(text: str) -> Status:
    """A kept status; unknown fields of a newer agent are kept."""
    return Status.from_json(text.encode())
