"""The attack table of Uptane (4.3) and of issue 5: each ends with nothing unauthorised, older,
incompatible or wrong selected, and with an alarm by its name where the truck can tell.

Eavesdropping is TLS's matter: nothing at this layer is secret, so it has no case here. Slow retrieval
is the driver's (time-outs and a lowest rate); here every file has a bound, and no step waits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from shared.trust.document import WrongImage
from shared.trust.image import check_image
from shared.trust.uptane.errors import Attack
from shared.trust.uptane.release_document import Requirement
from shared.trust.uptane.repository_edit import firmware_target, withdraw
from shared.trust.uptane.steps import Wanted, drive
from shared.trust.uptane.store import RepositoryName, TrustedStore
from shared.trust.uptane.time_policy import Reading, TimePolicy
from shared.trust.uptane.verify import Outcome, verify
from sim.uptane_attacker import Attacker
from sim.uptane_world import BUILT_AT, NOW, UptaneWorld

MakeAttacker = Callable[..., Attacker]
ONLINE = ("director/targets/1", "director/snapshot/1", "director/timestamp/1")
EVIL = "6.6.6"
KEY_NAMES = sorted(UptaneWorld().keys)


def assert_harmless(outcome: Outcome, store: TrustedStore, *, alarm: bool = True) -> None:
    """Nothing is selected but what was authorised, fits and is no older; versions never fell."""
    if outcome.selection is not None:
        for one in outcome.selection.assignments:
            assert one.spec.version == "1.1.0"
            assert one.spec.release_counter >= store.counters[one.ecu.serial]
            assert (one.spec.kind, one.ecu.hardware) == (one.ecu.kind, one.spec.hardware[0])
    elif alarm:
        assert outcome.refused is not None
    for repository in ("director", "image"):
        before, after = store.of(repository), outcome.store.of(repository)
        assert after.read_root().signed.version >= before.read_root().signed.version
        assert after.timestamp >= before.timestamp
        assert after.snapshot >= before.snapshot
        assert all(after.roles[name] >= version for name, version in before.roles.items())


# Arbitrary software, with every single key stolen


@pytest.mark.parametrize("name", KEY_NAMES)
def test_no_single_key_installs_anything(name: str, attacker: MakeAttacker, store: TrustedStore) -> None:
    """Everything is made anew with evil firmware, by the one real key and forged signatures."""
    bad = attacker(name)
    bad.direct(bad.release(EVIL, 66))
    assert_harmless(bad.verify(store), store)


@pytest.mark.parametrize("name", KEY_NAMES)
def test_no_single_key_does_so_from_among_honest_files(
    name: str, attacker: MakeAttacker, store: TrustedStore, world: UptaneWorld
) -> None:
    """Of the evil files only those of the stolen key's role are served, the rest is honest."""
    bad = attacker(name)
    role = name.rpartition("/")[0].partition("/")[2]
    bad.direct(bad.release(EVIL, 66))
    mine = {
        where: raw
        for where, raw in bad.served.items()
        if where[0] == name.partition("/")[0] and f"{role}.json" in where[1]
    }
    bad.served = {**world.served, **mine}
    assert_harmless(bad.verify(store), store, alarm=False)


@pytest.mark.parametrize("name", [name for name in KEY_NAMES if "/root/" in name])
def test_one_root_key_makes_no_root(name: str, attacker: MakeAttacker, store: TrustedStore) -> None:
    bad = attacker(name)
    bad.new_root("director" if name.startswith("director") else "image")
    outcome = bad.verify(store)
    assert outcome.refused is not None
    assert outcome.refused.attack is Attack.ARBITRARY_SOFTWARE
    assert outcome.store == store


@pytest.mark.parametrize("name", ["director/offline/1", "director/offline/2"])
def test_one_offline_key_makes_no_bundle(
    name: str, attacker: MakeAttacker, store: TrustedStore, world: UptaneWorld
) -> None:
    bad = attacker(name)
    release = world.release("1.2.0", 3)
    bad.served.update(world.served)
    bad.direct_offline(release)
    outcome = bad.verify(store, offline=True)
    assert outcome.refused is not None
    assert outcome.refused.code == "metadata_unsigned"


def test_all_keys_of_the_image_repository_select_nothing(
    attacker: MakeAttacker, world: UptaneWorld, store: TrustedStore
) -> None:
    """Offline keys stolen, all of them, but no director's: what is selected stays what it was."""
    bad = attacker(*(name for name in world.keys if name.startswith("image/")))
    bad.release(EVIL, 66)
    assert_harmless(bad.verify(store), store)
    bad.direct(bad.release(EVIL, 66))
    outcome = bad.verify(store)
    assert outcome.refused is not None
    assert outcome.refused.where.startswith("director/")


# The whole control plane captured: every online key, every topic, all of the storage


