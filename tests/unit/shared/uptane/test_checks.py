"""Every check of Uptane 5.4.4, one named case each: a flaw in one place ends with the refusal of its name.

Where a case needs keys it has them all: what is tried is the check, not the theft.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, generate_private_key
from securesystemslib.signer import CryptoSigner, SSlibKey
from tuf.api.metadata import Metadata

from shared.trust.uptane.repository import to_bytes
from shared.trust.uptane.repository_check import SIGNED_AT
from shared.trust.uptane.root_chain import MOST_NEW_ROOTS
from shared.trust.uptane.store import RepositoryName, TrustedStore
from sim.uptane_attacker import Attacker, forged
from sim.uptane_world import NOW, UptaneWorld

Change = Callable[[dict[str, Any]], None]


def put(key: str, value: Any) -> Change:
    return lambda signed: signed.update({key: value})


def test_what_is_honest_is_selected(world: UptaneWorld, store: TrustedStore) -> None:
    outcome = world.verify(store)
    assert outcome.refused is None
    assert outcome.selection is not None
    assert [(one.ecu.serial, one.spec.version) for one in outcome.selection.assignments] == [
        ("SN-0", "1.1.0"),
        ("SN-1", "1.1.0"),
    ]
    assert outcome.selection.expires == NOW + timedelta(days=1)
    assert outcome.store == store


def test_a_director_that_selects_nothing_is_content(world: UptaneWorld, store: TrustedStore) -> None:
    world.direct(None)
    outcome = world.verify(store)
    assert (outcome.selection, outcome.refused) == (None, None)
    assert outcome.store.director.timestamp == store.director.timestamp + 1


# Root (5.4.4.3)


@pytest.mark.parametrize("repository", ["director", "image"])
def test_a_root_needs_the_old_threshold(
    world: UptaneWorld, store: TrustedStore, repository: RepositoryName
) -> None:
    world.rotate(f"{repository}/root", 1)
    world.publish()
    # Two of the new root's keys, of which only one is the old root's.
    signers = [world.keys[f"{repository}/root/1"], world.keys[f"{repository}/root/2"]]
    name = (repository, "2.root.json")
    world.served[name] = forged(world.served[name], lambda _: None, signers)
    assert world.refusal(store) == "metadata_unsigned"


@pytest.mark.parametrize("repository", ["director", "image"])
def test_a_root_needs_the_new_threshold(
    world: UptaneWorld, store: TrustedStore, repository: RepositoryName
) -> None:
    world.rotate(f"{repository}/root", 1)
    world.publish()
    # Two of the old root's keys, of which only one is the new root's.
    signers = [world.keys[f"{repository}/root-old/1"], world.keys[f"{repository}/root/2"]]
    name = (repository, "2.root.json")
    world.served[name] = forged(world.served[name], lambda _: None, signers)
    assert world.refusal(store) == "metadata_unsigned"


def test_a_root_signed_by_both_is_followed_over_many_versions(
    world: UptaneWorld, store: TrustedStore
) -> None:
    for number in (1, 2, 3, 1):
        world.rotate("image/root", number)
        world.publish()
    outcome = world.verify(store)
    assert outcome.refused is None
    assert outcome.store.image.read_root().signed.version == 5


@pytest.mark.parametrize("version", [1, 3, 7])
def test_a_root_follows_by_exactly_one(world: UptaneWorld, store: TrustedStore, version: int) -> None:
    signers = world.signers("image/root")
    raw = world.served["image", "1.root.json"]
    world.served["image", "2.root.json"] = forged(raw, put("version", version), signers)
    assert world.refusal(store) == "root_version"


def test_a_chain_of_roots_without_end_is_cut_and_gone_on_with(
    world: UptaneWorld, store: TrustedStore
) -> None:
    raw = world.served["image", "1.root.json"]
    for version in range(2, MOST_NEW_ROOTS + 3):
        world.served["image", f"{version}.root.json"] = forged(
            raw, put("version", version), world.signers("image/root")
        )
    outcome = world.verify(store)
    assert outcome.refused is not None
    assert outcome.refused.code == "root_chain_too_long"
    assert outcome.refused.retryable
    assert world.verify(outcome.store).refused is None


def test_a_root_that_was_seen_stays_trusted_whatever_fails_after(
    world: UptaneWorld, store: TrustedStore
) -> None:
    """Else a cut link would let a stolen, rotated-out key back in."""
    stolen = world.keys["director/timestamp/1"]
    before = dict(world.served)
    world.rotate("director/timestamp")
    world.publish()
    del world.served["director", "timestamp.json"]
    outcome = world.verify(store)
    assert outcome.refused is not None
    assert outcome.refused.code == "metadata_missing"
    world.served = before
    world.served["director", "timestamp.json"] = forged(
        before["director", "timestamp.json"], lambda _: None, [stolen]
    )
    assert world.refusal(outcome.store) == "metadata_unsigned"


# Expiry, against a freeze

EXPIRED_ROLES = [
    *(("director", role) for role in ("root", "timestamp", "snapshot", "targets")),
    *(("image", role) for role in ("root", "timestamp", "snapshot", "targets", "brake-controller")),
]


@pytest.mark.parametrize(("repository", "role"), EXPIRED_ROLES)
def test_each_role_expires(
    world: UptaneWorld, store: TrustedStore, repository: RepositoryName, role: str
) -> None:
    bad = Attacker.insider(world)
    expired = put("expires", (NOW - timedelta(seconds=1)).strftime("%Y-%m-%dT%H:%M:%SZ"))

    def change(signed: dict[str, Any]) -> None:
        expired(signed)
        if SIGNED_AT in signed:
            signed[SIGNED_AT] = (NOW - timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
        if role == "root":
            signed["version"] = 2

    if role == "root":
        raw = bad.served[repository, "1.root.json"]
        bad.served[repository, "2.root.json"] = forged(raw, change, bad.signers(f"{repository}/root"))
    else:
        bad.edit(repository, role, change)
        if role == "snapshot":
            bad.relist_snapshot(repository)
        elif role != "timestamp":
            bad.relist(repository)
    outcome = bad.verify(store)
    assert outcome.selection is None
    assert outcome.refused is not None
    assert (outcome.refused.code, outcome.refused.where) == ("metadata_expired", f"{repository}/{role}")
    assert outcome.refused.retryable


# Signatures: distinct keys


@pytest.mark.parametrize(
    ("repository", "role"),
    [(where, role) for where, role in EXPIRED_ROLES if role != "root"],
)
def test_each_role_needs_its_threshold(
    world: UptaneWorld, store: TrustedStore, repository: RepositoryName, role: str
) -> None:
    """All keys but those of this one role; of roles with a threshold of two, one key as well."""
    keys = [name for name in world.keys if name.rpartition("/")[0] != f"{repository}/{role}"]
    if len(world.signers(f"{repository}/{role}")) > 1:
        keys.append(f"{repository}/{role}/1")
    bad = Attacker(world, keys)
    bad.edit(repository, role, lambda _: None)
    if role == "snapshot":
        bad.relist_snapshot(repository)
    elif role != "timestamp":
        bad.relist(repository)
    outcome = bad.verify(store)
    assert outcome.refused is not None
    assert (outcome.refused.code, outcome.refused.where) == ("metadata_unsigned", f"{repository}/{role}")


def test_one_key_under_two_ids_counts_once(world: UptaneWorld, store: TrustedStore) -> None:
    """A root with one key twice, once in capitals, can't meet a threshold of two by one signature."""
    signer = world.keys["image/targets/1"]
    twin = SSlibKey("ab" * 32, "ed25519", "ed25519", {"public": signer.public_key.keyval["public"].upper()})

    def root(signed: dict[str, Any]) -> None:
        signed["version"] = 2
        signed["keys"][twin.keyid] = twin.to_dict()
        signed["roles"]["targets"]["keyids"] = [signer.public_key.keyid, twin.keyid]

    raw = world.served["image", "1.root.json"]
    world.served["image", "2.root.json"] = forged(raw, root, world.signers("image/root"))
    bad = Attacker.insider(world)
    name, targets = bad.newest("image", "targets")
    once = json.loads(forged(targets, lambda _: None, [signer]))
    once["signatures"].append({"keyid": twin.keyid, "sig": once["signatures"][0]["sig"]})
    bad.served["image", name] = to_bytes(Metadata.from_dict(once))
    bad.relist("image")
    assert bad.refusal(store) == "metadata_unsigned"


