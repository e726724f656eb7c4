"""A captured office: its thief has its host, its database, its firmware store and the director's online key.

He lets the office itself order and direct what he likes, by rows that he writes; the truck is the only one
left who can refuse. What he has not: a single key that signs offline.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg

from shared.trust.uptane.release_document import ReleaseSpec
from sim.scenarios.desk import Firmware

CONNECT_WITHIN_S = 10.0
_PORT_LINE = 3
"""Of postmaster.pid (PostgreSQL, `miscadmin.h`: LOCK_FILE_LINE_PORT is the fourth)."""

_FORGET = """
CREATE FUNCTION forget() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.counter = 0; RETURN NEW; END';
CREATE TRIGGER forget BEFORE UPDATE ON ecus FOR EACH ROW EXECUTE FUNCTION forget();
"""


class CapturedOffice:
    """The thief's way into the database of an office whose data folder is `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def believe(self, release: ReleaseSpec, firmwares: Sequence[Firmware]) -> None:
        """Let the office believe that this release was signed offline and taken in, its images too."""
        document = release.dump()
        async with self._database() as db:
            await db.execute("INSERT INTO image_releases (path) VALUES ($1)", release.target_path)
            await db.execute(
                "INSERT INTO image_targets (path, sha256, length, release) VALUES ($1, $2, $3, $4)",
                *(release.target_path, release.target_path.rpartition("/")[2][:64], len(document), document),
            )
            for one in firmwares:
                await db.execute(
                    "INSERT INTO image_targets (path, sha256, length, document) VALUES ($1, $2, $3, $4)",
                    *(one.spec.target_path, one.spec.sha256, one.spec.length, one.document),
                )
                (self._folder / "firmware" / f"{one.spec.sha256}.bin").write_bytes(one.image)

    async def forget_counters(self) -> None:
        """Let the office forget which release counters trucks have reported, and will report."""
        async with self._database() as db:
            await db.execute(_FORGET)
            await db.execute("UPDATE ecus SET counter = 0")

    async def leave(self) -> None:
        """Take the trigger out again, as whoever cleans the database up does."""
        async with self._database() as db:
            await db.execute("DROP FUNCTION IF EXISTS forget() CASCADE")

    @asynccontextmanager
    async def _database(self) -> AsyncIterator[asyncpg.Connection]:
        place = self._folder / "postgres"
        port = int((place / "data" / "postmaster.pid").read_text().splitlines()[_PORT_LINE])
        connection = await asyncpg.connect(
            host="127.0.0.1",
            port=port,
            user="postgres",
            database="postgres",
            password=(place / "password").read_text().strip(),
            timeout=CONNECT_WITHIN_S,
        )
        try:
            async with connection.transaction():
                yield connection
        finally:
            await connection.close(timeout=CONNECT_WITHIN_S)
