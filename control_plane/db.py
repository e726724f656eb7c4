"""PostgreSQL: one bounded pool, scoped transactions with time-outs, named SQL blocks.

A service opens a transaction, nobody else, and makes no network call inside it. Statements have a
time-out, idle transactions are ended by the server, and a deadlock or serialisation failure
repeats the whole transaction function a bounded number of times.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib import resources
from typing import Any, Self, TypeAlias, TypeVar

import asyncpg

from control_plane.errors import Unavailable

T = TypeVar("T")
Connection: TypeAlias = "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"
"""What a service hands to its store: a connection inside a transaction."""

STATEMENT_TIMEOUT_MS = 10_000
IDLE_IN_TRANSACTION_TIMEOUT_MS = 15_000
LOCK_TIMEOUT_MS = 5_000
ACQUIRE_TIMEOUT_S = 10.0
MOST_REPEATS = 5


def is_data_error(error: BaseException) -> bool:
    """Whether the database (or its driver) refuses the values themselves, so that no repeat helps."""
    # The driver's own refusal (a number too large for its column) is an InterfaceError, which else
    # means a lost connection; only the former is a ValueError too.
    return isinstance(
        error, (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, UnicodeError)
    ) or (isinstance(error, asyncpg.InterfaceError) and isinstance(error, ValueError))


def load_queries(package: str, name: str = "queries.sql") -> dict[str, str]:
    """The named blocks of a room's SQL file: a line `-- name: insert_job`, then the statement.

    Raises ValueError when a name stands twice or a block is empty.
    """
    text = (resources.files(package) / name).read_text(encoding="utf-8")
    blocks: dict[str, str] = {}
    parts = re.split(r"^-- name: (\w+)[ \t]*$", text, flags=re.MULTILINE)
    for key, body in zip(parts[1::2], parts[2::2], strict=True):
        if key in blocks or not body.strip():
            raise ValueError(f"{package}/{name}: block {key} stands twice or is empty")
        blocks[key] = body.strip()
    return blocks


class Database:
    """A bounded pool of connections to one PostgreSQL database; an async context manager."""

    def __init__(self, dsn: str, *, most_connections: int = 10, name: str = "quarry") -> None:
        self._dsn = dsn
        self._most = most_connections
        self._name = name
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None

    async def __aenter__(self) -> Self:
        self._pool = await asyncpg.create_pool(
            self._dsn,
            min_size=1,
            max_size=self._most,
            command_timeout=STATEMENT_TIMEOUT_MS / 1000 + 5,
            server_settings={
                "application_name": self._name,
                "statement_timeout": str(STATEMENT_TIMEOUT_MS),
                "idle_in_transaction_session_timeout": str(IDLE_IN_TRANSACTION_TIMEOUT_MS),
                "lock_timeout": str(LOCK_TIMEOUT_MS),
                "timezone": "UTC",
            },
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._pool is not None:
            try:
                await asyncio.wait_for(self._pool.close(), timeout=5)
            except TimeoutError:
                self._pool.terminate()
            self._pool = None

    @property
    def dsn(self) -> str:
        """Where this database is; for a LISTEN connection of its own."""
        return self._dsn

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """One connection in one transaction: committed at the end, rolled back on any exception.

        Raises Unavailable when the pool gives no connection in time, the server is away, or a
        statement or lock ran into its time-out.
        """
        if self._pool is None:
            raise Unavailable("the database is not open")
        try:
            connection = await self._pool.acquire(timeout=ACQUIRE_TIMEOUT_S)
        except (TimeoutError, OSError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError) as error:
            raise Unavailable("no database connection could be had in time") from error
        try:
            async with connection.transaction():
                yield connection
        except (
            OSError,
            asyncpg.PostgresConnectionError,
            asyncpg.InterfaceError,
            asyncpg.OperatorInterventionError,
            asyncpg.InsufficientResourcesError,
            asyncpg.LockNotAvailableError,
        ) as error:
            if is_data_error(error):
                raise
            raise Unavailable(f"the database went away or is too slow: {error}") from error
        finally:
            await self._pool.release(connection, timeout=5)

    async def run(self, act: Callable[[Connection], Awaitable[T]]) -> T:
        """Run `act` in a transaction; again from its start on deadlock (40P01) or 40001.

        `act` must have no effect outside the transaction. The last failure is raised.
        """
        for repeat in range(MOST_REPEATS):
            try:
                async with self.transaction() as connection:
                    return await act(connection)
            except (asyncpg.DeadlockDetectedError, asyncpg.SerializationError):
                if repeat == MOST_REPEATS - 1:
                    raise
                await asyncio.sleep(random.uniform(0.005, 0.02) * 2**repeat)
        raise AssertionError("unreachable: the last repeat returns or raises")

    async def fetch(self, sql: str, *args: Any) -> list[asyncpg.Record]:
        """Rows of one statement in a transaction of its own."""
        async with self.transaction() as connection:
            rows: list[asyncpg.Record] = await connection.fetch(sql, *args)
            return rows
