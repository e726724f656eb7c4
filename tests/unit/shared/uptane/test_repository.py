"""The maker's side: drafts, signatures, publication, signing bundles, and the truck's stored trust."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner

from shared.trust.uptane.errors import MetadataRefused, StoreUnreadable
from shared.trust.uptane.publication import publish
from shared.trust.uptane.repository import (
    Repository,
    RepositoryTrouble,
    RoleKeys,
    begin,
    progress,
    sign,
)
from shared.trust.uptane.repository_edit import (
    add_target,
    delegate,
    firmware_target,
    renew,
    rotate_key,
    withdraw,
)
from shared.trust.uptane.signing_bundle import dump_bundle, load_bundle, take_signatures
from shared.trust.uptane.store import MOST_STORE_BYTES, TrustedStore, provision
from sim.uptane_world import NOW, UptaneWorld


def key() -> CryptoSigner:
    return CryptoSigner(Ed25519PrivateKey.generate())


def of(*signers: CryptoSigner, threshold: int = 1) -> RoleKeys:
    return RoleKeys(keys=tuple(one.public_key for one in signers), threshold=threshold)


ROOTS = (key(), key(), key())
TARGETS, SNAPSHOT, TIMESTAMP = key(), key(), key()


@pytest.fixture
def draft() -> Repository:
    """A repository whose root (2 of 3) and targets wait for signatures."""
    roles = {
        "root": of(*ROOTS, threshold=2),
        "targets": of(TARGETS),
        "snapshot": of(SNAPSHOT),
        "timestamp": of(TIMESTAMP),
    }
    return begin("image", roles, NOW)


def put_out(repository: Repository, **signers: Any) -> Repository:
    wanted: dict[str, Any] = {"snapshot_signers": [SNAPSHOT], "timestamp_signers": [TIMESTAMP], **signers}
    return publish(repository, now=NOW, **wanted)


@pytest.fixture
def live(draft: Repository) -> Repository:
    """The same, published."""
    for signer in (ROOTS[0], ROOTS[1], TARGETS):
        draft, _ = sign(draft, signer)
    return put_out(draft)


def test_nothing_is_published_below_a_threshold(draft: Repository) -> None:
    draft, _ = sign(draft, TARGETS)
    draft, _ = sign(draft, ROOTS[0])
    draft, _ = sign(draft, ROOTS[0])
    with pytest.raises(RepositoryTrouble, match="root misses 1 of 2"):
        put_out(draft)
    draft, roles = sign(draft, ROOTS[2])
    assert roles == ["root"]
    assert sorted(put_out(draft).published) == [
        "1.root.json",
        "1.snapshot.json",
        "1.targets.json",
        "timestamp.json",
    ]


def test_snapshot_and_timestamp_need_their_own_keys(live: Repository) -> None:
    with pytest.raises(RepositoryTrouble, match="snapshot needs 1"):
        put_out(live, snapshot_signers=[TIMESTAMP])
    with pytest.raises(RepositoryTrouble, match="timestamp needs 1"):
        put_out(live, timestamp_signers=[])


def test_a_key_of_no_role_signs_nothing(draft: Repository, live: Repository) -> None:
    with pytest.raises(RepositoryTrouble, match="no draft takes"):
        sign(draft, key())
    with pytest.raises(RepositoryTrouble, match="no draft takes"):
        sign(live, ROOTS[0])


def test_with_no_drafts_a_publication_renews(live: Repository) -> None:
    again = put_out(live)
    assert again.newest("timestamp").signed.version == 2  # type: ignore[union-attr]
    assert again.published["1.targets.json"] == live.published["1.targets.json"]


def test_a_rotated_root_needs_old_and_new_keys(live: Repository) -> None:
    fresh = key()
    draft = rotate_key(live, "root", ROOTS[0].public_key.keyid[:16], fresh.public_key, NOW)
    draft, _ = sign(draft, fresh)
    draft, _ = sign(draft, ROOTS[1])
    assert [one.missing for one in progress(draft)] == [1, 0]
    with pytest.raises(RepositoryTrouble, match="root misses 1"):
        put_out(draft)
    draft, _ = sign(draft, ROOTS[0])
    assert "2.root.json" in put_out(draft).published


def test_an_edit_takes_the_signatures_away(live: Repository) -> None:
    draft, _ = sign(renew(live, "targets", NOW), TARGETS)
    assert progress(draft)[0].missing == 0
    assert progress(renew(draft, "targets", NOW + timedelta(days=1)))[0].missing == 1


def test_a_rotated_targets_key_has_the_targets_signed_anew(live: Repository) -> None:
    fresh = key()
    draft = rotate_key(live, "targets", TARGETS.public_key.keyid, fresh.public_key, NOW)
    assert set(draft.drafts) == {"root", "targets"}


def test_p256_keys_of_a_token_sign_as_well(live: Repository, world: UptaneWorld) -> None:
    token = CryptoSigner(generate_private_key(SECP256R1()))
    draft = delegate(live, "brake-controller", of(token), ["H0"], NOW)
    draft, _ = sign(draft, TARGETS)
    draft, roles = sign(draft, token)
    assert roles == ["brake-controller"]
    assert "1.brake-controller.json" in put_out(draft).published


def test_a_familys_key_signs_for_its_hardware_only(live: Repository, world: UptaneWorld) -> None:
    family = key()
    draft = delegate(live, "brake-controller", of(family), ["H0"], NOW)
    spec = world.spec(world.vehicle.ecus[0], "1.0.0", 1)
    draft, role = add_target(draft, firmware_target(spec), NOW)
    assert role == "brake-controller"
    other = firmware_target(replace(spec, hardware=("H0", "H7")))
    with pytest.raises(RepositoryTrouble, match="not for H7"):
        add_target(draft, other, NOW)
    gone, role = withdraw(draft, spec.target_path, NOW)
    assert role == "brake-controller"
    with pytest.raises(RepositoryTrouble, match="no role has"):
        withdraw(gone, spec.target_path, NOW)


@pytest.mark.parametrize("family", ["targets", "a/b", "brake*", "brake[12]", "brake.v2", "", "b" * 65])
def test_names_that_are_no_family(live: Repository, family: str) -> None:
    with pytest.raises(RepositoryTrouble, match="can't be the name"):
        delegate(live, family, of(key()), ["H0"], NOW)


WRONG: dict[str, Callable[[Repository], object]] = {
    "rotate a role that is not there": lambda live: rotate_key(live, "hoist", "ab", key().public_key, NOW),
    "rotate a key that is not there": lambda live: rotate_key(live, "root", "zz", key().public_key, NOW),
    "rotate any key": lambda live: rotate_key(live, "root", "", key().public_key, NOW),
    "renew a role that is not there": lambda live: renew(live, "hoist", NOW),
    "renew the timestamp": lambda live: renew(live, "timestamp", NOW),
    "a threshold over the keys": lambda _: of(ROOTS[0], threshold=2),
    "a key twice": lambda _: of(ROOTS[0], ROOTS[0]),
    "a threshold of none": lambda _: of(ROOTS[0], threshold=0),
    "roles missing": lambda _: begin("image", {"root": of(*ROOTS)}, NOW),
    "export without drafts": dump_bundle,
}


@pytest.mark.parametrize("name", WRONG)
def test_what_can_not_be_done_is_said(live: Repository, name: str) -> None:
    with pytest.raises(RepositoryTrouble):
        WRONG[name](live)


def test_a_side_role_has_keys_of_its_own() -> None:
    roles = {name: of(key()) for name in ("root", "targets", "snapshot", "timestamp")}
    with pytest.raises(RepositoryTrouble, match="serves another role"):
        begin("director", roles, NOW, sides={"time": roles["timestamp"]})
    with pytest.raises(RepositoryTrouble, match="only a director"):
        begin("image", roles, NOW, sides={"time": of(key())})


# Signing bundles


def test_a_bundle_goes_out_and_brings_signatures_back(draft: Repository) -> None:
    away = load_bundle(dump_bundle(draft))
    for signer in (ROOTS[0], ROOTS[2], TARGETS):
        away, _ = sign(away, signer)
    back, taken = take_signatures(draft, load_bundle(dump_bundle(away)))
    assert sorted(role for role, _ in taken) == ["root", "root", "targets"]
    assert put_out(back).newest("root") is not None
    assert take_signatures(back, load_bundle(dump_bundle(away)))[1] == []


def test_two_bundles_signed_apart_add_up(draft: Repository) -> None:
    draft, _ = sign(draft, TARGETS)
    away = dump_bundle(draft)
    for signer in ROOTS[:2]:
        signed, _ = sign(load_bundle(away), signer)
        draft, taken = take_signatures(draft, signed)
        assert [role for role, _ in taken] == ["root"]
    put_out(draft)


def test_only_signatures_are_taken_from_a_bundle(draft: Repository) -> None:
    away = json.loads(dump_bundle(draft))
    root = json.loads(away["drafts"]["root"])
    root["signed"]["expires"] = "2099-01-01T00:00:00Z"
    away["drafts"]["root"] = json.dumps(root)
    with pytest.raises(RepositoryTrouble, match="not the one that was signed"):
        take_signatures(draft, load_bundle(json.dumps(away).encode()))


def test_a_wrong_signature_does_not_displace_a_right_one(draft: Repository) -> None:
    draft, _ = sign(draft, ROOTS[0])
    away = json.loads(dump_bundle(draft))
    root = json.loads(away["drafts"]["root"])
    root["signatures"][0]["sig"] = "00" * 64
    root["signatures"].append({"keyid": ROOTS[1].public_key.keyid, "sig": "11" * 64})
    away["drafts"]["root"] = json.dumps(root)
    back, taken = take_signatures(draft, load_bundle(json.dumps(away).encode()))
    assert taken == []
    assert progress(back)[0].signed == (ROOTS[0].public_key.keyid,)
    assert back.drafts == draft.drafts


@pytest.mark.parametrize(
    "raw",
    [b"", b"\xff", b"{}", b'{"v":1,"kind":"image","published":{},"drafts":{"root":"{}"}}', b"[" * 100_000],
)
def test_what_is_no_bundle(raw: bytes) -> None:
    with pytest.raises(RepositoryTrouble):
        load_bundle(raw)


# The truck's stored trust


def test_the_store_comes_back_as_it_was_written(store: TrustedStore) -> None:
    assert TrustedStore.load(store.dump()) == store


def test_a_newer_agents_fields_are_kept(store: TrustedStore) -> None:
    obj = json.loads(store.dump())
    obj["learned"] = {"x": 1}
    obj["image"]["seen"] = 7
    again = TrustedStore.load(json.dumps(obj).encode())
    kept = json.loads(again.ran("SN-0", 9).dump())
    assert (kept["learned"], kept["image"]["seen"]) == ({"x": 1}, 7)


BROKEN: dict[str, Callable[[dict[str, Any]], object]] = {
    "another version": lambda one: one.update(v=2),
    "a root that is none": lambda one: one["image"].update(root="{}"),
    "a root that was changed": lambda one: one["image"].update(
        root=one["image"]["root"].replace('"threshold":2', '"threshold":1')
    ),
    "a version below zero": lambda one: one["image"].update(snapshot=-1),
    "a counter that is text": lambda one: one["counters"].update({"SN-0": "9"}),
    "a time without a zone": lambda one: one["times"].update({"director/time": "2026-01-01T00:00:00"}),
    "no director": lambda one: one.pop("director"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_store_trusts_nothing(store: TrustedStore, name: str) -> None:
    obj = json.loads(store.dump())
    BROKEN[name](obj)
    with pytest.raises(StoreUnreadable):
        TrustedStore.load(json.dumps(obj).encode())


@pytest.mark.parametrize("raw", [b"", b"\xff", b" " * (MOST_STORE_BYTES + 1)])
def test_what_is_no_store(raw: bytes) -> None:
    with pytest.raises(StoreUnreadable):
        TrustedStore.load(raw)


def test_counters_and_times_only_rise(store: TrustedStore) -> None:
    assert store.ran("SN-0", 1) is store
    assert store.ran("SN-0", 5).counters["SN-0"] == 5
    assert store.seen_time("image/timestamp", NOW - timedelta(days=1)) is store


def test_a_truck_is_provisioned_with_two_roots_that_share_nothing(world: UptaneWorld) -> None:
    root = world.image.published["1.root.json"]
    with pytest.raises(MetadataRefused, match="shares a key"):
        provision(director_root=root, image_root=root)
    with pytest.raises(MetadataRefused):
        provision(
            director_root=world.director.published["1.root.json"], image_root=root.replace(b"2027", b"2037")
        )