def captured(attacker: MakeAttacker) -> Attacker:
    return attacker(*ONLINE)


def test_captured_director_names_what_was_never_signed(attacker: MakeAttacker, store: TrustedStore) -> None:
    bad = captured(attacker)
    honest = dict(bad.served)
    release = bad.release(EVIL, 66)
    bad.served = {**bad.served, **{key: raw for key, raw in honest.items() if key[0] == "image"}}
    bad.direct(release)
    outcome = bad.verify(store)
    assert_harmless(outcome, store)
    assert outcome.refused is not None
    assert (outcome.refused.code, outcome.refused.attack) == ("target_not_found", Attack.ARBITRARY_SOFTWARE)


def test_captured_director_can_only_select_what_is_signed_and_no_older(
    attacker: MakeAttacker, world: UptaneWorld, store: TrustedStore
) -> None:
    old = world.release("1.0.0", 1)
    bad = captured(attacker)
    bad.served.update(world.served)
    bad.direct(old)
    outcome = bad.verify(store)
    assert_harmless(outcome, store)
    assert outcome.refused is not None
    assert (outcome.refused.code, outcome.refused.attack) == ("release_counter_rolled_back", Attack.ROLLBACK)


def test_captured_director_mixes_two_signed_releases(
    attacker: MakeAttacker, world: UptaneWorld, store: TrustedStore
) -> None:
    """Mixed bundle: brake of 1.2.0, hoist of 1.3.0, each signed, never meant to run together."""
    world.direct(world.release("1.2.0", 3))
    other = world.release("1.3.0", 4)
    bad = captured(attacker)
    bad.served, bad.directed = dict(world.served), world.directed
    hoist = other.targets[1]

    def mix(signed: dict[str, Any]) -> None:
        [path] = [path for path in signed["targets"] if path.startswith("hoist")]
        custom = signed["targets"].pop(path)["custom"]
        entry = firmware_target(hoist.spec).to_dict()
        entry["custom"] = {**entry["custom"], "ecus": custom["ecus"]}
        signed["targets"][hoist.spec.target_path] = entry

    bad.redirect(mix)
    outcome = bad.verify(store)
    assert outcome.selection is None
    assert outcome.refused is not None
    assert (outcome.refused.code, outcome.refused.attack) == ("mixed_bundle", Attack.MIXED_BUNDLE)


def test_captured_director_sends_half_of_a_release(attacker: MakeAttacker, store: TrustedStore) -> None:
    bad = captured(attacker)

    def half(signed: dict[str, Any]) -> None:
        [path] = [path for path in signed["targets"] if path.startswith("hoist")]
        del signed["targets"][path]

    bad.redirect(half)
    outcome = bad.verify(store)
    assert outcome.selection is None
    assert outcome.refused is not None
    assert outcome.refused.attack is Attack.PARTIAL_BUNDLE


def test_captured_director_can_not_skip_a_version_that_is_needed_first(
    attacker: MakeAttacker, world: UptaneWorld, store: TrustedStore
) -> None:
    release = world.release("2.0.0", 9, needs=[Requirement(kind="hoist-controller", counter_at_least=5)])
    bad = captured(attacker)
    bad.served.update(world.served)
    bad.direct(release)
    outcome = bad.verify(store)
    assert outcome.selection is None
    assert outcome.refused is not None
    assert outcome.refused.code == "release_not_compatible"


def test_captured_storage_serves_other_images(world: UptaneWorld, store: TrustedStore) -> None:
    """Metadata is honest, bytes are not: the image check ends it, at the first byte too many as well."""
    outcome = world.verify(store)
    assert outcome.selection is not None
    spec = outcome.selection.assignments[0].spec
    honest = world.served["image", outcome.selection.assignments[0].served_name]
    check_image([honest], spec)
    for wrong in (b"\x66" * spec.length, honest[:-1], honest + b"\x00"):
        with pytest.raises(WrongImage):
            check_image([wrong], spec)


def test_captured_storage_rolls_the_repository_back(world: UptaneWorld, store: TrustedStore) -> None:
    old = {key: raw for key, raw in world.served.items() if key[0] == "image"}
    world.release("1.2.0", 3)
    newer = world.verify(store).store
    assert newer.image.timestamp > store.image.timestamp
    world.served.update(old)
    outcome = world.verify(newer)
    assert outcome.refused is not None
    assert (outcome.refused.code, outcome.refused.attack) == ("metadata_rolled_back", Attack.ROLLBACK)


# Attacks on the link


def test_dropped_files_are_an_alarm_and_change_nothing(world: UptaneWorld, store: TrustedStore) -> None:
    for lost in list(world.served):
        kept = dict(world.served)
        del world.served[lost]
        outcome = world.verify(store)
        if outcome.refused is not None:
            assert (outcome.refused.attack, outcome.refused.retryable) == (Attack.DROP_REQUEST, True)
            assert outcome.store == store
        world.served = kept


