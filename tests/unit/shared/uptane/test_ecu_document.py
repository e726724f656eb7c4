"""An ECU's own document travels in the signed target of its image, and is of exactly that image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from shared.release import FirmwareSpec
from shared.trust.document import BadDocument
from shared.trust.uptane.ecu_document import DOCUMENT, MOST_ECU_DOCUMENT_BYTES
from shared.trust.uptane.errors import StoreUnreadable
from shared.trust.uptane.repository_edit import firmware_target
from shared.trust.uptane.selection import load_selection
from shared.trust.uptane.store import TrustedStore
from sim.uptane_attacker import Attacker
from sim.uptane_world import UptaneWorld

BRAKE = "brake-controller"


@pytest.fixture
def made(world: UptaneWorld) -> dict[str, bytes]:
    """Release 1.2.0, selected: the brake's ECU verifies a document, the hoist's does not."""
    documents: dict[str, bytes] = {}

    def document(spec: FirmwareSpec) -> bytes | None:
        if spec.kind != BRAKE:
            return None
        documents[spec.sha256] = world.ecu_document(spec)
        return documents[spec.sha256]

    world.direct(world.release("1.2.0", 3, document=document))
    return documents


def test_the_truck_has_it_from_signed_metadata(
    world: UptaneWorld, store: TrustedStore, made: dict[str, bytes]
) -> None:
    selection = world.verify(store).selection
    assert selection is not None
    brake, hoist = selection.assignments
    assert brake.document == made[brake.spec.sha256]
    assert hoist.document is None
    assert load_selection(selection.dump(), world.vehicle) == selection


def test_a_kept_one_that_is_of_another_firmware_is_not_read(
    world: UptaneWorld, store: TrustedStore, made: dict[str, bytes]
) -> None:
    selection = world.verify(store).selection
    assert selection is not None
    brake, _ = selection.assignments
    other = world.ecu_document(replace(brake.spec, version="1.2.1"))
    kept = replace(selection, assignments=(replace(brake, document=other),))
    with pytest.raises(StoreUnreadable, match="version"):
        load_selection(kept.dump(), world.vehicle)


def say(path_begins: str, document: Any) -> Callable[[dict[str, Any]], None]:
    """Put a document into the targets whose path begins so."""

    def change(signed: dict[str, Any]) -> None:
        for path, entry in signed["targets"].items():
            if path.startswith(path_begins):
                entry["custom"][DOCUMENT] = document

    return change


def test_the_director_leaves_it_out_or_says_the_same(
    world: UptaneWorld, store: TrustedStore, made: dict[str, bytes]
) -> None:
    [document] = made.values()
    assert DOCUMENT.encode() not in world.served["director", f"{world.directed}.targets.json"]
    same = Attacker.insider(world)
    same.redirect(say(f"{BRAKE}/", document.decode()))
    assert same.refusal(store) is None
    for other in (document.decode() + " ", "", None):
        bad = Attacker.insider(world)
        bad.redirect(say(f"{BRAKE}/", other))
        assert bad.refusal(store) == "targets_differ"
    added = Attacker.insider(world)
    added.redirect(say("hoist-controller/", document.decode()))
    assert added.refusal(store) == "targets_differ"


def _of_another(world: UptaneWorld) -> str:
    ecu = world.vehicle.ecus[0]
    return world.ecu_document(world.spec(ecu, "1.2.1", 3)).decode()


WRONG: dict[str, Callable[[UptaneWorld], Any]] = {
    "no text": lambda _: {"signed": {}},
    "nothing": lambda _: None,
    "no document": lambda _: "{}",
    "of another firmware": _of_another,
    "too long": lambda _: "x" * (MOST_ECU_DOCUMENT_BYTES + 1),
    "nested without end": lambda _: "[" * MOST_ECU_DOCUMENT_BYTES,
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_document_of_this_image_is_refused(
    world: UptaneWorld, store: TrustedStore, made: dict[str, bytes], name: str
) -> None:
    bad = Attacker.insider(world)
    bad.edit("image", BRAKE, say(f"{BRAKE}/", WRONG[name](world)))
    bad.relist("image")
    assert bad.refusal(store) == "metadata_unreadable"


def test_the_release_tool_does_not_make_such_a_target(world: UptaneWorld) -> None:
    spec = world.spec(world.vehicle.ecus[0], "1.2.0", 3)
    assert firmware_target(spec).custom.keys() == {"kind", "hardware", "version", "release_counter"}
    for field, value in {
        "kind": "brakes",
        "hardware": ("H0", "H1"),
        "version": "1.2.1",
        "release_counter": 4,
        "length": 7,
        "sha256": "ab" * 32,
    }.items():
        other: Any = {field: value}
        with pytest.raises(BadDocument, match=f"of another firmware: {field}"):
            firmware_target(spec, world.ecu_document(replace(spec, **other)))
