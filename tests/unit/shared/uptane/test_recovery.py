"""Fast-forward, and recovery from it by rotating the stolen keys: what a rotation undoes, and what not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from shared.trust.uptane.errors import Attack
from shared.trust.uptane.store import RepositoryName, TrustedStore
from sim.uptane_attacker import Attacker, forged
from sim.uptane_world import UptaneWorld

MakeAttacker = Callable[..., Attacker]
ONLINE = ("director/targets/1", "director/snapshot/1", "director/timestamp/1")


@pytest.mark.parametrize(
    ("stolen", "rotated"),
    [
        (ONLINE, ("director/timestamp", "director/snapshot", "director/targets")),
        (("image/timestamp/1", "image/snapshot/1"), ("image/timestamp", "image/snapshot")),
    ],
)
def test_fast_forward_is_recovered_from_by_rotation(
    attacker: MakeAttacker,
    world: UptaneWorld,
    store: TrustedStore,
    stolen: tuple[str, ...],
    rotated: tuple[str, ...],
) -> None:
    bad = attacker(*stolen)
    bad.relist("director" if stolen is ONLINE else "image", steps=2**40)
    poisoned = bad.verify(store).store
    outcome = world.verify(poisoned)
    assert outcome.refused is not None
    assert (outcome.refused.code, outcome.refused.attack) == ("metadata_rolled_back", Attack.ROLLBACK)
    for role in rotated:
        world.rotate(role)
    world.direct(world.release("1.2.0", 3))
    outcome = world.verify(poisoned)
    assert outcome.refused is None
    assert outcome.selection is not None
    assert outcome.selection.release.version == "1.2.0"
    # The thief's files are of no use any more, its higher versions neither.
    where: RepositoryName = "director" if stolen is ONLINE else "image"
    world.served[where, "timestamp.json"] = bad.served[where, "timestamp.json"]
    refused = world.verify(outcome.store).refused
    assert refused is not None
    assert refused.code == "metadata_unsigned"


def test_a_key_that_is_only_added_makes_no_old_version_good_again(
    world: UptaneWorld, store: TrustedStore
) -> None:
    old = world.served["image", "timestamp.json"]
    world.release("1.2.0", 3)
    newer = world.verify(store).store
    world.add_keys("image/timestamp", 1)
    extra = world.keys["image/timestamp/2"].public_key

    def root(signed: dict[str, Any]) -> None:
        signed["version"] = 2
        signed["keys"][extra.keyid] = extra.to_dict()
        signed["roles"]["timestamp"]["keyids"].append(extra.keyid)

    raw = world.served["image", "1.root.json"]
    world.served["image", "2.root.json"] = forged(raw, root, world.signers("image/root"))
    world.served["image", "timestamp.json"] = old
    outcome = world.verify(newer)
    assert outcome.refused is not None
    assert outcome.refused.code == "metadata_rolled_back"


@pytest.mark.parametrize("repository", ["director", "image"])
@pytest.mark.parametrize(
    ("role", "recovers"), [("timestamp", True), ("snapshot", True), ("targets", False), ("root", False)]
)
def test_which_rotations_void_versions(
    world: UptaneWorld, store: TrustedStore, repository: RepositoryName, role: str, recovers: bool
) -> None:
    """Every version was counted up; the rotation of one key of the two that list versions undoes it all."""
    state = store.of(repository)
    high = 2**50
    poisoned = store.replaced(
        repository,
        msgspec.structs.replace(state, timestamp=high, snapshot=high, roles=dict.fromkeys(state.roles, high)),
    )
    world.rotate(f"{repository}/{role}")
    world.direct(world.release("1.2.0", 3))
    assert world.refusal(poisoned) == (None if recovers else "metadata_rolled_back")


def test_rotating_the_offline_role_voids_the_version_of_bundles(
    world: UptaneWorld, store: TrustedStore
) -> None:
    poisoned = msgspec.structs.replace(store, offline=2**50)
    world.direct_offline(world.release("1.2.0", 3))
    assert world.refusal(poisoned, offline=True) == "metadata_rolled_back"
    world.rotate("director/offline")
    world.publish()
    world.direct_offline(world.release("1.3.0", 4))
    assert world.refusal(poisoned, offline=True) is None
