"""The search for who signed a target: order, ends, patterns, hardware, bounds."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from shared.trust.uptane.delegation import MOST_DEPTH, MOST_ROLES_ASKED
from shared.trust.uptane.store import TrustedStore
from sim.uptane_attacker import Attacker, forged
from sim.uptane_world import UptaneWorld

BRAKE = "brake-controller"


def entry(world: Attacker, name: str, **fields: Any) -> dict[str, Any]:
    """A delegation like the brake family's, under another name."""
    roles = json.loads(world.newest("image", "targets")[1])["signed"]["delegations"]["roles"]
    like = copy.deepcopy(next(role for role in roles if role["name"] == BRAKE))
    return {**like, "name": name, **fields}


def serve_role(bad: Attacker, name: str, change: Any) -> None:
    """A new role by the brake family's keys, empty but for what `change` puts in."""

    def signed(obj: dict[str, Any]) -> None:
        obj["version"] = 1
        obj["targets"] = {}
        change(obj)

    raw = bad.newest("image", BRAKE)[1]
    bad.served["image", f"1.{name}.json"] = forged(raw, signed, bad.signers(f"image/{BRAKE}"))


def list_role(bad: Attacker, *names: str) -> None:
    def change(signed: dict[str, Any]) -> None:
        for name in names:
            signed["meta"][f"{name}.json"] = {"version": 1}

    bad.edit("image", "snapshot", change)


def first(bad: Attacker, *roles: dict[str, Any]) -> None:
    """Put delegations in front of all others."""
    bad.edit(
        "image", "targets", lambda signed: signed["delegations"]["roles"].__setitem__(slice(0, 0), roles)
    )


def test_a_role_that_does_not_know_the_target_is_passed(world: UptaneWorld, store: TrustedStore) -> None:
    bad = Attacker.insider(world)
    first(bad, entry(bad, "early", terminating=False))
    serve_role(bad, "early", lambda _: None)
    list_role(bad, "early")
    bad.relist("image")
    assert bad.refusal(store) is None


def test_a_terminating_role_ends_the_search(world: UptaneWorld, store: TrustedStore) -> None:
    bad = Attacker.insider(world)
    first(bad, entry(bad, "early", terminating=True))
    serve_role(bad, "early", lambda _: None)
    list_role(bad, "early")
    bad.relist("image")
    assert bad.refusal(store) == "target_not_found"


def test_a_role_that_applies_and_is_not_signed_ends_the_search(
    world: UptaneWorld, store: TrustedStore
) -> None:
    bad = Attacker.insider(world)
    first(bad, entry(bad, "early", terminating=False, threshold=3))
    raw = bad.newest("image", BRAKE)[1]
    bad.served["image", "1.early.json"] = forged(
        raw, lambda signed: signed.update(version=1), bad.signers(f"image/{BRAKE}")[:2]
    )
    list_role(bad, "early")
    bad.relist("image")
    assert bad.refusal(store) == "metadata_unsigned"


def test_a_role_that_applies_and_is_not_listed_ends_the_search(
    world: UptaneWorld, store: TrustedStore
) -> None:
    bad = Attacker.insider(world)
    first(bad, entry(bad, "early", terminating=False))
    bad.relist("image")
    assert bad.refusal(store) == "metadata_role_removed"


@pytest.mark.parametrize(
    ("paths", "found"),
    [
        (["brake-controller/*/*"], True),
        (["brake-controller/1.1.0/*"], True),
        (["*/*/*"], True),
        (["brake-controller/*"], False),
        (["brake*"], False),
        (["*"], False),
        (["hoist-controller/*/*"], False),
        (["Brake-Controller/*/*"], False),
        ([], False),
    ],
)
def test_patterns_match_part_by_part(
    world: UptaneWorld, store: TrustedStore, paths: list[str], found: bool
) -> None:
    bad = Attacker.insider(world)

    def change(signed: dict[str, Any]) -> None:
        [brake] = [role for role in signed["delegations"]["roles"] if role["name"] == BRAKE]
        brake["paths"] = paths
        # Others would answer for the wider patterns' own targets.
        signed["delegations"]["roles"].remove(brake)
        signed["delegations"]["roles"].append(brake)

    bad.edit("image", "targets", change)
    bad.relist("image")
    assert bad.refusal(store) == (None if found else "target_not_found")


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("hardware", ["H9"], "target_not_found"),
        ("hardware", [], "target_not_found"),
        ("hardware", None, "metadata_unreadable"),
        ("hardware", "H0", "metadata_unreadable"),
        ("paths", ["brake-controller/*/*"] * 65, "metadata_unreadable"),
        ("paths", ["brake-controller/*/" + "*" * 200], "metadata_unreadable"),
    ],
)
def test_a_delegation_is_for_named_hardware_and_bounded(
    world: UptaneWorld, store: TrustedStore, field: str, value: object, code: str
) -> None:
    bad = Attacker.insider(world)

    def change(signed: dict[str, Any]) -> None:
        [brake] = [role for role in signed["delegations"]["roles"] if role["name"] == BRAKE]
        brake[field] = value

    bad.edit("image", "targets", change)
    bad.relist("image")
    assert bad.refusal(store) == code


def test_hash_prefixes_and_succinct_roles_are_not_half_understood(
    world: UptaneWorld, store: TrustedStore
) -> None:
    def prefixes(signed: dict[str, Any]) -> None:
        [brake] = [role for role in signed["delegations"]["roles"] if role["name"] == BRAKE]
        del brake["paths"]
        brake["path_hash_prefixes"] = [""]

    def succinct(signed: dict[str, Any]) -> None:
        del signed["delegations"]["roles"]
        keyids = list(signed["delegations"]["keys"])
        signed["delegations"]["succinct_roles"] = {
            "keyids": keyids,
            "threshold": 1,
            "bit_length": 2,
            "name_prefix": "bin",
        }

    for change in (prefixes, succinct):
        bad = Attacker.insider(world)
        bad.edit("image", "targets", change)
        bad.relist("image")
        assert bad.refusal(store) == "metadata_unreadable"


def nested(bad: Attacker, depth: int) -> None:
    """A line of roles, each delegating to the next; the last one is in a circle with itself."""
    top = json.loads(bad.newest("image", "targets")[1])["signed"]["delegations"]
    names = [f"level-{n}" for n in range(depth)]
    for name, below in zip(names, [*names[1:], names[-1]], strict=True):
        delegations = {"keys": top["keys"], "roles": [entry(bad, below, terminating=False)]}
        serve_role(bad, name, lambda obj, inner=delegations: obj.update(delegations=copy.deepcopy(inner)))
    first(bad, entry(bad, names[0], terminating=False))
    list_role(bad, *names)
    bad.relist("image")


def test_circles_end_and_depth_is_bounded(world: UptaneWorld, store: TrustedStore) -> None:
    bad = Attacker.insider(world)
    nested(bad, MOST_DEPTH)
    assert bad.refusal(store) is None
    bad = Attacker.insider(world)
    nested(bad, MOST_DEPTH + 2)
    assert bad.refusal(store) == "delegation_search_too_long"


def test_the_number_of_roles_is_bounded(world: UptaneWorld, store: TrustedStore) -> None:
    bad = Attacker.insider(world)
    names = [f"wide-{n}" for n in range(MOST_ROLES_ASKED + 1)]
    for name in names:
        serve_role(bad, name, lambda _: None)
    first(bad, *(entry(bad, name, terminating=False) for name in names))
    list_role(bad, *names)
    bad.relist("image")
    assert bad.refusal(store) == "delegation_search_too_long"
