"""The real PostgreSQL of the data folder: keeps data, keeps to itself, is never left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from control_plane.embedded import child
from control_plane.embedded.child import ServerFailed
from control_plane.embedded.postgres import EmbeddedPostgres

CHECKOUT = Path(__file__).resolve().parents[3]


async def _run(dsn: str, sql: str) -> object:
    connection = await asyncpg.connect(dsn, timeout=10)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close(timeout=5)


@pytest.mark.parametrize("killed", [False, True], ids=["stopped", "killed"])
async def test_what_was_committed_is_there_after_a_restart(tmp_path: Path, killed: bool) -> None:
    folder = tmp_path / "pg"
    async with EmbeddedPostgres(folder) as server:
        await _run(server.dsn, "CREATE TABLE kept AS SELECT 17 AS n")
        password = (folder / "password").read_bytes()
        if killed:
            os.kill(server.pid, signal.SIGKILL)
    async with EmbeddedPostgres(folder) as server:
        assert await _run(server.dsn, "SELECT n FROM kept") == 17
        assert (folder / "password").read_bytes() == password
        assert await _run(server.dsn, "SHOW fsync") == "on"
        assert await _run(server.dsn, "SHOW full_page_writes") == "on"


async def test_a_first_start_that_was_interrupted_is_made_afresh(tmp_path: Path) -> None:
    folder = tmp_path / "pg"
    (folder / "data" / "base").mkdir(parents=True)
    (folder / "data" / "PG_VERSION").write_text("18\n")
    (folder / "password").touch(mode=0o600)
    (folder / "password").write_text("half")
    async with EmbeddedPostgres(folder, fast_and_volatile=True) as server:
        assert await _run(server.dsn, "SELECT 1") == 1
        assert stat.S_IMODE((folder / "password").stat().st_mode) & 0o077 == 0


async def test_nobody_gets_in_without_the_password(tmp_path: Path) -> None:
    folder = tmp_path / "pg"
    async with EmbeddedPostgres(folder, fast_and_volatile=True) as server:
        parts = urlsplit(server.dsn)
        assert parts.hostname == "127.0.0.1"
        for netloc in (f"postgres@127.0.0.1:{parts.port}", f"postgres:wrong@127.0.0.1:{parts.port}"):
            with pytest.raises((asyncpg.InvalidPasswordError, asyncpg.InterfaceError)):
                await _run(parts._replace(netloc=netloc).geturl(), "SELECT 1")
        assert await _run(server.dsn, "SHOW listen_addresses") == "127.0.0.1"
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE((folder / "data").stat().st_mode) == 0o700
        assert stat.S_IMODE((folder / "password").stat().st_mode) == 0o600


async def test_a_folder_that_is_used_by_another_server_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "pg"
    async with EmbeddedPostgres(folder, fast_and_volatile=True) as server:
        with pytest.raises(ServerFailed, match="lock file"):
            async with EmbeddedPostgres(folder, fast_and_volatile=True):
                pass
        assert await _run(server.dsn, "SELECT 1") == 1


async def test_servers_start_from_the_main_thread_only(tmp_path: Path) -> None:
    failures: list[BaseException] = []

    def start() -> None:
        try:
            child.start(["/bin/true"], log=tmp_path / "log")
        except RuntimeError as error:
            failures.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert len(failures) == 1


def test_a_program_that_is_not_there_is_a_clean_error(tmp_path: Path) -> None:
    with pytest.raises(ServerFailed, match="no-such-program"):
        child.start([tmp_path / "no-such-program"], log=tmp_path / "log")


PARENT = """
import asyncio, sys
from pathlib import Path
from control_plane.embedded.nats import EmbeddedNats
from control_plane.embedded.postgres import EmbeddedPostgres

async def main():
    folder = Path(sys.argv[1])
    async with EmbeddedPostgres(folder / "pg") as pg, EmbeddedNats(folder / "nats", users=[]) as nats:
        print(pg.pid, nats.pid, flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


def _family(pids: list[int]) -> list[int]:
    """These processes and everything below them."""
    found = list(pids)
    for pid in found:
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += [int(one) for one in (task / "children").read_text().split()]
    return found


async def test_servers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    parent = subprocess.Popen(  # noqa: ASYNC220 -- it is killed like a whole office is
        [sys.executable, "-P", "-c", PARENT, str(tmp_path)],
        stdout=subprocess.PIPE,
        cwd=CHECKOUT,
        env=os.environ | {"PYTHONPATH": str(CHECKOUT)},
    )
    try:
        assert parent.stdout is not None
        line = ""
        while not line.strip().replace(" ", "").isdigit():
            line = (await asyncio.to_thread(parent.stdout.readline)).decode()
            assert line, "the parent ended by itself"
        family = _family([int(pid) for pid in line.split()])
        assert len(family) > 4, "PostgreSQL has processes of its own"
    finally:
        parent.kill()
        parent.wait(10)
        parent.stdout.close()  # type: ignore[union-attr]
    async with asyncio.timeout(30):
        while any(Path(f"/proc/{pid}").exists() for pid in family):
            await asyncio.sleep(0.02)
    # And it was a clean end: the next start has nothing to recover.
    log = (tmp_path / "pg" / "postgres.log").read_text()
    assert "database system is shut down" in log
