"""What the director says of a truck (Uptane 5.4.4.6, steps 6 to 8), held against what was signed offline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from shared.trust.uptane import errors
from shared.trust.uptane.errors import MetadataRefused
from shared.trust.uptane.matching import served_name
from shared.trust.uptane.release_document import MOST_RELEASE_BYTES
from shared.trust.uptane.selection import load_selection
from shared.trust.uptane.steps import Wanted, drive
from shared.trust.uptane.store import TrustedStore
from shared.trust.uptane.time_policy import Reading, TimePolicy
from shared.trust.uptane.verify import verify
from sim.uptane_attacker import Attacker
from sim.uptane_world import BUILT_AT, NOW, UptaneWorld

Change = Callable[[dict[str, Any]], None]


def put(key: str, value: Any) -> Change:
    return lambda signed: signed.update({key: value})


def test_a_selection_comes_back_from_the_disk_as_it_was(world: UptaneWorld, store: TrustedStore) -> None:
    selection = world.verify(store).selection
    assert selection is not None
    assert load_selection(selection.dump(), world.vehicle) == selection
    first, second = world.vehicle.ecus
    other = replace(world.vehicle, ecus=(first,))
    swapped = replace(world.vehicle, ecus=(replace(first, hardware="H9"), second))
    for raw, vehicle in (
        (b"{}", world.vehicle),
        (selection.dump().replace(b"haul", b"h ul"), world.vehicle),
        (selection.dump(), other),
        (selection.dump(), swapped),
    ):
        with pytest.raises(errors.StoreUnreadable):
            load_selection(raw, vehicle)


# The director's targets (5.4.4.6, steps 6 to 8)


def images_of(signed: dict[str, Any]) -> list[dict[str, Any]]:
    return [one for path, one in signed["targets"].items() if not path.startswith("releases/")]


def delegates(signed: dict[str, Any]) -> None:
    signed["delegations"] = {"keys": {}, "roles": []}


def named_twice(signed: dict[str, Any]) -> None:
    first, second = images_of(signed)
    second["custom"]["ecus"].update(first["custom"]["ecus"])


def unknown_ecu(signed: dict[str, Any]) -> None:
    images_of(signed)[0]["custom"]["ecus"]["SN-99"] = {"hardware": "H0"}


def other_hardware(signed: dict[str, Any]) -> None:
    images_of(signed)[0]["custom"]["ecus"]["SN-0"] = {"hardware": "H9"}


def without_ecu(signed: dict[str, Any]) -> None:
    images_of(signed)[0]["custom"]["ecus"] = {}


def longer(signed: dict[str, Any]) -> None:
    images_of(signed)[0]["length"] += 1


def other_hash(signed: dict[str, Any]) -> None:
    images_of(signed)[0]["hashes"]["sha256"] = "0" * 64


def other_algorithm(signed: dict[str, Any]) -> None:
    images_of(signed)[0]["hashes"] = {"md5": "0" * 32}


def other_counter(signed: dict[str, Any]) -> None:
    images_of(signed)[0]["custom"]["release_counter"] = 3


def other_kind(signed: dict[str, Any]) -> None:
    images_of(signed)[0]["custom"]["kind"] = "hoist-controller"


def more_said(signed: dict[str, Any]) -> None:
    images_of(signed)[0]["custom"]["force"] = True


def other_release_hash(signed: dict[str, Any]) -> None:
    [release] = [one for path, one in signed["targets"].items() if path.startswith("releases/")]
    release["hashes"]["sha256"] = "0" * 64


def no_release(signed: dict[str, Any]) -> None:
    for path in [path for path in signed["targets"] if path.startswith("releases/")]:
        del signed["targets"][path]


def partial(signed: dict[str, Any]) -> None:
    path = next(path for path in signed["targets"] if path.startswith("hoist"))
    del signed["targets"][path]


def unknown_target(signed: dict[str, Any]) -> None:
    path = next(path for path in signed["targets"] if path.startswith("hoist"))
    signed["targets"][path.replace("1.1.0", "1.1.1")] = signed["targets"].pop(path)


def swapped(signed: dict[str, Any]) -> None:
    """The brake's image for the hoist's ECU."""
    first, second = images_of(signed)
    first["custom"]["ecus"], second["custom"]["ecus"] = second["custom"]["ecus"], first["custom"]["ecus"]


DIRECTED: dict[str, tuple[Change, type[MetadataRefused]]] = {
    "delegates": (delegates, errors.DirectorDelegates),
    "for another vehicle": (put("vehicle", "truck-8"), errors.WrongVehicle),
    "for no vehicle": (lambda signed: signed.pop("vehicle"), errors.WrongVehicle),
    "an ECU named twice": (named_twice, errors.EcuTwice),
    "an ECU that the truck has not": (unknown_ecu, errors.UnknownEcu),
    "other hardware": (other_hardware, errors.WrongHardware),
    "an image for no ECU": (without_ecu, errors.Unreadable),
    "another length": (longer, errors.TargetsDiffer),
    "another hash": (other_hash, errors.TargetsDiffer),
    "a hash that nobody checks": (other_algorithm, errors.TargetsDiffer),
    "another release counter": (other_counter, errors.TargetsDiffer),
    "another kind": (other_kind, errors.TargetsDiffer),
    "more than was signed": (more_said, errors.TargetsDiffer),
    "another hash of the release": (other_release_hash, errors.TargetsDiffer),
    "no release": (no_release, errors.NoRelease),
    "half of a release": (partial, errors.PartialBundle),
    "an image that was never signed": (unknown_target, errors.NotInImageRepository),
}


@pytest.mark.parametrize("name", DIRECTED)
def test_what_a_director_may_not_say(world: UptaneWorld, store: TrustedStore, name: str) -> None:
    change, refusal = DIRECTED[name]
    bad = Attacker.insider(world)
    bad.redirect(change)
    outcome = bad.verify(store)
    assert outcome.selection is None
    assert type(outcome.refused) is refusal


def test_an_image_for_another_ecu_of_this_truck(world: UptaneWorld, store: TrustedStore) -> None:
    bad = Attacker.insider(world)
    bad.redirect(swapped)
    # The search itself stops: the brake family may sign for its own hardware only.
    assert bad.refusal(store) == "target_not_found"
    wide = Attacker.insider(world)
    wide.redirect(swapped)
    wide.edit("image", "targets", every_hardware)
    wide.relist("image")
    assert wide.refusal(store) == "wrong_hardware"


def both_say(bad: Attacker, role: str, change: Change) -> None:
    """Director and image repository agree on a changed entry of the brake's image or of the release."""

    def entries(signed: dict[str, Any]) -> None:
        for path, entry in list(signed["targets"].items()):
            if path.startswith("releases/" if role == "targets" else role):
                change({"path": path, "entry": entry, "targets": signed["targets"]})

    bad.edit("image", role, entries)
    bad.relist("image")
    bad.redirect(entries)


