"""SQL of trucks' certificates. The caller has locked the device's row."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime

from control_plane.access.authority import Issued
from control_plane.db import Connection, load_queries

_SQL = load_queries("control_plane.access")


@dataclass(frozen=True, kw_only=True)
class CertificateRecord:
    """One certificate. `state` is live, replaced or revoked; `issued_for` enrolment, renewal or first."""

    serial: str
    device_id: str
    key_sha256: str
    state: str
    issued_for: str
    not_before: datetime
    not_after: datetime
    issued_at: datetime
    ended_at: datetime | None
    pem: str = field(repr=False)


async def add(connection: Connection, device_id: str, one: Issued, issued_for: str) -> None:
    """Record a certificate; it is live."""
    await connection.execute(
        _SQL["add_certificate"],
        *(one.serial, device_id, one.key_sha256, issued_for, one.not_before, one.not_after, one.pem),
    )


async def newest(connection: Connection, device_id: str, limit: int) -> list[CertificateRecord]:
    """A device's certificates, the newest first."""
    rows = await connection.fetch(_SQL["certificates"], device_id, limit)
    return [CertificateRecord(**dict(row)) for row in rows]


async def replace_others(connection: Connection, device_id: str, keep: Collection[str]) -> int:
    """Every live one but these is replaced; how many that were."""
    return len(await connection.fetch(_SQL["end_certificates"], device_id, "replaced", list(keep)))


async def revoke(connection: Connection, device_id: str) -> int:
    """All of them are revoked; how many were not before."""
    return len(await connection.fetch(_SQL["revoke_certificates"], device_id))


async def issued_since(connection: Connection, device_id: str, within_s: float) -> int:
    """How many were issued without an enrolment token in the last `within_s` seconds."""
    found: int = await connection.fetchval(_SQL["issued_since"], device_id, within_s)
    return found


async def key_of_another(connection: Connection, device_id: str, key_sha256: str) -> bool:
    """Whether another device has, or had, a certificate for this key."""
    found: bool = await connection.fetchval(_SQL["key_of_another"], device_id, key_sha256)
    return found


async def clean(connection: Connection, device_id: str, keep: int) -> None:
    """Forget the oldest that are not live, beyond the newest `keep`."""
    await connection.execute(_SQL["clean_certificates"], device_id, keep)
