"""Release documents: read strictly; what they ask of a truck."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from securesystemslib.formats import encode_canonical

from shared.trust.uptane.errors import BadReleaseDocument, NotCompatible
from shared.trust.uptane.matching import check_bundle
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


def truck(*, gateway: int | None, with_gateway: bool = True) -> Vehicle:
    ecus = [Ecu(serial="S1", kind="hoist", hardware="H1"), Ecu(serial="S2", kind="brake", hardware="B3")]
    if with_gateway:
        ecus.append(Ecu(serial="S3", kind="gateway", hardware="G1", installed_counter=gateway))
    return Vehicle(vehicle_id="t", ecus=tuple(ecus))


def images() -> dict[str, Any]:
    return {"S1": SPEC.targets[0].spec, "S2": SPEC.targets[1].spec}


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
