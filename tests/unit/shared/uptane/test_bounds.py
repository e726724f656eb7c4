"""What is served is bounded before it is parsed, and what is no metadata is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from shared.trust.uptane.repository_check import MOST_ROLES, SIGNED_AT
from shared.trust.uptane.roles import (
    MOST_DIRECTOR_TARGETS_BYTES,
    MOST_KEYS,
    MOST_ROOT_BYTES,
    MOST_SNAPSHOT_BYTES,
    MOST_TIMESTAMP_BYTES,
)
from shared.trust.uptane.store import RepositoryName, TrustedStore
from sim.uptane_attacker import Attacker, forged
from sim.uptane_world import UptaneWorld

Change = Callable[[dict[str, Any]], None]


def put(key: str, value: Any) -> Change:
    return lambda signed: signed.update({key: value})


LIMITS = [
    ("director", "timestamp.json", MOST_TIMESTAMP_BYTES),
    ("image", "timestamp.json", MOST_TIMESTAMP_BYTES),
    ("image", "2.root.json", MOST_ROOT_BYTES),
    ("director", "2.root.json", MOST_ROOT_BYTES),
]


@pytest.mark.parametrize(("repository", "name", "most"), LIMITS)
def test_a_file_without_end_is_not_parsed(
    world: UptaneWorld, store: TrustedStore, repository: RepositoryName, name: str, most: int
) -> None:
    world.served[repository, name] = b"{" * (most + 1)
    assert world.refusal(store) == "metadata_too_large"


def test_a_listed_length_bounds_the_download(world: UptaneWorld, store: TrustedStore) -> None:
    """One byte more than listed is asked for at most, and refused."""
    name, raw = Attacker.insider(world).newest("image", "targets")
    world.served["image", name] = raw + b" " * 10_000_000
    assert world.refusal(store) == "metadata_not_as_listed"


@pytest.mark.parametrize(
    ("role", "most"), [("snapshot", MOST_SNAPSHOT_BYTES), ("targets", MOST_DIRECTOR_TARGETS_BYTES)]
)
def test_a_length_over_the_bound_is_not_downloaded(
    world: UptaneWorld, store: TrustedStore, role: str, most: int
) -> None:
    bad = Attacker.insider(world)
    listing = "timestamp" if role == "snapshot" else "snapshot"

    def change(signed: dict[str, Any]) -> None:
        signed["meta"][f"{role}.json"]["length"] = most + 1
        signed["version"] += listing == "timestamp"

    bad.edit("director", listing, change)
    if listing == "snapshot":
        bad.relist_snapshot("director")
    assert bad.refusal(store) == "metadata_too_large"


@pytest.mark.parametrize(
    ("name", "raw"),
    {
        "not JSON": b"\x00\x01",
        "not UTF-8": b'{"signed": "\xff"}',
        "another role": None,
        "an array": b"[]",
        "nested without end": b'{"signed":' + b"[" * 8000,
        "a number without end": b'{"signed": {"version": ' + b"9" * 8000 + b"}}",
    }.items(),
)
def test_what_is_no_timestamp_is_refused_by_name(
    world: UptaneWorld, store: TrustedStore, name: str, raw: bytes | None
) -> None:
    world.served["director", "timestamp.json"] = (
        raw or Attacker.insider(world).newest("director", "targets")[1]
    )
    assert world.refusal(store) == "metadata_unreadable"


@pytest.mark.parametrize("said", [None, 5, "yesterday", "2999-01-01T00:00:00Z"])
def test_a_timestamp_must_say_when_it_was_signed(
    world: UptaneWorld, store: TrustedStore, said: object
) -> None:
    bad = Attacker.insider(world)
    bad.edit("image", "timestamp", put(SIGNED_AT, said))
    assert bad.refusal(store) == "metadata_unreadable"


@pytest.mark.parametrize(
    ("repository", "role"),
    [
        ("director", "timestamp"),
        ("director", "targets"),
        ("image", "snapshot"),
        ("image", "brake-controller"),
    ],
)
def test_a_file_that_is_not_served_is_missed_by_name(
    world: UptaneWorld, store: TrustedStore, repository: RepositoryName, role: str
) -> None:
    name = "timestamp.json" if role == "timestamp" else Attacker.insider(world).newest(repository, role)[0]
    del world.served[repository, name]
    outcome = world.verify(store)
    assert outcome.refused is not None
    assert (outcome.refused.code, outcome.refused.retryable) == ("metadata_missing", True)


@pytest.mark.parametrize(
    "name", ["../brake.json", "brake/x.json", "a.b.json", ".json", "brake.txt", "b" * 65 + ".json"]
)
def test_a_snapshot_lists_roles_and_no_paths(world: UptaneWorld, store: TrustedStore, name: str) -> None:
    bad = Attacker.insider(world)
    bad.edit("image", "snapshot", lambda signed: signed["meta"].update({name: {"version": 1}}))
    bad.relist_snapshot("image")
    assert bad.refusal(store) == "metadata_unreadable"


def test_listed_roles_are_counted(world: UptaneWorld, store: TrustedStore) -> None:
    bad = Attacker.insider(world)
    many = {f"role-{number}.json": {"version": 1} for number in range(MOST_ROLES)}
    bad.edit("image", "snapshot", lambda signed: signed["meta"].update(many))
    bad.relist_snapshot("image")
    assert bad.refusal(store) == "metadata_unreadable"


@pytest.mark.parametrize("version", [True, 2**53 + 1])
def test_a_version_is_a_number_that_can_be(world: UptaneWorld, store: TrustedStore, version: object) -> None:
    bad = Attacker.insider(world)
    bad.edit("director", "timestamp", put("version", version))
    assert bad.refusal(store) == "metadata_unreadable"


def test_the_keys_of_a_role_are_counted_before_they_are_tried(
    world: UptaneWorld, store: TrustedStore
) -> None:
    def root(signed: dict[str, Any]) -> None:
        signed["version"] = 2
        signed["roles"]["timestamp"]["keyids"] += [f"{number:064x}" for number in range(MOST_KEYS)]

    raw = world.served["image", "1.root.json"]
    world.served["image", "2.root.json"] = forged(raw, root, world.signers("image/root"))
    assert world.refusal(store) == "metadata_unreadable"
