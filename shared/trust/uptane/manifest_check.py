"""What the office makes of a manifest: whom it believes, and every alarm by its name. Pure.

Uptane 5.3.2.1, steps 3 and 4. A manifest that is not the gateway's word is refused whole and changes
nothing; whatever else is wrong in it is an alarm, and what it says is still shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import Key, Signature

from shared.since_310 import StrEnum
from shared.trust.uptane.manifest import (
    BadManifest,
    EcuReport,
    SignedReport,
    VehicleReport,
    payload_of,
    read_manifest,
    read_time,
)

MOST_STORES = 16
"""Lost databases of one truck that are remembered; replays from older ones fail by their time."""


class Alarm(StrEnum):
    """What somebody must look at."""

    UNREADABLE = "manifest_unreadable"
    UNSIGNED = "manifest_unsigned"
    WRONG_VEHICLE = "manifest_of_another_vehicle"
    REPLAY = "manifest_replayed"
    CLOCK_BACKWARDS = "clock_gone_backwards"
    CLOCK_AHEAD = "clock_ahead"
    REPORT_UNSIGNED = "ecu_report_unsigned"
    REPORT_REPLAYED = "ecu_report_replayed"
    UNKNOWN_ECU = "ecu_unknown"
    ECU_TWICE = "ecu_reported_twice"
    ECU_MISSING = "ecu_missing"
    HARDWARE_CHANGED = "ecu_hardware_changed"
    MISMATCH = "image_mismatch"
    COUNTER_BACKWARDS = "release_counter_gone_backwards"
    ATTACK_REPORTED = "attack_reported"


_DISBELIEVED = frozenset({Alarm.UNKNOWN_ECU, Alarm.REPORT_UNSIGNED, Alarm.REPORT_REPLAYED})
"""With these, what a report says of its ECU counts nothing."""


@dataclass(frozen=True, kw_only=True)
class KnownEcu:
    """An ECU of the inventory. `key` None: the gateway signs for it.

    `expected` is the SHA-256 of the image that it should hold by the office's records, None when the
    office has no opinion (a job is under way). `counter` is the highest that it reported.
    """

    kind: str
    hardware: str
    key: Key | None = None
    expected: str | None = None
    counter: int = 0


@dataclass(frozen=True, kw_only=True)
class KnownVehicle:
    """A truck of the inventory, and what its earlier manifests said."""

    vehicle_id: str
    primary: str
    gateway: Key
    ecus: Mapping[str, KnownEcu]
    store_id: str = ""
    seq: int = -1
    past_stores: tuple[str, ...] = ()
    at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Raised:
    """One alarm; `serial` is empty when it is the truck's."""

    alarm: Alarm
    text: str
    serial: str = ""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """`report` is None when the manifest is refused: then `vehicle` is unchanged."""

    report: VehicleReport | None
    vehicle: KnownVehicle
    alarms: tuple[Raised, ...]


def verify_manifest(
    raw: bytes, vehicle: KnownVehicle, *, now: datetime, tolerance: timedelta = timedelta(minutes=10)
) -> Verdict:
    """Check a manifest from the truck's connection. `now` is the office's time, UTC. Never raises."""
    try:
        manifest = read_manifest(raw)
    except BadManifest as error:
        return _refused(vehicle, Alarm.UNREADABLE, error.message)
    report = manifest.signed
    if not _signed_by(vehicle.gateway, payload_of(report), manifest.signatures):
        return _refused(vehicle, Alarm.UNSIGNED, "not signed by this truck's gateway")
    if (report.vehicle, report.primary) != (vehicle.vehicle_id, vehicle.primary):
        return _refused(vehicle, Alarm.WRONG_VEHICLE, f"says it is {report.vehicle} by {report.primary}")
    if _is_replay(report.store_id, report.seq, vehicle):
        return _refused(vehicle, Alarm.REPLAY, f"manifest {report.seq} of store {report.store_id} is not new")
    serials = [one.signed.serial for one in report.ecus]
    if len(set(serials)) != len(serials):
        return _refused(vehicle, Alarm.ECU_TWICE, "one ECU is reported twice")
    alarms = [*_clock(report, vehicle, now, tolerance)]
    for one in report.ecus:
        alarms += _judge_report(one, report, vehicle)
    alarms += [
        Raised(alarm=Alarm.ECU_MISSING, serial=serial, text="the inventory has it, the manifest has not")
        for serial in vehicle.ecus.keys() - set(serials)
    ]
    disbelieved = frozenset(one.serial for one in alarms if one.alarm in _DISBELIEVED)
    known = _advanced(vehicle, report, now, disbelieved)
    return Verdict(report=report, vehicle=known, alarms=tuple(alarms))


