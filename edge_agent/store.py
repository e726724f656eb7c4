"""The agent's memory: inbox, journal and outbox in one SQLite file.

Promises: what a method wrote before it returned survives a power cut. A state and the status that
tells it are written together or not at all. A status is kept until the office has it. A damaged
database is set aside and a new one begun, with a new `store_id`, so that the office can tell.
Every method may raise StoreFailed.
"""

from __future__ import annotations

import asyncio
import dataclasses
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

from edge_agent import inbox, outbox
from edge_agent.journal import Change, Entry, Report
from edge_agent.rows import entry_of, save
from edge_agent.sqlite import SqliteFile
from shared.ids import new_id
from shared.logs import get_log
from shared.messages import MOST_STATUSES, Command, Rejected, Status

log = get_log("edge_agent.store")

MOST_BATCH_BYTES = 96 * 1024
"""Statuses of one message together, well below shared.wire.MAX_MESSAGE_BYTES."""
_LIVE = "state NOT IN ('done', 'error', 'cancelled')"


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Store:
    """Open it with `async with Store.open(path) as store`.

    `changed` is set when a command changed something for the updater, `outbox_wake` when a status was
    queued; who waits on one clears it. `was_replaced`: the old database was damaged.
    """

    def __init__(self, file: SqliteFile, store_id: str, now: Callable[[], datetime]) -> None:
        self._file = file
        self._now = now
        self.store_id = store_id
        self.was_replaced = file.was_replaced
        self.changed = asyncio.Event()
        self.outbox_wake = asyncio.Event()

    @classmethod
    @asynccontextmanager
    async def open(
        cls, path: Path, *, now: Callable[[], datetime] = _utc_now, read_only: bool = False
    ) -> AsyncIterator[Store]:
        """The agent opens it to write, alone (StoreBusy); others may look at it meanwhile, `read_only`.

        Raises StoreFailed, StoreBusy or, when there is nothing to look at, StoreMissing.
        """
        file = SqliteFile(path, read_only=read_only)
        await file.open()
        try:
            at = now().isoformat()
            store_id = await (
                file.read(_store_id) if read_only else file.write(lambda db: _make_store_id(db, at))
            )
            store = cls(file, store_id, now)
            if store.was_replaced:
                log.error("store.was_replaced", store_id=store_id)
            yield store
        finally:
            await file.close()

    # --- commands -----------------------------------------------------------------------------

    async def take_command(self, command: Command) -> None:
        """Keep what a command changes, in one transaction; only then may the broker forget it.

        A repeat or an older revision queues a status that tells the present state; an unknown
        requirement or kind is refused by a status and does nothing else; a cancel before its
        install leaves a tombstone. Raises OutboxFull: the office sends the command again.
        """
        at = self._now()
        await self._file.write(lambda db: inbox.take(db, command, at))
        self.changed.set()
        self.outbox_wake.set()

    # --- statuses -----------------------------------------------------------------------------

    async def next_statuses(
        self, limit: int = MOST_STATUSES, *, most_bytes: int = MOST_BATCH_BYTES
    ) -> list[Status]:
        """The oldest statuses, ascending by seq, that fit into one message; at least one if any waits."""
        return await self._file.read(lambda db: outbox.page(db, min(limit, MOST_STATUSES), most_bytes))

    async def acked(self, accepted: Sequence[str], rejected: Sequence[Rejected] = ()) -> None:
        """Delete what the office has in its database, and what it will never take."""
        refused = await self._file.write(lambda db: outbox.drop(db, accepted, rejected))
        for one, status in refused:
            log.error(
                "store.status_rejected",
                job_id=status.job_id,
                message_id=one.message_id,
                status=status.status,
                step=status.step,
                reason=one.reason,
            )

    async def pending_statuses(self) -> int:
        """How many statuses wait for their ack."""
        return await self._file.read(outbox.count)

    # --- what is known ------------------------------------------------------------------------

    async def revisions(self) -> dict[str, int]:
        """The greatest revision known of each live job, for `hello`."""

        def act(db: sqlite3.Connection) -> dict[str, int]:
            rows = db.execute(
                "SELECT job_id, revision FROM inbox WHERE job_id IN"
                f" (SELECT job_id FROM journal WHERE {_LIVE})"
            )
            return {row["job_id"]: row["revision"] for row in rows}

        return await self._file.read(act)

    async def next_manifest_seq(self) -> int:
        """A number that grows with each manifest of this store."""

        def act(db: sqlite3.Connection) -> int:
            db.execute("UPDATE about SET manifest_seq = manifest_seq + 1")
            [(seq,)] = db.execute("SELECT manifest_seq FROM about").fetchall()
            return int(seq)

        return await self._file.write(act)

    async def jobs(self, limit: int = 50) -> list[Entry]:
        """The newest attempts, live or ended, the newest first; for people."""

        def act(db: sqlite3.Connection) -> list[Entry]:
            return [
                entry_of(row)
                for row in db.execute("SELECT * FROM journal ORDER BY place DESC LIMIT ?", (limit,))
            ]

        return await self._file.read(act)

    # --- the journal: only the updater writes it ----------------------------------------------

    async def live(self) -> list[Entry]:
        """Attempts that have not ended, in the order of their arrival."""

        def act(db: sqlite3.Connection) -> list[Entry]:
            return [
                entry_of(row) for row in db.execute(f"SELECT * FROM journal WHERE {_LIVE} ORDER BY place")
            ]

        return await self._file.read(act)

    async def entry(self, job_id: str, attempt: int) -> Entry | None:
        """One attempt as it is now."""

        def act(db: sqlite3.Connection) -> Entry | None:
            row = db.execute(
                "SELECT * FROM journal WHERE job_id = ? AND attempt = ?", (job_id, attempt)
            ).fetchone()
            return None if row is None else entry_of(row)

        return await self._file.read(act)

    async def record(self, *changes: Change) -> tuple[Entry, ...]:
        """Write entries and the statuses that tell them, in one transaction; returns them as they are.

        What the office wrote into a row meanwhile (a fresher command, another wish) is kept.
        """
        at = self._now()

        def act(db: sqlite3.Connection) -> tuple[Entry, ...]:
            return tuple(_record(db, change, at) for change in changes)

        written = await self._file.write(act)
        if any(change.report is not None for change in changes):
            self.outbox_wake.set()
        return written

    async def tell(self, job_id: str, attempt: int, report: Report) -> None:
        """Queue a status of an attempt whose state stays as it is."""
        at = self._now()

        def act(db: sqlite3.Connection) -> None:
            told = outbox.queue(db, job_id=job_id, attempt=attempt, report=report, at=at)
            db.execute(
                "UPDATE journal SET told = ? WHERE job_id = ? AND attempt = ?",
                (outbox.encode(told), job_id, attempt),
            )

        await self._file.write(act)
        self.outbox_wake.set()


def _record(db: sqlite3.Connection, change: Change, at: datetime) -> Entry:
    entry = change.entry
    if change.report is not None:
        told = outbox.queue(db, job_id=entry.job_id, attempt=entry.attempt, report=change.report, at=at)
        entry = dataclasses.replace(entry, told=told)
    if change.answers:
        db.execute(
            "UPDATE journal SET asked = NULL WHERE job_id = ? AND attempt = ? AND asked = ?",
            (*entry.key, entry.asked),
        )
    save(db, entry, at)
    row = db.execute("SELECT * FROM journal WHERE job_id = ? AND attempt = ?", entry.key).fetchone()
    return entry_of(row)


def _store_id(db: sqlite3.Connection) -> str:
    [(store_id,)] = db.execute("SELECT store_id FROM about").fetchall()
    return str(store_id)


def _make_store_id(db: sqlite3.Connection, at: str) -> str:
    db.execute(
        "INSERT INTO about (only_row, store_id, created_at) VALUES (1, ?, ?) ON CONFLICT DO NOTHING",
        (new_id(), at),
    )
    return _store_id(db)