def test_a_hash_that_nobody_would_check_is_not_taken(world: UptaneWorld, store: TrustedStore) -> None:
    bad = Attacker.insider(world)
    both_say(bad, "brake-controller", lambda one: one["entry"]["hashes"].update(sha512="0" * 128))
    assert bad.refusal(store) == "targets_differ"


def test_right_kind_on_other_hardware(world: UptaneWorld, store: TrustedStore) -> None:
    bad = Attacker.insider(world)
    both_say(bad, "brake-controller", lambda one: one["entry"]["custom"].update(hardware=["H9"]))
    assert bad.refusal(store) == "wrong_hardware"


def test_right_hardware_of_another_kind(world: UptaneWorld, store: TrustedStore) -> None:
    first, second = world.vehicle.ecus
    world.vehicle = replace(world.vehicle, ecus=(replace(first, kind="fan-controller"), second))
    assert world.refusal(store) == "wrong_hardware"


def test_a_release_lies_under_its_own_name(world: UptaneWorld, store: TrustedStore) -> None:
    bad = Attacker.insider(world)
    [raw] = [raw for (_, name), raw in world.served.items() if "targets/releases/" in name]

    def rename(one: dict[str, Any]) -> None:
        path = f"releases/haul/9.9.9/{'0' * 64}.json"
        one["targets"][path] = one["targets"].pop(one["path"])
        bad.served["image", served_name(path, one["entry"]["hashes"]["sha256"])] = raw

    both_say(bad, "targets", rename)
    assert bad.refusal(store) == "release_unreadable"


def test_a_release_over_the_bound_is_not_downloaded(world: UptaneWorld, store: TrustedStore) -> None:
    bad = Attacker.insider(world)
    both_say(bad, "targets", lambda one: one["entry"].update(length=MOST_RELEASE_BYTES + 1))
    asked: list[Wanted] = []

    def fetch(wanted: Wanted) -> bytes | None:
        asked.append(wanted)
        return bad.fetch(wanted)

    outcome = drive(verify(store, world.vehicle, Reading(wall=NOW), TimePolicy(built_at=BUILT_AT)), fetch)
    assert outcome.refused is not None
    assert outcome.refused.code == "release_unreadable"
    assert not any("releases/" in one.name for one in asked)


def every_hardware(signed: dict[str, Any]) -> None:
    for role in signed["delegations"]["roles"]:
        role["hardware"] = ["H0", "H1"]


def test_a_lower_release_counter_is_refused(world: UptaneWorld, store: TrustedStore) -> None:
    assert world.refusal(store.ran("SN-1", 3)) == "release_counter_rolled_back"


def test_the_release_document_must_be_the_signed_bytes(world: UptaneWorld, store: TrustedStore) -> None:
    [name] = [name for where, name in world.served if where == "image" and "targets/releases/" in name]
    world.served["image", name] = world.served["image", name].replace(b"haul", b"hall")
    outcome = world.verify(store)
    assert isinstance(outcome.refused, errors.BadReleaseDocument)
    assert "not the bytes that were signed" in outcome.refused.message
    del world.served["image", name]
    assert world.refusal(store) == "metadata_missing"


def test_nothing_of_what_was_refused_is_kept(world: UptaneWorld, store: TrustedStore) -> None:
    """A repository that fails anywhere leaves versions and times as they were."""
    world.release("1.2.0", 3)
    bad = Attacker.insider(world)
    bad.edit("image", "targets", put("x", 1))
    outcome = bad.verify(store)
    assert outcome.refused is not None
    assert outcome.store.image == store.image
    assert outcome.store.times == store.times
