"""The agent's memory: inbox, journal and outbox in one SQLite file.

Promises: what a method wrote before it returned survives a power cut. A state and the status that
tells it are written together or not at all. A status is kept until the office has it; progress and
samples alone wait in memory for some seconds, for each write wears the gateway's flash. A damaged
database is set aside and a new one begun, with a new `store_id`, so that the office can tell.
Every method may raise StoreFailed.
"""

from __future__ import annotations

import asyncio
import dataclasses
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from edge_agent.errors import StoreFailed
from edge_agent.store import inbox, outbox, queue_bounds, samples
from edge_agent.store.journal import Change, Entry, Report
from edge_agent.store.pending import Pending, Progress
from edge_agent.store.queue_bounds import QueueLimits
from edge_agent.store.rows import entry_of, save
from edge_agent.store.sqlite import SqliteFile
from shared.ids import new_id
from shared.logs import get_log
from shared.messages import MOST_STATUSES, Command, Rejected, Sample, Status
from shared.since_310 import UTC

log = get_log("edge_agent.store")

T = TypeVar("T")

MOST_BATCH_BYTES = 96 * 1024
"""Statuses of one message together, well below shared.wire.MAX_MESSAGE_BYTES."""
_LIVE = "state NOT IN ('done', 'error', 'cancelled')"


DEFAULT_LIMITS = QueueLimits()


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Store:
    """Open it with `async with Store.open(path) as store`.

    `changed` is set when a command changed something for the updater, `outbox_wake` when a status was
    queued; who waits on one clears it. `was_replaced`: the old database was damaged.
    """

    def __init__(
        self,
        file: SqliteFile,
        store_id: str,
        now: Callable[[], datetime],
        limits: QueueLimits = DEFAULT_LIMITS,
    ) -> None:
        self._file = file
        self._now = now
        self._limits = limits
        self._pending = Pending()
        self._something_pending = asyncio.Event()
        self.store_id = store_id
        self.was_replaced = file.was_replaced
        self.changed = asyncio.Event()
        self.outbox_wake = asyncio.Event()

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        path: Path,
        *,
        now: Callable[[], datetime] = _utc_now,
        read_only: bool = False,
        limits: QueueLimits = DEFAULT_LIMITS,
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
            store = cls(file, store_id, now, limits)
            if store.was_replaced:
                log.error("store.was_replaced", store_id=store_id)
            if read_only:
                yield store
            else:
                async with store._writing():
                    yield store
        finally:
            await file.close()

    @asynccontextmanager
    async def _writing(self) -> AsyncIterator[None]:
        def act(db: sqlite3.Connection) -> int:
            queue_bounds.begin(db, self._limits)
            return samples.trim(db)

        dropped = await self._file.write(act)
        if dropped:
            log.warning("telemetry.dropped", samples=dropped, why="the bound was lowered")
        task = asyncio.create_task(self._write_pending(), name="store.pending")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})
            with suppress(StoreFailed):
                await self.flush()

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

    # --- progress and samples: in memory first -----------------------------------------------

    def telemetry(self, *measured: Sample) -> None:
        """Queue samples, the oldest first; from the event loop's thread. Never waits, never fails: they
        are written within `write_every_s`, and the oldest go first where there is no room.
        """
        self._pending.put_samples(measured)
        self._something_pending.set()

    async def next_samples(self, *, most_bytes: int = MOST_BATCH_BYTES) -> samples.Waiting | None:
        """The oldest samples that fit into one message; None when none was written that is not sent."""
        return await self._file.read(lambda db: samples.page(db, most_bytes))

    async def samples_sent(self, upto: int) -> None:
        """Forget what the broker has: `upto` of what `next_samples` gave."""
        await self._file.write(lambda db: samples.sent(db, upto))

    async def flush(self) -> None:
        """Write what waits in memory, in one transaction. Raises StoreFailed: it waits on."""
        if not self._pending:
            return
        progress, measured = self._pending.take(), self._pending.take_samples()

        def act(db: sqlite3.Connection) -> int:
            for one in progress:
                _tell(db, one)
            return samples.keep(db, measured) if measured else 0

        try:
            dropped = await self._file.write(act)
        except StoreFailed:
            self._pending.put_back(progress, measured)
            raise
        self.outbox_wake.set()
        dropped, self._pending.dropped = dropped + self._pending.dropped, 0
        if dropped:
            log.info("telemetry.dropped", samples=dropped, why="the oldest, for there is no room")

    async def flush_attempt(self, job_id: str, attempt: int) -> None:
        """Write the progress of one attempt now: something is about to be decided by what was told."""
        progress = self._pending.take({(job_id, attempt)})
        if progress:
            await self._write_after(progress, lambda _: None)

    async def _write_pending(self) -> None:
        while True:
            await self._something_pending.wait()
            self._something_pending.clear()
            try:
                await self.flush()
            except StoreFailed as error:
                log.warning("store.pending_not_written", why=error.message)
                self._something_pending.set()
            await asyncio.sleep(self._limits.write_every_s)

    async def _write_after(self, progress: list[Progress], act: Callable[[sqlite3.Connection], T]) -> T:
        """Run `act` after these progress reports, in one transaction: a step never overtakes them."""

        def both(db: sqlite3.Connection) -> T:
            for one in progress:
                _tell(db, one)
            return act(db)

        try:
            result = await self._file.write(both)
        except StoreFailed:
            self._pending.put_back(progress)
            raise
        if progress:
            self.outbox_wake.set()
        return result

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

    async def newest(self, job_id: str) -> Entry | None:
        """The greatest attempt of a job as it is now."""
        return await self._file.read(lambda db: inbox.newest(db, job_id))

    async def cancel(self, job_id: str) -> Entry | None:
        """Leave a cancel in a job's newest attempt, as the office's would; not once an ECU may be touched.

        Returns the attempt as it was before.
        """
        entry = await self._file.write(lambda db: inbox.cancel(db, job_id))
        self.changed.set()
        return entry

    async def record(self, *changes: Change) -> tuple[Entry, ...]:
        """Write entries and the statuses that tell them, in one transaction; returns them as they are.

        What the office wrote into a row meanwhile (a fresher command, another wish) is kept.
        """
        at = self._now()

        def act(db: sqlite3.Connection) -> tuple[Entry, ...]:
            return tuple(_record(db, change, at) for change in changes)

        earlier = self._pending.take({change.entry.key for change in changes})
        written = await self._write_after(earlier, act)
        if any(change.report is not None for change in changes):
            self.outbox_wake.set()
        return written

    async def tell(self, job_id: str, attempt: int, report: Report) -> None:
        """Queue a status of an attempt whose state stays as it is. A thin one waits in memory first."""
        told = Progress(job_id=job_id, attempt=attempt, report=report, at=self._now())
        if report.thin:
            self._pending.put(told)
            self._something_pending.set()
            return
        earlier = self._pending.take({(job_id, attempt)})
        await self._write_after(earlier, lambda db: _tell(db, told))
        self.outbox_wake.set()


def _tell(db: sqlite3.Connection, one: Progress) -> None:
    told = outbox.queue(db, job_id=one.job_id, attempt=one.attempt, report=one.report, at=one.at)
    db.execute(
        "UPDATE journal SET told = ? WHERE job_id = ? AND attempt = ?",
        (outbox.encode(told), one.job_id, one.attempt),
    )


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
