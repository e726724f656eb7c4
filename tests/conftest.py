"""What tests of several rooms share: a real PostgreSQL a test process, a fresh database a test."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
import structlog
from hypothesis import settings

from control_plane.db import Database
from control_plane.embedded.postgres import EmbeddedPostgres
from control_plane.migrate import migrate

# No test is about wall-clock time: on a busy machine any example may take long.
settings.register_profile("quarry", deadline=None)
settings.load_profile("quarry")

# What simulated parts log beside a command that runs in the test's own process is none of its output;
# pytest keeps it and shows it when the test fails.
structlog.configure(logger_factory=structlog.stdlib.LoggerFactory())


@pytest.fixture(autouse=True)
def _logs_as_before() -> Iterator[None]:
    """A command that runs in this process sets its logs up, to a stream that ends with the test."""
    root = logging.getLogger()
    handlers, level, configured = root.handlers[:], root.level, structlog.get_config()
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.configure(**configured)


# Every row goes, sequences begin anew; foreign keys and triggers are off meanwhile.
_EMPTY = """
DO $$
DECLARE name text;
BEGIN
    SET LOCAL session_replication_role = replica;
    FOR name IN SELECT c.oid::regclass::text FROM pg_class c
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
          AND NOT c.relispartition AND c.relname <> 'schema_migrations'
    LOOP
        EXECUTE 'DELETE FROM ' || name;
    END LOOP;
    PERFORM setval(c.oid::regclass, 1, false) FROM pg_class c
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'S';
END $$
"""


class _Databases:
    """Databases on a server for one test at a time.

    Migrated ones are emptied and used again, which takes a tenth of the time of a new one; so a test
    that changes the schema takes `empty_dsn`.
    """

    def __init__(self, server: EmbeddedPostgres, loop: asyncio.AbstractEventLoop) -> None:
        self._server = server
        self._loop = loop
        self._admin = self._connect("postgres")
        self._free: list[str] = []
        self._insiders: dict[str, asyncpg.Connection] = {}

    def _connect(self, name: str) -> asyncpg.Connection:
        connection: asyncpg.Connection = self._run(asyncpg.connect(self.dsn(name), timeout=10))
        return connection

    def _run(self, act: Coroutine[Any, Any, Any]) -> Any:
        return self._loop.run_until_complete(act)

    def dsn(self, name: str) -> str:
        return urlsplit(self._server.dsn)._replace(path=f"/{name}").geturl()

    def new(self) -> str:
        name = f"test_{secrets.token_hex(6)}"
        self._run(self._admin.execute(f"CREATE DATABASE {name} STRATEGY FILE_COPY"))
        return name

    def drop(self, name: str) -> None:
        self._run(self._admin.execute(f"DROP DATABASE {name} WITH (FORCE)"))

    def take_migrated(self) -> str:
        if self._free:
            return self._free.pop()
        name = self.new()
        self._run(migrate(self.dsn(name)))
        self._insiders[name] = self._connect(name)
        return name

    def give_back(self, name: str) -> None:
        """Whatever the test left connected is cut off first."""
        insider = self._insiders[name]
        self._run(
            insider.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )
        self._run(insider.execute(_EMPTY))
        self._free.append(name)

    def close(self) -> None:
        for connection in (*self._insiders.values(), self._admin):
            self._run(connection.close(timeout=5))


@pytest.fixture(scope="session")
def _server_loop() -> Iterator[asyncio.AbstractEventLoop]:
    # A loop of its own, never made the current one: the server outlives every test's loop.
    loop = asyncio.new_event_loop()
    yield loop
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


@pytest.fixture(scope="session")
def postgres(
    tmp_path_factory: pytest.TempPathFactory, _server_loop: asyncio.AbstractEventLoop
) -> Iterator[EmbeddedPostgres]:
    """A running server, one a test process. Fixtures run in the main thread, from which it must start."""
    server = EmbeddedPostgres(tmp_path_factory.mktemp("postgres"), fast_and_volatile=True)
    _server_loop.run_until_complete(server.__aenter__())
    yield server
    _server_loop.run_until_complete(server.__aexit__())


@pytest.fixture(scope="session")
def _databases(postgres: EmbeddedPostgres, _server_loop: asyncio.AbstractEventLoop) -> Iterator[_Databases]:
    databases = _Databases(postgres, _server_loop)
    yield databases
    databases.close()


@pytest.fixture
def empty_dsn(_databases: _Databases) -> Iterator[str]:
    """The address of a fresh database without any table."""
    name = _databases.new()
    yield _databases.dsn(name)
    _databases.drop(name)


@pytest.fixture
def database_dsn(_databases: _Databases) -> Iterator[str]:
    """The address of an empty migrated database of the test's own."""
    name = _databases.take_migrated()
    yield _databases.dsn(name)
    _databases.give_back(name)


@pytest.fixture
async def database(database_dsn: str) -> AsyncIterator[Database]:
    """A connected Database on an empty migrated database of the test's own."""
    async with Database(database_dsn, name="test") as db:
        yield db
