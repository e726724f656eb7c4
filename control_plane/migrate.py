"""Numbered migrations: what the schema was, is, and who changed it when.

Files `migrations/NNNN_name.before.sql` run before a deploy (additions that old code ignores),
`NNNN_name.after.sql` behind it (removals that old code would miss). Each runs once, in order, in
a transaction, and is recorded with its hash; a recorded file that has changed since, or a record
without its file (a newer program's database), refuses to start.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from importlib import resources

import asyncpg

from shared.errors import OtaError
from shared.logs import get_log

log = get_log("control_plane.migrate")
_NAME = re.compile(r"(\d{4})_[a-z0-9_]+\.(before|after)\.sql")
# Any number that nothing else in this database locks on.
_ADVISORY_LOCK = 0x51554152


class MigrationError(OtaError):
    """The database's schema and this program do not belong together."""

    code = "schema_mismatch"
    advice = "Run the program version that last migrated this database, or restore its files."


@dataclass(frozen=True, kw_only=True)
class Migration:
    """One file. `sha256` is over its text; `phase` is before or after."""

    number: int
    phase: str
    name: str
    sql: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


def known_migrations() -> list[Migration]:
    """The files of this program, in the order in which they run. Raises MigrationError on a misnamed one."""
    found = []
    for entry in (resources.files("control_plane") / "migrations").iterdir():
        if not entry.name.endswith(".sql"):
            continue
        match = _NAME.fullmatch(entry.name)
        if match is None:
            raise MigrationError(f"migration file {entry.name} is not NNNN_name.before|after.sql")
        found.append(
            Migration(
                number=int(match[1]), phase=match[2], name=entry.name, sql=entry.read_text(encoding="utf-8")
            )
        )
    return sorted(found, key=lambda m: (m.number, m.phase != "before"))


async def migrate(dsn: str) -> list[str]:
    """Bring the database at `dsn` to this program's schema; returns the names of the files that ran.

    Several processes may start at once: one migrates, the others wait for it. Raises MigrationError.
    """
    connection = await asyncpg.connect(dsn, timeout=10)
    try:
        await connection.execute("SELECT pg_advisory_lock($1)", _ADVISORY_LOCK)
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_migrations (name text PRIMARY KEY, sha256 text NOT NULL,"
            " applied_at timestamptz NOT NULL DEFAULT now())"
        )
        rows = await connection.fetch("SELECT name, sha256 FROM schema_migrations")
        applied = {row["name"]: row["sha256"] for row in rows}
        known = known_migrations()
        strange = applied.keys() - {m.name for m in known}
        if strange:
            raise MigrationError(f"the database has migrations that this program lacks: {sorted(strange)}")
        ran = []
        for one in known:
            if one.name in applied:
                if applied[one.name] != one.sha256:
                    raise MigrationError(f"migration {one.name} was changed after it had been applied")
                continue
            async with connection.transaction():
                await connection.execute(one.sql)
                await connection.execute(
                    "INSERT INTO schema_migrations (name, sha256) VALUES ($1, $2)", one.name, one.sha256
                )
            log.info("migrate.applied", migration=one.name)
            ran.append(one.name)
        return ran
    finally:
        await connection.close(timeout=5)
