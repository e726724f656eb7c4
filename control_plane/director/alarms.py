"""Alarms: one row from the first sight until a person has acknowledged it; it may come again after that."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

import asyncpg

from control_plane.db import Connection, Database, load_queries
from control_plane.errors import NotFound
from control_plane.metrics import Metrics
from shared.ids import new_id
from shared.logs import get_log
from shared.trust.uptane.manifest_check import Alarm, Raised

log = get_log("control_plane.director")
_SQL = load_queries("control_plane.director")

MOST_OPEN_PER_DEVICE = 500
"""What a truck reports names alarms too (attacks, unknown serials), so a mad one must fill no table."""
MOST_DETAIL = 1000


class OfficeAlarm(StrEnum):
    """Alarms beside those of manifests."""

    VERSION_AHEAD = "metadata_version_ahead"
    """A truck trusts metadata far above what was ever signed for it: somebody else has signed some."""


@dataclass(frozen=True, kw_only=True)
class AlarmRecord:
    """One alarm. `serial` is empty when it is the truck's; `about` is the attack that an ECU reports."""

    alarm_id: str
    device_id: str
    alarm: str
    serial: str
    about: str
    detail: str
    count: int
    first_seen_at: datetime
    last_seen_at: datetime
    acknowledged_at: datetime | None
    acknowledged_by: str | None


def _alarm(row: asyncpg.Record) -> AlarmRecord:
    return AlarmRecord(**dict(row))


class AlarmService:
    """The alarms of all trucks."""

    def __init__(self, db: Database, metrics: Metrics) -> None:
        self._db = db
        self._metrics = metrics

    async def raise_all(self, connection: Connection, device_id: str, raised: Iterable[Raised]) -> None:
        """Raise alarms of a truck's manifest, in the caller's transaction."""
        for one in raised:
            about = one.text if one.alarm is Alarm.ATTACK_REPORTED else ""
            await self.add(connection, device_id, one.alarm, serial=one.serial, about=about, detail=one.text)

    async def add(
        self,
        connection: Connection,
        device_id: str,
        alarm: str,
        *,
        serial: str = "",
        about: str = "",
        detail: str,
    ) -> None:
        """Raise one: a new row, or one more sight of the open one.

        Beyond MOST_OPEN_PER_DEVICE it is only logged and counted.
        """
        texts = [text.replace("\x00", "\N{REPLACEMENT CHARACTER}") for text in (serial, about, detail)]
        count = await connection.fetchval(
            _SQL["add_alarm"],
            *(new_id(), device_id, str(alarm), texts[0][:200], texts[1][:200], texts[2][:MOST_DETAIL]),
            MOST_OPEN_PER_DEVICE,
        )
        self._metrics.director_alarms_total.labels(alarm=str(alarm)).inc()
        if count in {1, None}:
            log.warning(
                "director.alarm_raised",
                device_id=device_id,
                alarm=str(alarm),
                serial=serial[:80],
                detail=detail[:200],
                kept=count is not None,
            )

    async def page(
        self,
        *,
        device_id: str | None = None,
        alarm: str | None = None,
        acknowledged_too: bool = False,
        before: tuple[datetime, str] | None = None,
        limit: int = 50,
    ) -> list[AlarmRecord]:
        """Alarms, those that began last first."""
        at, last = before or (None, None)
        rows = await self._db.fetch(_SQL["alarms"], device_id, alarm, acknowledged_too, at, last, limit)
        return [_alarm(row) for row in rows]

    async def acknowledge(self, alarm_id: str, *, by: str) -> AlarmRecord:
        """A person has seen it. A repeat changes nothing: the first one stands. Raises NotFound."""
        async with self._db.transaction() as connection:
            row = await connection.fetchrow(_SQL["acknowledge"], alarm_id, by)
            changed = row is not None
            row = row or await connection.fetchrow(_SQL["alarm"], alarm_id)
        if row is None:
            raise NotFound(f"there is no alarm {alarm_id[:80]}", code="unknown_alarm")
        if changed:
            log.info("director.alarm_acknowledged", alarm_id=alarm_id, alarm=row["alarm"], by=by)
        return _alarm(row)
