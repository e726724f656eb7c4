"""What a command changes when it arrives: the inbox row, a new journal row, or a repeat's answer.

Functions on a connection inside a transaction of `store`. Nothing is decided here about an update that
is under way: its row only gets the office's wish (`asked`, a fresher URL), and the updater decides.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from datetime import datetime

from edge_agent.errors import OutboxFull
from edge_agent.store import outbox
from edge_agent.store.journal import Asked, Entry, Report, error_of, status_word
from edge_agent.store.rows import MOST_ENDED, entry_of
from shared.errors import BadMessage, OtaError, Unsupported
from shared.logs import get_log
from shared.messages import Command, CommandKind, CommandTarget, Feature
from shared.states import Step, TruckStatus, UpdateState

log = get_log("edge_agent.inbox")

FEATURES = frozenset(Feature)
"""What this agent is able to do."""


def take(connection: sqlite3.Connection, command: Command, at: datetime) -> None:
    """Everything that one command changes. Raises OutboxFull: take it again later."""
    if outbox.full(connection):
        raise OutboxFull(f"{outbox.count(connection)} statuses wait for the office")
    refusal = _refusal(command)
    if refusal is not None:
        _refuse(connection, command, refusal, at)
        return
    row = connection.execute("SELECT revision FROM inbox WHERE job_id = ?", (command.job_id,)).fetchone()
    if row is not None and row["revision"] >= command.revision:
        _answer_repeat(connection, command, at)
        return
    connection.execute(
        "INSERT INTO inbox (job_id, revision, attempt, kind, received_at) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (job_id) DO UPDATE SET revision = excluded.revision,"
        " attempt = max(attempt, excluded.attempt), kind = excluded.kind, received_at = excluded.received_at",
        (command.job_id, command.revision, command.attempt, command.kind, at.isoformat()),
    )
    entry = newest(connection, command.job_id)
    if command.kind == CommandKind.CANCEL:
        _take_cancel(connection, command, entry, at)
    elif entry is None or command.attempt > entry.attempt:
        _begin(connection, command, at)
    else:
        _refresh(connection, command, entry, at)
    _prune(connection)


def newest(connection: sqlite3.Connection, job_id: str) -> Entry | None:
    """The greatest attempt of a job."""
    row = connection.execute(
        "SELECT * FROM journal WHERE job_id = ? ORDER BY attempt DESC LIMIT 1", (job_id,)
    ).fetchone()
    return None if row is None else entry_of(row)


def cancel(connection: sqlite3.Connection, job_id: str) -> Entry | None:
    """Ask the newest attempt of a job to end, by somebody at the truck; returns it as it was.

    An attempt that has begun is left alone: its answer, too late, is known at once.
    """
    entry = newest(connection, job_id)
    if entry is not None and not entry.ended and not entry.begun:
        _ask(connection, entry, Asked.CANCEL)
    return entry


def _refusal(command: Command) -> OtaError | None:
    missing = sorted(set(command.requires) - FEATURES)
    if missing:
        return Unsupported(f"this agent lacks: {', '.join(missing)}")
    match command.kind:
        case CommandKind.CANCEL:
            return None
        case CommandKind.INSTALL | CommandKind.URL:
            names = [target.component for target in command.targets]
            if not names:
                return BadMessage("the command names no target")
            if len(set(names)) < len(names):
                return BadMessage("the command names a component twice")
            return None
    return Unsupported(f"this agent knows no command of kind {command.kind!r}")


def _refuse(connection: sqlite3.Connection, command: Command, why: OtaError, at: datetime) -> None:
    """Say no, and do nothing else: the word for a job that goes on must not end it."""
    log.warning("inbox.command_refused", job_id=command.job_id, kind=command.kind, why=why.message)
    entry = newest(connection, command.job_id)
    goes_on = entry is not None and entry.attempt >= command.attempt
    report = Report(
        status=status_word(entry.state) if entry is not None and goes_on else TruckStatus.ERROR,
        step=entry.told.step if entry is not None and goes_on and entry.told else Step.RECEIVED,
        targets=entry.told.targets if entry is not None and goes_on and entry.told else None,
        reason=why.message,
        error=error_of(why),
    )
    # A repeat of the refused command must not fill the outbox.
    for row in connection.execute(
        "SELECT body FROM outbox WHERE job_id = ? AND attempt = ?", (command.job_id, command.attempt)
    ):
        waiting = outbox.decode(row["body"])
        if waiting.error is not None and waiting.error.text == error_of(why).text:
            return
    outbox.queue(
        connection, job_id=command.job_id, attempt=command.attempt, report=report, at=at, begins=command
    )


def _answer_repeat(connection: sqlite3.Connection, command: Command, at: datetime) -> None:
    entry = newest(connection, command.job_id)
    if entry is not None and entry.told is not None:
        outbox.tell_again(connection, entry.told, at)


def _insert(
    connection: sqlite3.Connection, command: Command, state: UpdateState, report: Report, at: datetime
) -> None:
    told = outbox.queue(
        connection, job_id=command.job_id, attempt=command.attempt, report=report, at=at, begins=command
    )
    targets = command.targets
    connection.execute(
        "INSERT INTO journal"
        " (job_id, attempt, revision, component, command, state, told, created_at, updated_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            command.job_id,
            command.attempt,
            command.revision,
            targets[0].component if targets else None,
            command.to_json().decode() if targets else None,
            state,
            outbox.encode(told),
            at.isoformat(),
            at.isoformat(),
        ),
    )


def _begin(connection: sqlite3.Connection, command: Command, at: datetime) -> None:
    """A new attempt. What else was under way for its components is to make room for it."""
    components = {target.component for target in command.targets}
    for row in connection.execute(
        "SELECT * FROM journal WHERE state NOT IN ('done', 'error', 'cancelled') AND asked IS NULL"
    ).fetchall():
        other = entry_of(row)
        if components & other.components:
            _ask(connection, other, Asked.REPLACE)
    report = Report(status=TruckStatus.DOWNLOADING, step=Step.RECEIVED)
    _insert(connection, command, UpdateState.RECEIVED, report, at)
    log.info("inbox.job_received", job_id=command.job_id, attempt=command.attempt, revision=command.revision)


def _take_cancel(connection: sqlite3.Connection, command: Command, entry: Entry | None, at: datetime) -> None:
    if entry is None or command.attempt > entry.attempt:
        # The install may still be on its way: the tombstone answers it.
        reason = "cancelled before the truck had the command"
        report = Report(status=TruckStatus.CANCELLED, step=Step.FINISHED, reason=reason)
        tombstone = Command.from_obj({**command.to_obj(), "targets": []})
        _insert(connection, tombstone, UpdateState.CANCELLED, report, at)
        if entry is not None:
            _ask(connection, entry, Asked.CANCEL)
    elif command.attempt < entry.attempt:
        log.info("inbox.cancel_outlived", job_id=command.job_id, attempt=command.attempt)
        _answer_repeat(connection, command, at)
    elif entry.ended:
        _answer_repeat(connection, command, at)
    else:
        _ask(connection, entry, Asked.CANCEL)


def _ask(connection: sqlite3.Connection, entry: Entry, asked: Asked) -> None:
    connection.execute(
        "UPDATE journal SET asked = ? WHERE job_id = ? AND attempt = ? AND state NOT IN"
        " ('done', 'error', 'cancelled')",
        (asked, *entry.key),
    )


def _refresh(connection: sqlite3.Connection, command: Command, entry: Entry, at: datetime) -> None:
    """A greater revision of an attempt that is known: its URL (and times) are fresher, no more."""
    if entry.ended or command.attempt < entry.attempt:
        _answer_repeat(connection, command, at)
        return
    if _named(entry.targets) != _named(command.targets):
        # Another firmware needs another attempt; what is under way may have erased something.
        log.error("inbox.target_changed", job_id=command.job_id, attempt=command.attempt)
        _answer_repeat(connection, command, at)
        return
    connection.execute(
        "UPDATE journal SET command = ?, revision = ? WHERE job_id = ? AND attempt = ?",
        (command.to_json().decode(), command.revision, *entry.key),
    )
    _answer_repeat(connection, command, at)


def _named(targets: Sequence[CommandTarget]) -> list[tuple[str, str, str, str]]:
    """What a command names, apart from where to fetch it."""
    return [(one.component, one.version, one.sha256, one.document) for one in targets]


def _prune(connection: sqlite3.Connection) -> None:
    """Forget the oldest of many ended attempts, and the inbox rows of jobs that have none left."""
    connection.execute(
        "DELETE FROM journal WHERE state IN ('done', 'error', 'cancelled') AND place <="
        " (SELECT max(place) FROM journal) - ?",
        (MOST_ENDED,),
    )
    connection.execute("DELETE FROM inbox WHERE job_id NOT IN (SELECT job_id FROM journal)")
