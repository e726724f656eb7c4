"""What the director signs for one truck: targets, snapshot and timestamp by its online keys. Pure.

One number is the version of all three, so that the office keeps one number per truck, and after a
restored backup continues above what the truck reports. The root is made offline, as the image
repository's is (repository.begin).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from securesystemslib.signer import Signer
from tuf.api.metadata import Metadata, MetaFile, Snapshot, TargetFile, Targets, Timestamp

from shared.since_310 import UTC
from shared.trust.uptane.matching import VEHICLE
from shared.trust.uptane.offline import MOST_LIFE
from shared.trust.uptane.release_document import ReleaseSpec
from shared.trust.uptane.repository import TIME_FORM, sign_metadata, to_bytes
from shared.trust.uptane.repository_check import SIGNED_AT
from shared.trust.uptane.repository_edit import firmware_target, release_target
from shared.trust.uptane.vehicle import Vehicle

LIFE = timedelta(days=1)


@dataclass(frozen=True, kw_only=True)
class DirectorSigners:
    """The online keys; each role has its own set, which may be the same key three times."""

    targets: tuple[Signer, ...]
    snapshot: tuple[Signer, ...]
    timestamp: tuple[Signer, ...]


def direct(
    vehicle: Vehicle,
    release: ReleaseSpec | None,
    *,
    version: int,
    signers: DirectorSigners,
    now: datetime,
    life: timedelta = LIFE,
) -> dict[str, bytes]:
    """The files for a truck, by served name: all of `release` that is for its ECUs; None: nothing."""
    expires = _second(now + life)
    targets = Metadata(_selection(vehicle, release, version, expires, {}))
    raw_targets = _signed(targets, signers.targets)
    listing = {"targets.json": MetaFile.from_data(version, raw_targets, ["sha256"])}
    snapshot = Metadata(Snapshot(version=version, expires=expires, meta=listing))
    raw_snapshot = _signed(snapshot, signers.snapshot)
    timestamp = Metadata(
        Timestamp(
            version=version,
            expires=expires,
            snapshot_meta=MetaFile.from_data(version, raw_snapshot, ["sha256"]),
            unrecognized_fields=_signed_at(now),
        )
    )
    return {
        f"{version}.targets.json": raw_targets,
        f"{version}.snapshot.json": raw_snapshot,
        "timestamp.json": _signed(timestamp, signers.timestamp),
    }


def direct_offline(
    vehicle: Vehicle,
    release: ReleaseSpec,
    *,
    version: int,
    signers: Sequence[Signer],
    now: datetime,
    life: timedelta = MOST_LIFE,
) -> bytes:
    """The selection for a USB bundle, by the director's offline role (see offline.py)."""
    fields = _signed_at(now)
    return _signed(Metadata(_selection(vehicle, release, version, _second(now + life), fields)), signers)


def _selection(
    vehicle: Vehicle, release: ReleaseSpec | None, version: int, expires: datetime, fields: dict[str, Any]
) -> Targets:
    targets: dict[str, TargetFile] = {}
    if release is not None:
        document = release_target(release)
        targets[document.path] = document
        for ecu in vehicle.ecus:
            wanted = release.target_for(ecu.kind, ecu.hardware)
            if wanted is None:
                continue
            spec = wanted.spec
            entry = targets.setdefault(spec.target_path, firmware_target(spec))
            entry.custom.setdefault("ecus", {})[ecu.serial] = {"hardware": ecu.hardware}
    return Targets(
        version=version,
        expires=expires,
        targets=targets,
        unrecognized_fields={VEHICLE: vehicle.vehicle_id, **fields},
    )


def _signed(metadata: Metadata[Any], signers: Sequence[Signer]) -> bytes:
    for signer in signers:
        sign_metadata(metadata, signer)
    return to_bytes(metadata)


def _signed_at(now: datetime) -> dict[str, Any]:
    return {SIGNED_AT: now.astimezone(UTC).strftime(TIME_FORM)}


def _second(at: datetime) -> datetime:
    return at.astimezone(UTC).replace(microsecond=0, tzinfo=UTC)