def test_a_scheme_that_is_not_on_the_list_counts_nothing(world: UptaneWorld, store: TrustedStore) -> None:
    """The root lists it and the signature is right; trucks take Ed25519 and P-256 all the same."""
    signer = CryptoSigner(generate_private_key(SECP384R1()))

    def root(signed: dict[str, Any]) -> None:
        signed["version"] = 2
        signed["keys"][signer.public_key.keyid] = signer.public_key.to_dict()
        signed["roles"]["targets"].update(keyids=[signer.public_key.keyid], threshold=1)

    raw = world.served["image", "1.root.json"]
    world.served["image", "2.root.json"] = forged(raw, root, world.signers("image/root"))
    bad = Attacker.insider(world)
    name, targets = bad.newest("image", "targets")
    bad.served["image", name] = forged(targets, lambda _: None, [signer])
    bad.relist("image")
    assert bad.refusal(store) == "metadata_unsigned"


# Versions: rollback, mix-and-match


@pytest.mark.parametrize("repository", ["director", "image"])
def test_an_old_timestamp_is_refused(
    world: UptaneWorld, store: TrustedStore, repository: RepositoryName
) -> None:
    bad = Attacker.insider(world)
    bad.edit(repository, "timestamp", put("version", store.of(repository).timestamp - 1))
    assert bad.refusal(store) == "metadata_rolled_back"