def test_slow_retrieval_has_a_bound_on_every_file(world: UptaneWorld, store: TrustedStore) -> None:
    """The whole verification asks for a known number of files, each of a known size."""
    asked: list[Wanted] = []

    def fetch(wanted: Wanted) -> bytes | None:
        asked.append(wanted)
        return world.fetch(wanted)

    steps = verify(store, world.vehicle, Reading(wall=NOW), TimePolicy(built_at=BUILT_AT))
    assert drive(steps, fetch).selection is not None
    assert len(asked) == 11
    assert sum(one.most_bytes for one in asked) < 256 * 1024
    assert all(one.sha256 for one in asked if one.name[0].isdigit() and "root" not in one.name)


def test_a_link_that_stops_leaves_nothing_half_done(world: UptaneWorld, store: TrustedStore) -> None:
    """Whichever file the link dies at, the next try ends well from what was kept."""
    world.rotate("image/timestamp")
    world.direct(world.release("1.2.0", 3))
    for dies_at in range(14):
        count = 0

        def fetch(wanted: Wanted, dies_at: int = dies_at) -> bytes | None:
            nonlocal count
            count += 1
            return world.fetch(wanted) if count <= dies_at else None

        steps = verify(store, world.vehicle, Reading(wall=NOW), TimePolicy(built_at=BUILT_AT))
        kept = TrustedStore.load(drive(steps, fetch).store.dump())
        outcome = world.verify(kept)
        assert outcome.selection is not None
        assert outcome.selection.release.version == "1.2.0"


def test_freeze_ends_with_the_metadata_that_it_replays(world: UptaneWorld, store: TrustedStore) -> None:
    frozen = dict(world.served)
    world.now = NOW + timedelta(days=2)
    world.direct(world.release("1.2.0", 3))
    world.served = frozen
    outcome = world.verify(store)
    assert outcome.selection is None
    assert outcome.refused is not None
    assert (outcome.refused.code, outcome.refused.attack) == ("metadata_expired", Attack.FREEZE)


def test_freeze_of_one_repository_is_seen_by_the_other_ones_time(
    world: UptaneWorld, store: TrustedStore
) -> None:
    """The clock stands in 1970, the director's old files are replayed: the image repository tells."""
    frozen = {key: raw for key, raw in world.served.items() if key[0] == "director"}
    world.now = NOW + timedelta(days=2)
    world.release("1.2.0", 3)
    world.served.update(frozen)
    outcome = world.verify(store, wall=NOW.replace(year=1970))
    assert outcome.selection is None
    assert outcome.refused is not None
    assert (outcome.refused.code, outcome.refused.where) == ("metadata_expired", "director/timestamp")


def test_mix_and_match_of_two_moments_is_refused(world: UptaneWorld, store: TrustedStore) -> None:
    """New timestamp and snapshot, an older targets file under the new one's name."""
    old = dict(world.served)
    world.direct(world.release("1.2.0", 3))
    bad = Attacker(world, ())
    name, _ = bad.newest("image", "targets")
    previous = max(key[1] for key in old if key[0] == "image" and key[1].endswith(".targets.json"))
    world.served["image", name] = old["image", previous]
    outcome = world.verify(store)
    assert outcome.refused is not None
    assert (outcome.refused.code, outcome.refused.attack) == ("metadata_not_as_listed", Attack.MIX_AND_MATCH)


def test_another_trucks_metadata_is_refused(world: UptaneWorld, store: TrustedStore) -> None:
    mine = world.vehicle
    world.vehicle = replace(mine, vehicle_id="truck-8")
    world.direct(world.release("1.2.0", 3))
    world.vehicle = mine
    outcome = world.verify(store)
    assert outcome.refused is not None
    assert (outcome.refused.code, outcome.refused.attack) == ("wrong_vehicle", Attack.WRONG_ECU)


def test_the_two_repositories_can_not_stand_in_for_each_other(
    world: UptaneWorld, store: TrustedStore
) -> None:
    swapped: dict[tuple[RepositoryName, str], bytes] = {}
    for (where, name), raw in world.served.items():
        swapped["image" if where == "director" else "director", name] = raw
    world.served = swapped
    outcome = world.verify(store)
    assert outcome.refused is not None
    assert outcome.refused.code == "metadata_unsigned"


def test_a_withdrawn_release_does_not_begin(world: UptaneWorld, store: TrustedStore) -> None:
    release = world.release("1.2.0", 3)
    world.direct(release)
    assert world.verify(store).selection is not None
    world.image, _ = withdraw(world.image, release.target_path, NOW)
    world.publish()
    outcome = world.verify(store)
    assert outcome.refused is not None
    assert outcome.refused.code == "target_not_found"