def _refused(vehicle: KnownVehicle, alarm: Alarm, text: str) -> Verdict:
    return Verdict(report=None, vehicle=vehicle, alarms=(Raised(alarm=alarm, text=text),))


def _is_replay(store_id: str, seq: int, vehicle: KnownVehicle) -> bool:
    if store_id == vehicle.store_id:
        return seq <= vehicle.seq
    return store_id in vehicle.past_stores


def _clock(report: VehicleReport, vehicle: KnownVehicle, now: datetime, tolerance: timedelta) -> list[Raised]:
    at = read_time(report.at)
    if vehicle.at is not None and at < vehicle.at - tolerance:
        text = f"it says {at.isoformat()}, earlier it said {vehicle.at.isoformat()}"
        return [Raised(alarm=Alarm.CLOCK_BACKWARDS, text=text)]
    if at > now + tolerance:
        return [Raised(alarm=Alarm.CLOCK_AHEAD, text=f"it says {at.isoformat()}, now is {now.isoformat()}")]
    return []


def _judge_report(one: SignedReport, whole: VehicleReport, vehicle: KnownVehicle) -> list[Raised]:
    report = one.signed
    known = vehicle.ecus.get(report.serial)
    # The gateway need not be an ECU of the inventory: the truck's alarms travel in its report all the same.
    if known is None and report.serial != vehicle.primary:
        return [_raised(Alarm.UNKNOWN_ECU, report, "the inventory does not have it")]
    key = known.key if known is not None else None
    if not _signed_by(key or vehicle.gateway, payload_of(report), one.signatures):
        return [_raised(Alarm.REPORT_UNSIGNED, report, "not signed by the key of this ECU")]
    if (report.store_id, report.seq) != (whole.store_id, whole.seq):
        return [_raised(Alarm.REPORT_REPLAYED, report, f"it is of manifest {report.seq}, not {whole.seq}")]
    attacks = [_raised(Alarm.ATTACK_REPORTED, report, code) for code in report.attacks]
    if known is None:
        return attacks
    found: list[Raised] = []
    if (report.kind, report.hardware) != (known.kind, known.hardware):
        text = f"{report.kind} on {report.hardware}, known as {known.kind} on {known.hardware}"
        found.append(_raised(Alarm.HARDWARE_CHANGED, report, text))
    held = report.installed.sha256 if report.installed is not None else None
    if known.expected is not None and held != known.expected:
        text = f"holds {held or 'no valid image'}, {known.expected} is expected"
        found.append(_raised(Alarm.MISMATCH, report, text))
    if report.installed is not None and report.installed.release_counter < known.counter:
        text = f"release counter {report.installed.release_counter}, it had {known.counter}"
        found.append(_raised(Alarm.COUNTER_BACKWARDS, report, text))
    return [*found, *attacks]


def _raised(alarm: Alarm, report: EcuReport, text: str) -> Raised:
    return Raised(alarm=alarm, serial=report.serial, text=text)


def _signed_by(key: Key, payload: bytes, signatures: Mapping[str, str]) -> bool:
    said = signatures.get(key.keyid)
    if said is None:
        return False
    try:
        key.verify_signature(Signature(key.keyid, said), payload)
    except UnverifiedSignatureError:
        return False
    return True


def _advanced(
    vehicle: KnownVehicle, report: VehicleReport, now: datetime, disbelieved: frozenset[str]
) -> KnownVehicle:
    """What is known after this manifest. No time and no counter goes back by it."""
    past = vehicle.past_stores
    if vehicle.store_id and report.store_id != vehicle.store_id:
        past = (*past, vehicle.store_id)[-MOST_STORES:]
    ecus = dict(vehicle.ecus)
    for one in report.ecus:
        serial, installed = one.signed.serial, one.signed.installed
        if installed is not None and serial in ecus and serial not in disbelieved:
            counter = max(ecus[serial].counter, installed.release_counter)
            ecus[serial] = replace(ecus[serial], counter=counter)
    # A clock that ran ahead must not make every later manifest look old.
    at = min(read_time(report.at), now)
    return replace(
        vehicle,
        store_id=report.store_id,
        seq=report.seq,
        past_stores=past,
        at=at if vehicle.at is None else max(at, vehicle.at),
        ecus=ecus,
    )
