"""PURE: a truck as the director knows it, what it shall have, and what its ECUs are expected to hold."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import msgspec

from control_plane.jobs.model import Job
from shared.states import JobState
from shared.trust.keys import load_role_key
from shared.trust.uptane.manifest_check import KnownEcu, KnownVehicle
from shared.trust.uptane.release_document import ReleaseSpec
from shared.trust.uptane.vehicle import Ecu, Vehicle

DIRECTS = frozenset(
    {
        *(JobState.READY, JobState.DISPATCHED, JobState.DOWNLOADING, JobState.FLASHING),
        *(JobState.SILENT, JobState.DONE),
    }
)
"""States of a job in which its release is the truck's. Cancelled, failed, not yet due: nothing is."""

MOST_GAP = 1_000_000
"""How far above the office's own version a truck's report is followed. A restored backup is days behind,
a few versions each; more than this was counted up by a thief, and is undone by rotating the key."""


TOLD = tuple(
    f"{repository}/{role}"
    for repository in ("director", "image")
    for role in ("root", "timestamp", "snapshot", "targets", "offline")
)
"""Names of metadata versions in a hello."""


@dataclass(frozen=True, kw_only=True)
class EcuRecord:
    """A registered ECU. `counter` is the highest release counter that it reported; `settled_sha256` what
    it held when the office last agreed, since `settled_at`.
    """

    serial: str
    kind: str
    hardware: str
    public_key: str | None = None
    counter: int = 0
    settled_sha256: str | None = None
    settled_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class VehicleRecord:
    """A truck's row. `revision` counts registrations (0: none yet), `version` what was signed for it.

    `metadata_versions` are those that the truck said it trusts, by "director/timestamp" and the like.
    """

    device_id: str
    revision: int
    primary_serial: str | None
    gateway_key: str | None
    version: int
    store_id: str
    seq: int
    past_stores: tuple[str, ...]
    said_at: datetime | None
    manifest_sha256: str | None
    manifest_at: datetime | None
    metadata_versions: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What was chosen for a truck; `job_id` when a job chose it. `release_path` None: nothing."""

    release_path: str | None
    job_id: str | None
    chosen_by: str
    chosen_at: datetime


def told_versions(versions: Mapping[str, int]) -> dict[str, int]:
    """Of a hello's metadata versions those of roles that every truck has; others are not kept."""
    return {name: versions[name] for name in TOLD if name in versions}


def vehicle_of(device_id: str, ecus: Sequence[EcuRecord]) -> Vehicle:
    """The truck as the director signs for it."""
    return Vehicle(
        vehicle_id=device_id,
        ecus=tuple(
            Ecu(serial=one.serial, kind=one.kind, hardware=one.hardware, installed_counter=one.counter)
            for one in ecus
        ),
    )


def fingerprint(release_path: str | None, ecus: Sequence[EcuRecord], keys: str) -> str:
    """Changes when something else would be signed."""
    said = (release_path, [(one.serial, one.kind, one.hardware) for one in ecus], keys)
    return hashlib.sha256(msgspec.json.encode(said)).hexdigest()


def releases_of_job(job: Job, releases: Mapping[str, ReleaseSpec]) -> list[str]:
    """Paths of the releases that bring every firmware that a job names, byte for byte."""
    wanted = {(target.kind, target.sha256) for target in job.targets}
    return [
        path
        for path, release in releases.items()
        if wanted <= {(target.kind, target.sha256) for target in release.targets}
    ]


def governs(job: Job | None, choice: Choice | None) -> bool:
    """Whether the truck's newest job decides, not what was chosen before it."""
    if job is None:
        return False
    return choice is None or choice.job_id == job.job_id or job.created_at > choice.chosen_at


def allowed_sha256(
    ecu: EcuRecord, job: Job | None, release: ReleaseSpec | None, *, alone: bool
) -> frozenset[str] | None:
    """What this ECU may hold by the office's records; None while the office can't say.

    `job` is the truck's newest, `release` what is directed now, `alone`: no other ECU of the truck is of
    this kind. A job that is done has brought its firmware; one that is live, or ended otherwise, may have
    or not; the same goes for a release that an operator chose.
    """
    named = release.target_for(ecu.kind, ecu.hardware) if release is not None else None
    brought = (
        {target.sha256 for target in job.targets if target.kind == ecu.kind} if job is not None else set()
    )
    if named is not None:
        brought = {named.sha256}
    fresh = job is not None and (ecu.settled_at is None or job.updated_at > ecu.settled_at)
    if job is not None and fresh and job.state is JobState.DONE and len(brought) == 1 and (alone or named):
        return frozenset(brought)
    if ecu.settled_sha256 is None:
        return None
    if (named is not None and ecu.settled_sha256 != named.sha256) or (fresh and brought):
        return frozenset({ecu.settled_sha256, *brought})
    return frozenset({ecu.settled_sha256})


def known_vehicle(
    vehicle: VehicleRecord,
    ecus: Sequence[EcuRecord],
    allowed: Mapping[str, frozenset[str] | None],
) -> KnownVehicle | None:
    """The truck as its manifests are judged; None when nobody registered its gateway's key.

    `allowed` is by serial; where an ECU may hold one of several images, the caller judges.
    """
    if vehicle.gateway_key is None or vehicle.primary_serial is None:
        return None
    return KnownVehicle(
        vehicle_id=vehicle.device_id,
        primary=vehicle.primary_serial,
        gateway=load_role_key(vehicle.gateway_key.encode()),
        ecus={
            one.serial: KnownEcu(
                kind=one.kind,
                hardware=one.hardware,
                key=None if one.public_key is None else load_role_key(one.public_key.encode()),
                expected=_only(allowed.get(one.serial)),
                counter=one.counter,
            )
            for one in ecus
        },
        store_id=vehicle.store_id,
        seq=vehicle.seq,
        past_stores=vehicle.past_stores,
        at=vehicle.said_at,
    )


def _only(allowed: frozenset[str] | None) -> str | None:
    return next(iter(allowed)) if allowed is not None and len(allowed) == 1 else None
