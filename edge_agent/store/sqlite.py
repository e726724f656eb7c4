"""One SQLite file: one connection in one owned thread, durable, locked against a second agent.

WAL with synchronous=FULL: a commit that returned survives a power cut, which a flash journal needs
(NORMAL may lose the last commits: sqlite.org/pragma.html#pragma_synchronous). A damaged file is
set aside, never deleted and never repaired in place.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import TypeVar

from edge_agent.errors import StoreBusy, StoreFailed, StoreMissing
from shared.logs import get_log
from shared.since_310 import UTC

log = get_log("edge_agent.sqlite")

T = TypeVar("T")
BUSY_TIMEOUT_S = 5.0
MOST_SET_ASIDE = 3
"""Damaged databases that are kept for people to look at; older ones go."""
_DAMAGED = {11, 26}
"""SQLITE_CORRUPT and SQLITE_NOTADB (sqlite.org/rescode.html)."""
_DAMAGED_WORDS = ("malformed", "is not a database")
"""What SQLite says with them: "database disk image is malformed", "malformed database schema", ..."""


class _CheckFailed(sqlite3.DatabaseError):
    """SQLite's own check of the file found something."""


def is_damage(error: sqlite3.Error) -> bool:
    """Whether SQLite says that the file itself is bad, not the disk full or the moment wrong."""
    if isinstance(error, _CheckFailed):
        return True
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        # Python 3.10 passes SQLite's words on, without its code.
        return any(word in str(error) for word in _DAMAGED_WORDS)
    # The low byte is the primary result code.
    return (code & 0xFF) in _DAMAGED


def load_migrations() -> list[str]:
    """The numbered blocks of schema.sql, from the first. Raises ValueError when a number is missing."""
    text = (resources.files("edge_agent.store") / "schema.sql").read_text(encoding="utf-8")
    parts = re.split(r"^-- migration: (\d+)[ \t]*$", text, flags=re.MULTILINE)
    numbers = [int(number) for number in parts[1::2]]
    if numbers != list(range(1, len(numbers) + 1)):
        raise ValueError(f"schema.sql: migrations are numbered {numbers}")
    return parts[2::2]


class SqliteFile:
    """Runs functions on the connection, one at a time, off the event loop.

    `was_replaced` says that a damaged file was set aside and this one begun anew.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self._path = path
        self._read_only = read_only
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="edge-store")
        self._connection: sqlite3.Connection | None = None
        self._lock_fd: int | None = None
        self._closed = False
        self.was_replaced = False

    async def open(self) -> None:
        """Raises StoreBusy, StoreMissing (read only) or StoreFailed."""
        try:
            await self._in_thread(self._open)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Waits for the function that is running; safe to call again."""
        if self._closed:
            return
        self._closed = True
        await self._in_thread(self._close)
        self._thread.shutdown(wait=False)

    async def write(self, act: Callable[[sqlite3.Connection], T]) -> T:
        """Run `act` in a transaction of its own; when this returns, it is on the disk.

        When the caller is cancelled meanwhile, the transaction happens whole or not at all.
        Raises StoreFailed.
        """
        return await self._in_thread(lambda: self._transact(act, "BEGIN IMMEDIATE"))

    async def read(self, act: Callable[[sqlite3.Connection], T]) -> T:
        """Run `act` on one snapshot. Raises StoreFailed."""
        return await self._in_thread(lambda: self._transact(act, "BEGIN"))

    async def _in_thread(self, act: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, act)

    def _transact(self, act: Callable[[sqlite3.Connection], T], begin: str) -> T:
        connection = self._connection
        if connection is None:
            raise StoreFailed("the database is closed")
        try:
            connection.execute(begin)
            try:
                result = act(connection)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise StoreFailed(f"{self._path.name}: {error}") from error
        return result

    def _open(self) -> None:
        if self._read_only:
            if not self._path.exists():
                raise StoreMissing(f"there is no database at {self._path}")
            try:
                self._connection = self._connect()
            except sqlite3.Error as error:
                raise StoreFailed(f"{self._path.name} can't be read: {error}") from error
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._take_lock()
            try:
                self._connection = self._prepare()
            except sqlite3.DatabaseError as error:
                if not is_damage(error):
                    raise
                self._set_aside(str(error))
                self._connection = self._prepare()
        except (sqlite3.Error, OSError) as error:
            raise StoreFailed(f"{self._path.name} can't be opened: {error}") from error

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def _take_lock(self) -> None:
        # The kernel frees the lock with the process, so that a killed agent leaves none behind.
        self._lock_fd = os.open(
            self._path.with_name(self._path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreBusy(f"another agent runs on {self._path}") from error

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{self._path.absolute().as_uri()}?mode={'ro' if self._read_only else 'rwc'}",
            uri=True,
            timeout=BUSY_TIMEOUT_S,
            isolation_level=None,
        )
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA foreign_keys = ON")
        return connection

    def _prepare(self) -> sqlite3.Connection:
        connection = self._connect()
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA journal_size_limit = 4194304")
            self._path.chmod(0o600)
            _check(connection)
            _migrate(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _set_aside(self, why: str) -> None:
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
        for tail in ("", "-wal", "-shm"):
            old = self._path.with_name(self._path.name + tail)
            if old.exists():
                old.rename(self._path.with_name(f"{self._path.name}.damaged-{stamp}{tail}"))
        folder_fd = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder_fd)
        finally:
            os.close(folder_fd)
        kept = sorted({p.name.removesuffix("-wal").removesuffix("-shm") for p in self._aside()})
        for name in kept[:-MOST_SET_ASIDE]:
            for tail in ("", "-wal", "-shm"):
                self._path.with_name(name + tail).unlink(missing_ok=True)
        self.was_replaced = True
        log.error("store.set_aside", path=str(self._path), why=why)

    def _aside(self) -> list[Path]:
        return list(self._path.parent.glob(f"{self._path.name}.damaged-*"))


def _check(connection: sqlite3.Connection) -> None:
    """Raise the error of a damaged file when SQLite finds one; the agent's files are small."""
    [(word,)] = connection.execute("PRAGMA quick_check(1)").fetchall()
    if word != "ok":
        raise _CheckFailed(f"quick_check: {word}")


def _migrate(connection: sqlite3.Connection) -> None:
    [(version,)] = connection.execute("PRAGMA user_version").fetchall()
    migrations = load_migrations()
    if version > len(migrations):
        # A newer agent was here and only added; its version number must stay, or it would add twice.
        log.warning("store.is_newer", version=version, known=len(migrations))
    for number, body in enumerate(migrations[version:], start=version + 1):
        connection.executescript(f"BEGIN IMMEDIATE; {body}; PRAGMA user_version = {number}; COMMIT;")
