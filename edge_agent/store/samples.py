"""Samples on their way to the office: written in blocks, sent in order, the oldest dropped first.

Functions on a connection inside a transaction of `store`. A block is a row: one write of the flash
for all samples of some seconds. A block goes when the broker has it: samples have no ack of the
office's, since a lost one costs a point in a curve.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from edge_agent.store.queue_bounds import Queue, use
from shared.logs import get_log
from shared.messages import Sample

log = get_log("edge_agent.samples")

MOST_IN_MESSAGE = 1000
"""Samples in one message (shared.messages.Telemetry)."""
MOST_IN_BLOCK = 100


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """The oldest samples that wait, in their order; `upto` names them when they are sent."""

    samples: tuple[Sample, ...]
    upto: int


def keep(connection: sqlite3.Connection, samples: Sequence[Sample]) -> int:
    """Append samples; returns how many of the oldest had to go to keep the bounds."""
    for begin in range(0, len(samples), MOST_IN_BLOCK):
        block = samples[begin : begin + MOST_IN_BLOCK]
        body = msgspec.json.encode([one.to_obj() for one in block]).decode()
        connection.execute("INSERT INTO telemetry (samples, body) VALUES (?, ?)", (len(block), body))
    return trim(connection)


def trim(connection: sqlite3.Connection) -> int:
    """Drop the oldest blocks until the bounds are kept; returns how many samples went."""
    dropped = 0
    while use(connection, Queue.TELEMETRY).over:
        place, count = connection.execute(
            "SELECT place, samples FROM telemetry ORDER BY place LIMIT 1"
        ).fetchone()
        connection.execute("DELETE FROM telemetry WHERE place = ?", (place,))
        dropped += count
    return dropped


def page(connection: sqlite3.Connection, most_bytes: int) -> Waiting | None:
    """The oldest blocks that fit into one message, at least one; None when nothing waits."""
    out: list[Sample] = []
    size = upto = 0
    for row in connection.execute("SELECT place, body FROM telemetry ORDER BY place"):
        block = [Sample.from_obj(one) for one in msgspec.json.decode(row["body"])]
        size += len(row["body"].encode())
        if out and (size > most_bytes or len(out) + len(block) > MOST_IN_MESSAGE):
            break
        out.extend(block)
        upto = row["place"]
    return Waiting(samples=tuple(out), upto=upto) if out else None


def sent(connection: sqlite3.Connection, upto: int) -> None:
    """Forget what was sent; a block that was dropped meanwhile is no error."""
    connection.execute("DELETE FROM telemetry WHERE place <= ?", (upto,))
