"""Release documents: read strictly; what they ask of a truck."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from securesystemslib.formats import encode_canonical

from shared.trust.uptane.errors import BadReleaseDocument, NotCompatible
from shared.trust.uptane.health import Health, Heartbeat, TroubleCodes
from shared.trust.uptane.matching import SignedImage, check_bundle
from shared.trust.uptane.release_document import ReleaseSpec, ReleaseTarget, Requirement, read_release
from shared.trust.uptane.safety_policy import Period, SafetyPolicy
from shared.trust.uptane.vehicle import Ecu, Vehicle


def target(kind: str, *hardware: str, order: int) -> ReleaseTarget:
    return ReleaseTarget(
        kind=kind,
        hardware=hardware,
        version="1.2.0",
        release_counter=3,
        length=4096,
        sha256="ab" * 32,
        order=order,
    )


SPEC = ReleaseSpec(
    name="haul",
    version="1.2.0",
    targets=(target("hoist", "H1", order=2), target("brake", "B2", "B3", order=1)),
    compatibility=(Requirement(kind="gateway", counter_at_least=4),),
    safety=SafetyPolicy(forbidden=(Period(start=1320, end=360),), need_consent=True),
)


def test_it_is_read_as_it_was_written() -> None:
    assert read_release(SPEC.dump()) == SPEC
    assert SPEC.target_path.startswith("releases/haul/1.2.0/")


def test_the_path_changes_with_the_content() -> None:
    assert msgspec.structs.replace(SPEC, version="1.2.1").target_path != SPEC.target_path
    looser = msgspec.structs.replace(SPEC, safety=SafetyPolicy(speed_at_most=1))
    assert looser.target_path != SPEC.target_path


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "an unknown field": lambda one: one.update(urgent=True),
    "an unknown restriction": lambda one: one["safety"].update(need_wheel_chocks=True),
    "an unknown requirement": lambda one: one.update(requires=["canary"]),
    "a later format": lambda one: one.update(format=2),
    "no target": lambda one: one.update(targets=[]),
    "a target twice": lambda one: one["targets"].append(one["targets"][0]),
    "hardware shared by two": lambda one: one["targets"][0].update(kind="brake", hardware=["B3"]),
    "two requirements on one kind": lambda one: one["compatibility"].append(one["compatibility"][0]),
    "one standstill signal": lambda one: one["safety"].update(standstill_signals=1),
    "a hash that is none": lambda one: one["targets"][0].update(sha256="AB" * 32),
    "a length of nothing": lambda one: one["targets"][0].update(length=0),
    "tries without end": lambda one: one["targets"][0].update(attempts=1000),
    "a path for a name": lambda one: one.update(name="../haul"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_contradicts_or_is_not_understood_is_refused(name: str) -> None:
    obj = json.loads(SPEC.dump())
    CHANGES[name](obj)
    with pytest.raises(BadReleaseDocument):
        read_release(str(encode_canonical(obj)).encode())


@pytest.mark.parametrize("raw", [b"", b"\xff", b"[" * 100_000, b"{}" + b" " * 70_000, SPEC.dump() + b" "])
def test_what_is_no_document_is_refused(raw: bytes) -> None:
    with pytest.raises(BadReleaseDocument):
        read_release(raw)


WATCHED = msgspec.structs.replace(
    SPEC,
    targets=(
        msgspec.structs.replace(
            SPEC.targets[0],
            health=Health(
                within_ms=20_000,
                dtcs=TroubleCodes(ignored=(0xC10000,)),
                heartbeat=Heartbeat(pgn=65280, source=0x21, at_least_every_ms=500, for_ms=3000),
            ),
        ),
        SPEC.targets[1],
    ),
)


def test_what_an_ecu_must_prove_is_read_as_it_was_written() -> None:
    assert read_release(WATCHED.dump()) == WATCHED


def test_a_release_without_health_has_the_bytes_that_it_had_before_there_was_any() -> None:
    assert b"health" not in SPEC.dump()
    assert json.loads(WATCHED.dump())["targets"][1].keys() == json.loads(SPEC.dump())["targets"][1].keys()


def test_a_reader_that_does_not_know_health_refuses_it_by_name() -> None:
    names = [one for one in ReleaseTarget.__struct_fields__ if one != "health"]
    older = msgspec.defstruct(
        "Older", [(one, Any) for one in names], forbid_unknown_fields=True, kw_only=True
    )
    with pytest.raises(msgspec.ValidationError, match="health"):
        msgspec.convert(json.loads(WATCHED.dump())["targets"][0], older)


HEALTHS: dict[str, dict[str, Any]] = {
    "a check that this agent has not": {"voltage": {"at_least": 24_000}},
    "none, by null": {"dtcs": None},
    "a mask of nothing": {"dtcs": {"status_mask": 0}},
    "a mask of over a byte": {"dtcs": {"status_mask": 256}},
    "a code of over three bytes": {"dtcs": {"ignored": [0x1000000]}},
    "a fraction": {"within_ms": 1.5},
    "for ever": {"within_ms": 10**9},
    "never asked again": {"within_ms": 1000, "every_ms": 2000},
    "no fault for longer than there is time": {"dtcs": {"for_ms": 30_001}},
    "no PGN": {"heartbeat": {"at_least_every_ms": 500, "for_ms": 1000}},
    "a PGN of 19 bits": {"heartbeat": {"pgn": 1 << 18, "at_least_every_ms": 500, "for_ms": 1000}},
    "a PGN with a destination": {"heartbeat": {"pgn": 0xEF21, "at_least_every_ms": 500, "for_ms": 1000}},
    "nobody's address": {
        "heartbeat": {"pgn": 65280, "source": 254, "at_least_every_ms": 500, "for_ms": 1000}
    },
    "shorter than one period": {"heartbeat": {"pgn": 65280, "at_least_every_ms": 500, "for_ms": 400}},
    "longer than there is time": {"heartbeat": {"pgn": 65280, "at_least_every_ms": 500, "for_ms": 60_000}},
}


@pytest.mark.parametrize("name", HEALTHS)
def test_a_health_that_contradicts_itself_or_is_not_understood_is_refused(name: str) -> None:
    obj = json.loads(SPEC.dump())
    obj["targets"][0]["health"] = {"within_ms": 30_000, "every_ms": 1000, **HEALTHS[name]}
    raw = json.dumps(obj, sort_keys=True, separators=(",", ":")).encode()
    with pytest.raises(BadReleaseDocument) as refused:
        read_release(raw)
    assert "canonical" not in str(refused.value), "it was understood"


def truck(*, gateway: int | None, with_gateway: bool = True) -> Vehicle:
    ecus = [Ecu(serial="S1", kind="hoist", hardware="H1"), Ecu(serial="S2", kind="brake", hardware="B3")]
    if with_gateway:
        ecus.append(Ecu(serial="S3", kind="gateway", hardware="G1", installed_counter=gateway))
    return Vehicle(vehicle_id="t", ecus=tuple(ecus))


def images() -> dict[str, Any]:
    return {f"S{n}": SignedImage(spec=one.spec) for n, one in enumerate(SPEC.targets, start=1)}


def test_ecus_go_in_the_releases_order() -> None:
    assignments = check_bundle(SPEC, images(), truck(gateway=4))
    assert [one.ecu.serial for one in assignments] == ["S2", "S1"]


@pytest.mark.parametrize(
    "vehicle", [truck(gateway=3), truck(gateway=None), truck(gateway=4, with_gateway=False)]
)
def test_a_truck_that_lacks_what_is_asked_for_gets_nothing(vehicle: Vehicle) -> None:
    with pytest.raises(NotCompatible):
        check_bundle(SPEC, images(), vehicle)


def test_two_ecus_of_one_serial_are_no_truck() -> None:
    with pytest.raises(ValueError, match="same serial"):
        Vehicle(vehicle_id="t", ecus=(truck(gateway=1).ecus[0],) * 2)
