"""SQL of the devices."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import astuple
from datetime import datetime

import asyncpg

from control_plane.db import Connection, load_queries
from control_plane.devices.model import Component, DeviceRecord

_SQL = load_queries("control_plane.devices")


async def _with_components(connection: Connection, rows: Sequence[asyncpg.Record]) -> list[DeviceRecord]:
    if not rows:
        return []
    of_device: dict[str, list[Component]] = {row["device_id"]: [] for row in rows}
    for row in await connection.fetch(_SQL["components"], list(of_device)):
        fields = dict(row)
        of_device[fields.pop("device_id")].append(Component(**fields))
    return [
        DeviceRecord(
            **{**dict(row), "features": tuple(row["features"])},
            components=tuple(of_device[row["device_id"]]),
        )
        for row in rows
    ]


async def insert(connection: Connection, *, device_id: str, name: str, site: str) -> bool:
    """A new device without components; False when there is one of that id."""
    return await connection.fetchrow(_SQL["insert"], device_id, name, site) is not None


async def get(connection: Connection, device_id: str, *, lock: bool = False) -> DeviceRecord | None:
    """One device whole; `lock` holds its row until the end of the transaction."""
    rows = await connection.fetch(_SQL["lock" if lock else "get"], device_id)
    devices = await _with_components(connection, rows)
    return devices[0] if devices else None


async def page(
    connection: Connection, *, site: str | None, online: bool | None, after: str | None, limit: int
) -> list[DeviceRecord]:
    """Devices by their ids."""
    return await _with_components(
        connection, await connection.fetch(_SQL["page"], site, online, after, limit)
    )


async def update(connection: Connection, device_id: str, *, name: str, site: str) -> None:
    """Write what an operator may change of the row itself; its version grows."""
    await connection.execute(_SQL["update"], device_id, name, site)


async def touch(connection: Connection, device_id: str) -> None:
    """Its components changed; its version grows."""
    await connection.execute(_SQL["touch"], device_id)


async def put_components(connection: Connection, device_id: str, components: Sequence[Component]) -> None:
    """Insert or replace these."""
    await connection.executemany(
        _SQL["put_component"], [(device_id, *astuple(component)) for component in components]
    )


async def drop_components(connection: Connection, device_id: str, names: Collection[str]) -> None:
    """Take these out."""
    await connection.execute(_SQL["drop_components"], device_id, list(names))


async def heard(
    connection: Connection,
    device_id: str,
    *,
    online: bool,
    agent_version: str,
    features: Sequence[str],
    at: datetime,
) -> None:
    """A device's hello, unless a newer one has been heard."""
    await connection.execute(_SQL["heard"], device_id, online, agent_version, list(features), at)


async def online(connection: Connection, device_ids: Collection[str]) -> set[str]:
    """Those of these that are connected."""
    rows = await connection.fetch(_SQL["online"], list(device_ids))
    return {row["device_id"] for row in rows}


async def installed(
    connection: Connection, device_ids: Collection[str], feature: str
) -> dict[tuple[str, str], str]:
    """By (device_id, component), the image's SHA-256; only of devices with this feature."""
    rows = await connection.fetch(_SQL["installed"], list(device_ids), feature)
    return {(row["device_id"], row["component"]): row["installed_sha256"] for row in rows}


async def lock_many(connection: Connection, device_ids: Collection[str]) -> set[str]:
    """Lock these rows in the order of their ids; returns those that there are."""
    rows = await connection.fetch(_SQL["lock_many"], sorted(set(device_ids)))
    return {row["device_id"] for row in rows}


async def stores(connection: Connection, pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], int]:
    """Numbers of those (device_id, store_id) that have one."""
    rows = await connection.fetch(_SQL["stores"], [p[0] for p in pairs], [p[1] for p in pairs])
    return {(row["device_id"], row["store_id"]): row["store_no"] for row in rows}


async def add_store(connection: Connection, device_id: str, store_id: str, most: int) -> int | None:
    """Number a store of a locked device; None when it has a number already or the device has too many."""
    number: int | None = await connection.fetchval(_SQL["add_store"], device_id, store_id, most)
    return number


async def newest_manifest(connection: Connection, device_id: str) -> tuple[int, int]:
    """(store number, seq) of the newest manifest that was taken; (0, -1) when none was."""
    row = await connection.fetchrow(_SQL["newest_manifest"], device_id)
    return (0, -1) if row is None else (row["store_no"], row["manifest_seq"])


async def manifest_taken(connection: Connection, device_id: str, store_no: int, seq: int) -> None:
    """The newest manifest is this one now."""
    await connection.execute(_SQL["manifest_taken"], device_id, store_no, seq)
