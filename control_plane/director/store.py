"""SQL of the trucks: their ECUs, what was chosen and signed for them, and what their ECUs reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import msgspec

from control_plane.db import Connection, load_queries
from control_plane.director.model import Choice, EcuRecord, VehicleRecord
from shared.trust.uptane.manifest import EcuReport, InstalledImage
from shared.trust.uptane.manifest_check import KnownVehicle

_SQL = load_queries("control_plane.director")


@dataclass(frozen=True, kw_only=True)
class SignedFiles:
    """What was signed for a truck; at `renew_at` half of the timestamp's life is over."""

    version: int
    fingerprint: str
    release_path: str | None
    why: str
    targets: bytes
    snapshot: bytes
    timestamp: bytes
    renew_at: datetime


@dataclass(frozen=True, kw_only=True)
class HeldRecord:
    """What an ECU held over a while; filename and what follows are None when it held no valid image."""

    report_id: int
    device_id: str
    serial: str
    kind: str
    hardware: str
    believed: bool
    filename: str | None
    length: int | None
    sha256: str | None
    release_counter: int | None
    said_at: datetime
    first_seen_at: datetime
    last_seen_at: datetime

    @property
    def installed(self) -> InstalledImage | None:
        """As the manifest has it."""
        if self.filename is None or self.length is None or self.sha256 is None:
            return None
        return InstalledImage(
            filename=self.filename,
            length=self.length,
            sha256=self.sha256,
            release_counter=self.release_counter or 0,
        )


async def vehicle(connection: Connection, device_id: str, *, lock: bool = False) -> VehicleRecord | None:
    """A truck's row; `lock` makes it when there is none (the device must be there) and holds it."""
    if lock:
        await connection.execute(_SQL["add_vehicle"], device_id)
    row = await connection.fetchrow(_SQL["lock_vehicle" if lock else "get_vehicle"], device_id)
    if row is None:
        return None
    versions = msgspec.json.decode(row["metadata_versions"], type=dict[str, int])
    past_stores = tuple(row["past_stores"])
    return VehicleRecord(**{**dict(row), "past_stores": past_stores, "metadata_versions": versions})


async def register(
    connection: Connection,
    device_id: str,
    primary_serial: str,
    gateway_key: str | None,
    ecus: Sequence[EcuRecord],
) -> None:
    """The whole list of a truck's ECUs; its row is locked by the caller."""
    await connection.execute(_SQL["register_vehicle"], device_id, primary_serial, gateway_key)
    await connection.execute(_SQL["drop_ecus"], device_id, [one.serial for one in ecus])
    await connection.executemany(
        _SQL["put_ecu"],
        [(device_id, one.serial, one.kind, one.hardware, one.public_key) for one in ecus],
    )


async def set_metadata_versions(connection: Connection, device_id: str, versions: Mapping[str, int]) -> None:
    """What the truck trusts by its newest word; its row is locked by the caller."""
    raw = msgspec.json.encode(versions).decode()
    await connection.execute(_SQL["set_metadata_versions"], device_id, raw)


async def set_gateway_key(connection: Connection, device_id: str, gateway_key: str) -> None:
    """The truck told another key; what operators have read of its ECUs is an older version then."""
    await connection.execute(_SQL["set_gateway_key"], device_id, gateway_key)


async def ecus(connection: Connection, device_id: str) -> list[EcuRecord]:
    """The registered ECUs by their serials."""
    return [EcuRecord(**dict(row)) for row in await connection.fetch(_SQL["ecus"], device_id)]


async def raise_version(connection: Connection, device_id: str, version: int) -> None:
    """The next version is above this one."""
    await connection.execute(_SQL["raise_version"], device_id, version)


async def next_version(connection: Connection, device_id: str) -> int:
    """A version that nothing was signed with yet."""
    version: int = await connection.fetchval(_SQL["next_version"], device_id)
    return version


async def choice(connection: Connection, device_id: str) -> Choice | None:
    """What was chosen for a truck."""
    row = await connection.fetchrow(_SQL["selection"], device_id)
    return None if row is None else Choice(**dict(row))


async def choose(
    connection: Connection, device_id: str, release_path: str | None, job_id: str | None, by: str
) -> Choice:
    """Choose for a truck, whose row there is."""
    row = await connection.fetchrow(_SQL["select"], device_id, release_path, job_id, by)
    assert row is not None
    return Choice(**dict(row))


async def newest_signed(connection: Connection, device_id: str) -> SignedFiles | None:
    """What was signed last."""
    row = await connection.fetchrow(_SQL["newest_signed"], device_id)
    return None if row is None else SignedFiles(**dict(row))


async def signed_version(connection: Connection, device_id: str, version: int) -> tuple[bytes, bytes] | None:
    """Targets and snapshot of a version, while they are kept."""
    row = await connection.fetchrow(_SQL["signed_version"], device_id, version)
    return None if row is None else (row["targets"], row["snapshot"])


async def add_signed(connection: Connection, device_id: str, files: SignedFiles, keep: int) -> None:
    """Keep what was signed, and of older versions so many that `keep` are there."""
    await connection.execute(
        _SQL["add_signed"],
        *(device_id, files.version, files.fingerprint, files.release_path, files.why),
        *(files.targets, files.snapshot, files.timestamp, files.renew_at),
    )
    await connection.execute(_SQL["trim_signed"], device_id, keep)


async def manifest_taken(
    connection: Connection, known: KnownVehicle, manifest_sha256: str, counters: dict[str, int]
) -> None:
    """What is known of a truck after a good manifest; `counters` of believed ECUs by serial."""
    await connection.execute(
        _SQL["manifest_taken"],
        *(known.vehicle_id, known.store_id, known.seq, list(known.past_stores), known.at, manifest_sha256),
    )
    await connection.executemany(
        _SQL["ecu_told"], [(known.vehicle_id, serial, counter) for serial, counter in counters.items()]
    )


async def settle(connection: Connection, device_id: str, held: dict[str, str]) -> None:
    """The office agrees with what these ECUs hold, by serial."""
    await connection.executemany(
        _SQL["ecu_settled"], [(device_id, serial, sha256) for serial, sha256 in held.items()]
    )


async def newest_reports(connection: Connection, device_id: str) -> dict[str, HeldRecord]:
    """What each ECU held last, by serial."""
    rows = await connection.fetch(_SQL["newest_reports"], device_id)
    return {row["serial"]: HeldRecord(**dict(row)) for row in rows}


async def reports(connection: Connection, device_id: str, serial: str, limit: int) -> list[HeldRecord]:
    """What an ECU held, newest first."""
    rows = await connection.fetch(_SQL["reports"], device_id, serial, limit)
    return [HeldRecord(**dict(row)) for row in rows]


async def add_report(
    connection: Connection, device_id: str, report: EcuReport, *, believed: bool, said_at: datetime
) -> None:
    """What an ECU holds from now on."""
    held = report.installed
    facts = (None,) * 4 if held is None else (held.filename, held.length, held.sha256, held.release_counter)
    await connection.execute(
        _SQL["add_report"],
        *(device_id, report.serial, report.kind, report.hardware, believed, *facts, said_at),
    )


async def report_again(connection: Connection, report_id: int) -> None:
    """An ECU still holds the same."""
    await connection.execute(_SQL["report_again"], report_id)


async def trim_reports(connection: Connection, device_id: str, keep: int) -> None:
    """Forget a truck's oldest reports."""
    await connection.execute(_SQL["trim_reports"], device_id, keep)
