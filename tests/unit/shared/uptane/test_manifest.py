"""Vehicle manifests: what the office believes, and each alarm by its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner

from shared.trust.uptane.manifest import EcuReport, InstalledImage, make_manifest, say_time
from shared.trust.uptane.manifest_check import (
    MOST_STORES,
    Alarm,
    KnownEcu,
    KnownVehicle,
    Verdict,
    verify_manifest,
)
from sim.uptane_world import NOW

GATEWAY, BRAKE, THIEF = (CryptoSigner(Ed25519PrivateKey.generate()) for _ in range(3))
IMAGE = InstalledImage(filename="brake/1.1.0/x.bin", length=4096, sha256="ab" * 32, release_counter=2)
KNOWN = KnownVehicle(
    vehicle_id="truck-7",
    primary="GW-1",
    gateway=GATEWAY.public_key,
    ecus={
        "GW-1": KnownEcu(kind="gateway", hardware="G1"),
        "SN-0": KnownEcu(kind="brake", hardware="H0", key=BRAKE.public_key, expected="ab" * 32, counter=2),
    },
)


def report(serial: str = "SN-0", **fields: Any) -> EcuReport:
    kind, hardware = ("gateway", "G1") if serial == "GW-1" else ("brake", "H0")
    made = EcuReport(
        serial=serial,
        kind=kind,
        hardware=hardware,
        installed=IMAGE if serial == "SN-0" else None,
        store_id="store-a",
        seq=5,
        at=say_time(NOW),
    )
    return msgspec.structs.replace(made, **fields)


def manifest(*reports: EcuReport, **fields: Any) -> bytes:
    wanted: dict[str, Any] = {
        "vehicle_id": "truck-7",
        "primary": "GW-1",
        "store_id": "store-a",
        "seq": 5,
        "at": NOW,
        "gateway": GATEWAY,
        "ecu_signers": {"SN-0": BRAKE},
    }
    wanted.update(fields)
    return make_manifest(
        wanted.pop("vehicle_id"), wanted.pop("primary"), reports or (report("GW-1"), report()), **wanted
    )


def judge(raw: bytes, known: KnownVehicle = KNOWN, now: datetime = NOW) -> Verdict:
    return verify_manifest(raw, known, now=now)


def test_an_honest_manifest_raises_no_alarm() -> None:
    verdict = judge(manifest())
    assert verdict.alarms == ()
    assert verdict.report is not None
    assert (verdict.vehicle.store_id, verdict.vehicle.seq, verdict.vehicle.at) == ("store-a", 5, NOW)


REFUSED: dict[str, tuple[Callable[[], bytes], Alarm]] = {
    "not a manifest": (lambda: b"\xff", Alarm.UNREADABLE),
    "endless": (lambda: b"[" * 300_000, Alarm.UNREADABLE),
    "a time that is none": (
        lambda: manifest().replace(say_time(NOW).encode(), b"yesterday"),
        Alarm.UNREADABLE,
    ),
    "signed by a stranger": (lambda: manifest(gateway=THIEF), Alarm.UNSIGNED),
    "changed on the way": (lambda: manifest().replace(b'"seq":5', b'"seq":6', 1), Alarm.UNSIGNED),
    "another truck's": (lambda: manifest(vehicle_id="truck-8"), Alarm.WRONG_VEHICLE),
    "by another gateway": (lambda: manifest(primary="GW-2"), Alarm.WRONG_VEHICLE),
    "one ECU twice": (lambda: manifest(report("GW-1"), report(), report()), Alarm.ECU_TWICE),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_the_trucks_word_changes_nothing(name: str) -> None:
    make, alarm = REFUSED[name]
    verdict = judge(make())
    assert [one.alarm for one in verdict.alarms] == [alarm]
    assert verdict.report is None
    assert verdict.vehicle is KNOWN


def images(**fields: Any) -> InstalledImage:
    return msgspec.structs.replace(IMAGE, **fields)


ALARMS: dict[str, tuple[Callable[[], bytes], list[Alarm]]] = {
    "an ECU that nobody knows": (
        lambda: manifest(report("GW-1"), report(), report(serial="SN-9")),
        [Alarm.UNKNOWN_ECU],
    ),
    "an ECU is missing": (lambda: manifest(report("GW-1")), [Alarm.ECU_MISSING]),
    "the gateway speaks for an ECU with its own key": (
        lambda: manifest(ecu_signers={}),
        [Alarm.REPORT_UNSIGNED],
    ),
    "an ECU's old report": (lambda: manifest(report("GW-1"), report(seq=4)), [Alarm.REPORT_REPLAYED]),
    "an ECU was swapped": (lambda: manifest(report("GW-1"), report(hardware="H9")), [Alarm.HARDWARE_CHANGED]),
    "it runs what nobody sent": (
        lambda: manifest(report("GW-1"), report(installed=images(sha256="cd" * 32))),
        [Alarm.MISMATCH],
    ),
    "it runs nothing": (lambda: manifest(report("GW-1"), report(installed=None)), [Alarm.MISMATCH]),
    "it went back": (
        lambda: manifest(report("GW-1"), report(installed=images(release_counter=1))),
        [Alarm.COUNTER_BACKWARDS],
    ),
    "the truck saw attacks": (
        lambda: manifest(report("GW-1", attacks=("metadata_rolled_back",)), report()),
        [Alarm.ATTACK_REPORTED],
    ),
    "its clock is ahead": (lambda: manifest(at=NOW + timedelta(days=31)), [Alarm.CLOCK_AHEAD]),
}


@pytest.mark.parametrize("name", ALARMS)
def test_each_alarm_by_its_name(name: str) -> None:
    make, alarms = ALARMS[name]
    verdict = judge(make())
    assert [one.alarm for one in verdict.alarms] == alarms
    assert verdict.report is not None


@pytest.mark.parametrize("seq", [4, 5])
def test_a_replay_is_refused_and_named(seq: int) -> None:
    known = judge(manifest()).vehicle
    verdict = judge(manifest(report("GW-1", seq=seq), report(seq=seq), seq=seq), known)
    assert [one.alarm for one in verdict.alarms] == [Alarm.REPLAY]
    assert verdict.vehicle is known


def test_a_lost_database_begins_anew_and_the_old_one_stays_dead() -> None:
    known = judge(manifest()).vehicle
    fresh = [report(name, store_id="store-b", seq=0) for name in ("GW-1", "SN-0")]
    verdict = judge(manifest(*fresh, store_id="store-b", seq=0), known)
    assert verdict.alarms == ()
    old = [report(name, seq=99) for name in ("GW-1", "SN-0")]
    assert [one.alarm for one in judge(manifest(*old, seq=99), verdict.vehicle).alarms] == [Alarm.REPLAY]


def test_remembered_stores_are_bounded() -> None:
    known = KNOWN
    for number in range(MOST_STORES + 5):
        fresh = [report(name, store_id=f"s{number}", seq=0) for name in ("GW-1", "SN-0")]
        known = judge(manifest(*fresh, store_id=f"s{number}", seq=0), known).vehicle
    assert len(known.past_stores) == MOST_STORES


def test_a_clock_gone_backwards_is_named_and_known_time_stays() -> None:
    known = judge(manifest()).vehicle
    earlier = NOW - timedelta(days=1)
    again = [report(name, seq=6) for name in ("GW-1", "SN-0")]
    verdict = judge(manifest(*again, seq=6, at=earlier), known)
    assert [one.alarm for one in verdict.alarms] == [Alarm.CLOCK_BACKWARDS]
    assert verdict.vehicle.at == NOW


def test_a_clock_that_ran_ahead_once_is_not_held_against_the_truck() -> None:
    known = judge(manifest(at=NOW + timedelta(days=31))).vehicle
    again = [report(name, seq=6) for name in ("GW-1", "SN-0")]
    assert judge(manifest(*again, seq=6), known).alarms == ()


def test_counters_rise_by_believed_reports_only() -> None:
    newer = report(installed=images(release_counter=7))
    known = replace(KNOWN, ecus={**KNOWN.ecus, "SN-0": replace(KNOWN.ecus["SN-0"], expected=None)})
    assert judge(manifest(report("GW-1"), newer), known).vehicle.ecus["SN-0"].counter == 7
    forged = judge(manifest(report("GW-1"), newer, ecu_signers={"SN-0": THIEF}), known)
    assert forged.vehicle.ecus["SN-0"].counter == 2


def test_a_gateway_that_is_no_ecu_of_the_inventory_still_tells_the_trucks_alarms() -> None:
    known = replace(KNOWN, ecus={"SN-0": KNOWN.ecus["SN-0"]})
    said = report("GW-1", attacks=("journal_lost",), installed=IMAGE)
    verdict = judge(manifest(said, report()), known)
    assert [(one.alarm, one.text, one.serial) for one in verdict.alarms] == [
        (Alarm.ATTACK_REPORTED, "journal_lost", "GW-1")
    ]
    assert verdict.vehicle.ecus.keys() == {"SN-0"}
    # Its word for another serial counts as little as before.
    stranger = report("SN-9", attacks=("journal_lost",))
    assert [one.alarm for one in judge(manifest(report("GW-1"), report(), stranger), known).alarms] == [
        Alarm.UNKNOWN_ECU
    ]