@pytest.mark.parametrize("repository", ["director", "image"])
def test_an_old_snapshot_in_a_new_timestamp_is_refused(
    world: UptaneWorld, store: TrustedStore, repository: RepositoryName
) -> None:
    bad = Attacker.insider(world)

    def change(signed: dict[str, Any]) -> None:
        signed["version"] += 1
        signed["meta"]["snapshot.json"]["version"] = store.of(repository).snapshot - 1

    bad.edit(repository, "timestamp", change)
    assert bad.refusal(store) == "metadata_rolled_back"


@pytest.mark.parametrize(("repository", "role"), [("director", "targets"), ("image", "brake-controller")])
def test_a_new_snapshot_that_lists_an_old_role_is_refused(
    world: UptaneWorld, store: TrustedStore, repository: RepositoryName, role: str
) -> None:
    bad = Attacker.insider(world)
    bad.edit(repository, "snapshot", lambda signed: signed["meta"][f"{role}.json"].update(version=1))
    bad.relist_snapshot(repository)
    assert bad.refusal(store) == "metadata_rolled_back"


def test_a_role_that_was_listed_stays_listed(world: UptaneWorld, store: TrustedStore) -> None:
    bad = Attacker.insider(world)
    bad.edit("image", "snapshot", lambda signed: signed["meta"].pop("hoist-controller.json"))
    bad.relist_snapshot("image")
    refused = bad.verify(store).refused
    assert refused is not None
    assert (refused.code, refused.where) == ("metadata_role_removed", "image/snapshot")


@pytest.mark.parametrize("role", ["targets", "brake-controller"])
def test_a_role_must_be_the_one_that_the_snapshot_lists(
    world: UptaneWorld, store: TrustedStore, role: str
) -> None:
    """Correctly signed, but not the listed bytes: mix-and-match."""
    bad = Attacker.insider(world)
    bad.edit("image", role, put("x", 1))
    assert bad.refusal(store) == "metadata_not_as_listed"


def test_a_snapshot_must_be_the_one_that_the_timestamp_lists(world: UptaneWorld, store: TrustedStore) -> None:
    bad = Attacker.insider(world)
    bad.edit("director", "snapshot", put("x", 1))
    assert bad.refusal(store) == "metadata_not_as_listed"


@pytest.mark.parametrize(
    ("repository", "role"),
    [("image", "targets"), ("director", "targets"), ("director", "snapshot"), ("image", "brake-controller")],
)
def test_a_file_must_say_the_version_that_it_is_listed_with(
    world: UptaneWorld, store: TrustedStore, repository: RepositoryName, role: str
) -> None:
    bad = Attacker.insider(world)
    bad.edit(repository, role, lambda signed: signed.update(version=signed["version"] + 5))
    if role == "snapshot":
        bad.relist_snapshot(repository)
    else:
        bad.relist(repository)
    assert bad.refusal(store) == "metadata_not_as_listed"
