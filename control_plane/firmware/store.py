"""SQL of the firmwares."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from control_plane.db import Connection, load_queries
from shared.release import FirmwareSpec

_SQL = load_queries("control_plane.firmware")


@dataclass(frozen=True, kw_only=True)
class Firmware:
    """One published firmware. `length` is in bytes, `document` the signed bytes (empty in lists);
    `state` is published or withdrawn.
    """

    firmware_id: str
    kind: str
    version: str
    hardware: tuple[str, ...]
    release_counter: int
    length: int
    sha256: str
    document: bytes
    state: str
    notes: str
    created_by: str
    published_at: datetime
    withdrawn_at: datetime | None
    withdrawn_why: str | None

    @property
    def withdrawn(self) -> bool:
        """It must not be installed any more."""
        return self.state == "withdrawn"

    @property
    def spec(self) -> FirmwareSpec:
        """What its document says."""
        return FirmwareSpec(
            kind=self.kind,
            hardware=self.hardware,
            version=self.version,
            release_counter=self.release_counter,
            length=self.length,
            sha256=self.sha256,
        )


def _firmware(row: asyncpg.Record) -> Firmware:
    return Firmware(**{**dict(row), "hardware": tuple(row["hardware"])})


async def insert(
    connection: Connection, *, firmware_id: str, spec: FirmwareSpec, document: bytes, notes: str, by: str
) -> Firmware | None:
    """A new published firmware; None when there is one of that kind and version."""
    row = await connection.fetchrow(
        _SQL["insert"],
        *(firmware_id, spec.kind, spec.version, list(spec.hardware), spec.release_counter),
        *(spec.length, spec.sha256, document, notes, by),
    )
    return None if row is None else _firmware(row)


async def get(connection: Connection, firmware_id: str, *, lock: bool = False) -> Firmware | None:
    """One firmware."""
    row = await connection.fetchrow(_SQL["lock" if lock else "get"], firmware_id)
    return None if row is None else _firmware(row)


async def of_version(
    connection: Connection, kind: str, version: str, *, query: str = "get_version"
) -> Firmware | None:
    """The firmware of a kind and version; `query` says how its row is locked."""
    row = await connection.fetchrow(_SQL[query], kind, version)
    return None if row is None else _firmware(row)


async def of_ids(connection: Connection, firmware_ids: Collection[str]) -> dict[str, Firmware]:
    """These firmwares."""
    rows = await connection.fetch(_SQL["of_ids"], list(firmware_ids))
    return {row["firmware_id"]: _firmware(row) for row in rows}


async def page(
    connection: Connection, *, kind: str | None, before: tuple[datetime, str] | None, limit: int
) -> list[Firmware]:
    """Firmwares from the newest to the oldest, without their documents."""
    at, last = before or (None, None)
    return [_firmware(row) for row in await connection.fetch(_SQL["page"], kind, at, last, limit)]


async def replace_document(connection: Connection, firmware_id: str, document: bytes) -> Firmware:
    """The same firmware with a newer document."""
    row = await connection.fetchrow(_SQL["replace_document"], firmware_id, document)
    assert row is not None
    return _firmware(row)


async def withdraw(connection: Connection, firmware_id: str, why: str) -> Firmware:
    """It must not be installed any more."""
    row = await connection.fetchrow(_SQL["withdraw"], firmware_id, why)
    assert row is not None
    return _firmware(row)
