"""Migrations against a real server: twice, changed, from the future, two processes at once."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from control_plane.db import Database
from control_plane.migrate import MigrationError, known_migrations, migrate


async def _one(dsn: str, sql: str, *args: object) -> object:
    connection = await asyncpg.connect(dsn, timeout=10)
    try:
        return await connection.fetchval(sql, *args)
    finally:
        await connection.close(timeout=5)


async def test_all_run_once_and_are_recorded_with_their_hash(empty_dsn: str) -> None:
    known = known_migrations()
    assert await migrate(empty_dsn) == [m.name for m in known]
    assert await migrate(empty_dsn) == []
    for one in known:
        sha256 = await _one(empty_dsn, "SELECT sha256 FROM schema_migrations WHERE name = $1", one.name)
        assert sha256 == one.sha256
    assert await _one(empty_dsn, "SELECT to_regclass('devices') IS NOT NULL")


async def test_two_processes_at_once_migrate_once(empty_dsn: str) -> None:
    # Another holder of the lock makes sure that both really wait before either runs.
    blocker = await asyncpg.connect(empty_dsn, timeout=10)
    await blocker.execute("SELECT pg_advisory_lock($1)", 0x51554152)
    both = [asyncio.create_task(migrate(empty_dsn)) for _ in range(2)]
    try:
        async with asyncio.timeout(20):
            while (
                await blocker.fetchval(
                    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
                    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
                )
                != 2
            ):
                await asyncio.sleep(0.01)
        assert not await blocker.fetchval("SELECT to_regclass('devices') IS NOT NULL")
    finally:
        await blocker.close(timeout=5)
    ran = await asyncio.gather(*both)
    assert sorted(ran, key=len) == [[], [m.name for m in known_migrations()]]


async def test_a_file_that_changed_after_it_had_run_is_refused(empty_dsn: str) -> None:
    await migrate(empty_dsn)
    name = known_migrations()[0].name
    await _one(empty_dsn, "UPDATE schema_migrations SET sha256 = 'of other text' WHERE name = $1", name)
    with pytest.raises(MigrationError, match=name):
        await migrate(empty_dsn)


async def test_the_database_of_a_newer_program_is_refused_untouched(empty_dsn: str) -> None:
    await migrate(empty_dsn)
    await _one(
        empty_dsn,
        "INSERT INTO schema_migrations (name, sha256) VALUES ('9999_future.before.sql', 'x') RETURNING 1",
    )
    await _one(empty_dsn, "DELETE FROM schema_migrations WHERE name = $1", known_migrations()[0].name)
    with pytest.raises(MigrationError, match="9999_future"):
        await migrate(empty_dsn)
    assert await _one(empty_dsn, "SELECT count(*) FROM schema_migrations") == len(known_migrations())


async def test_a_failing_file_leaves_nothing_of_itself(empty_dsn: str) -> None:
    # A table in its way makes the first file fail somewhere in its middle.
    await _one(empty_dsn, "CREATE TABLE dead_letters (x int)")
    with pytest.raises(asyncpg.DuplicateTableError):
        await migrate(empty_dsn)
    assert not await _one(empty_dsn, "SELECT to_regclass('devices') IS NOT NULL")
    assert await _one(empty_dsn, "SELECT count(*) FROM schema_migrations") == 0
    await _one(empty_dsn, "DROP TABLE dead_letters")
    assert await migrate(empty_dsn) == [m.name for m in known_migrations()]


async def test_each_test_gets_a_fresh_migrated_database(database: Database) -> None:
    assert (await database.fetch("SELECT count(*) AS n FROM devices"))[0]["n"] == 0
