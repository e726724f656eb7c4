"""Journal rows as values and back: the one place that knows the columns."""

from __future__ import annotations

import sqlite3
from datetime import datetime

from edge_agent.store import outbox, release
from edge_agent.store.journal import Asked, Entry
from shared.messages import Command
from shared.states import UpdateState

MOST_ENDED = 1000
"""The newest attempts that are remembered once they ended, so that a repeat is answered."""


def entry_of(row: sqlite3.Row) -> Entry:
    """One row of the journal; of an older agent's too, which people may look at before it is migrated."""
    # A Row's own `in` asks its values.
    is_new = "release" in row.keys()  # noqa: SIM118
    is_newer = "selection" in row.keys()  # noqa: SIM118
    return Entry(
        job_id=row["job_id"],
        attempt=row["attempt"],
        revision=row["revision"],
        state=UpdateState(row["state"]),
        command=None if row["command"] is None else Command.from_json(row["command"].encode()),
        tries=row["tries"],
        touched=bool(row["touched"]),
        asked=None if row["asked"] is None else Asked(row["asked"]),
        image=row["image"],
        told=None if row["told"] is None else outbox.decode(row["told"]),
        release=release.decode(row["release"]) if is_new and row["release"] is not None else None,
        restarts=row["restarts"] if is_new else 0,
        selection=row["selection"] if is_newer else None,
        created_at=datetime.fromisoformat(row["created_at"]),
        updated_at=datetime.fromisoformat(row["updated_at"]),
    )


def save(connection: sqlite3.Connection, entry: Entry, at: datetime) -> None:
    """Write what the updater owns. `command` and `revision` are the inbox's and stay as they are;
    so does an `asked` that came while the updater decided, unless it was answered.
    """
    connection.execute(
        "UPDATE journal SET state = ?, tries = ?, touched = ?, image = ?, told = ?, release = ?,"
        " restarts = ?, selection = ?, updated_at = ?"
        " WHERE job_id = ? AND attempt = ?",
        (
            entry.state,
            entry.tries,
            entry.touched,
            entry.image,
            None if entry.told is None else outbox.encode(entry.told),
            None if entry.release is None else release.encode(entry.release),
            entry.restarts,
            entry.selection,
            at.isoformat(),
            *entry.key,
        ),
    )
