"""How much may wait for the office, and how much does: rows and bytes, exact at every moment.

The use is counted by triggers into a temporary table, which SQLite keeps in memory and rolls back with
the transaction: nothing of it is written to the flash, and nobody scans a long queue to ask.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from shared.logs import get_log
from shared.since_310 import StrEnum

log = get_log("edge_agent.queue_bounds")

MIB = 1024 * 1024
ROW_BYTES = 256
"""What a row costs on the disk beside its body: ids, numbers and their places in the indexes."""


class Queue(StrEnum):
    """What waits for the office, apart by who may be dropped."""

    STATUS = "status"
    TELEMETRY = "telemetry"


@dataclass(frozen=True, kw_only=True)
class QueueLimits:
    """Bounds of what waits. Bytes are of the rows as they lie on the disk.

    `write_every_s`: progress and samples are kept in memory for so long at the most, so that they cost
    one write in this time however many come; a power cut loses no more of them.
    """

    most_statuses: int = 5000
    most_status_bytes: int = 8 * MIB
    most_samples: int = 50_000
    most_telemetry_bytes: int = 8 * MIB
    write_every_s: float = 10.0

    @property
    def disk_bytes(self) -> int:
        """What the two queues may take on the disk together."""
        return self.most_status_bytes + self.most_telemetry_bytes


@dataclass(frozen=True, kw_only=True)
class Use:
    """What one queue holds, and its bounds. A sample counts as a row."""

    rows: int
    bytes: int
    most_rows: int
    most_bytes: int

    @property
    def full(self) -> bool:
        """No further row has a place of its own."""
        return self.rows >= self.most_rows or self.bytes >= self.most_bytes

    @property
    def over(self) -> bool:
        """More is held than may be."""
        return self.rows > self.most_rows or self.bytes > self.most_bytes


_TABLES = {Queue.STATUS: ("outbox", "1"), Queue.TELEMETRY: ("telemetry", "{row}.samples")}


def begin(connection: sqlite3.Connection, limits: QueueLimits) -> None:
    """Count what is there and keep counting: once for each connection that writes."""
    connection.execute(
        "CREATE TEMP TABLE queue_use (queue TEXT PRIMARY KEY, rows INTEGER NOT NULL, bytes INTEGER NOT NULL,"
        " most_rows INTEGER NOT NULL, most_bytes INTEGER NOT NULL)"
    )
    most = {
        Queue.STATUS: (limits.most_statuses, limits.most_status_bytes),
        Queue.TELEMETRY: (limits.most_samples, limits.most_telemetry_bytes),
    }
    for queue, (table, rows) in _TABLES.items():
        size = f"length(CAST({{row}}.body AS BLOB)) + {ROW_BYTES}"
        connection.execute(
            f"INSERT INTO queue_use SELECT '{queue}', coalesce(sum({rows.format(row='old')}), 0),"
            f" coalesce(sum({size.format(row='old')}), 0), ?, ? FROM main.{table} AS old",
            most[queue],
        )
        for verb, plus, minus in (("INSERT", True, False), ("DELETE", False, True), ("UPDATE", True, True)):
            change = {
                name: f"{name}"
                + (f" + ({text.format(row='new')})" if plus else "")
                + (f" - ({text.format(row='old')})" if minus else "")
                for name, text in (("rows", rows), ("bytes", size))
            }
            connection.execute(
                f"CREATE TEMP TRIGGER {table}_{verb.lower()} AFTER {verb} ON main.{table} BEGIN"
                f" UPDATE queue_use SET rows = {change['rows']}, bytes = {change['bytes']}"
                f" WHERE queue = '{queue}'; END"
            )
        found = use(connection, queue)
        if found.over:
            log.warning("queue.over_its_bound", queue=queue, rows=found.rows, bytes=found.bytes)


def use(connection: sqlite3.Connection, queue: Queue) -> Use:
    """What a queue holds at this moment of the transaction."""
    row = connection.execute(
        "SELECT rows, bytes, most_rows, most_bytes FROM temp.queue_use WHERE queue = ?", (queue,)
    ).fetchone()
    return Use(rows=row[0], bytes=row[1], most_rows=row[2], most_bytes=row[3])
