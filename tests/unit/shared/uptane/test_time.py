"""Clocks that are wrong, weeks without a link, and thieves of time: closed, and never bricked."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from shared.trust.uptane.errors import BadTimeToken, BelowThreshold, MetadataRefused
from shared.trust.uptane.repository_check import SIGNED_AT
from shared.trust.uptane.repository_edit import renew
from shared.trust.uptane.store import TrustedStore
from shared.trust.uptane.time_policy import Begin, Now, Reading, TimePolicy, judge_time, may_begin
from shared.trust.uptane.time_token import check_time_token as check
from shared.trust.uptane.time_token import make_time_token
from sim.uptane_attacker import Attacker
from sim.uptane_world import BUILT_AT, NOW, UptaneWorld

MakeAttacker = Callable[..., Attacker]
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NONCE = "0123456789abcdef" * 2
POLICY = TimePolicy(built_at=BUILT_AT)


def test_weeks_offline_means_renew_first_and_then_it_goes_on(world: UptaneWorld, store: TrustedStore) -> None:
    world.now = NOW + timedelta(weeks=9)
    assert world.refusal(store) == "metadata_expired"
    # The link is back: the office renews on its own, nobody touches the truck.
    world.direct(world.release("1.2.0", 3))
    outcome = world.verify(store)
    assert outcome.selection is not None
    assert outcome.selection.release.version == "1.2.0"


def test_weeks_offline_with_roots_rotated_meanwhile(world: UptaneWorld, store: TrustedStore) -> None:
    world.now = NOW + timedelta(weeks=9)
    for role in ("director/root", "image/root", "director/timestamp", "image/targets"):
        world.rotate(role)
        world.publish()
    world.direct(world.release("1.2.0", 3))
    assert world.refusal(store) is None


def test_a_truck_that_was_built_years_ago_finds_its_way(world: UptaneWorld) -> None:
    """Its first roots expired long since; only the newest must be good."""
    store = world.store()
    world.now = NOW + timedelta(days=3 * 365)
    world.rotate("director/root")
    world.rotate("image/root")
    for role in ("targets", "brake-controller", "hoist-controller"):
        world.image = renew(world.image, role, world.now)
    world.direct(world.release("1.2.0", 3))
    assert world.refusal(store) is None


def test_1970_does_not_keep_fresh_metadata_out(world: UptaneWorld, store: TrustedStore) -> None:
    outcome = world.verify(store, wall=EPOCH)
    assert outcome.refused is None
    assert outcome.clock_behind


def test_1970_makes_nothing_good_again_that_had_expired(world: UptaneWorld, store: TrustedStore) -> None:
    """Signed time that was verified once is the floor: old files stay old whatever the clock says."""
    old = dict(world.served)
    world.now = NOW + timedelta(days=3)
    world.direct(world.release("1.2.0", 3))
    later = world.verify(store).store
    assert later.floor(BUILT_AT) == world.now
    world.served = {**world.served, **{key: raw for key, raw in old.items() if "root" not in key[1]}}
    # Even with the versions forgotten, a freshly provisioned truck with that floor refuses.
    blank = msgspec.structs.replace(world.store(), times=later.times)
    assert world.refusal(blank, wall=EPOCH) == "metadata_expired"


def test_1970_on_a_new_truck_is_not_below_the_build(world: UptaneWorld) -> None:
    late = TimePolicy(built_at=NOW + timedelta(days=30))
    assert world.refusal(world.store(), wall=EPOCH, policy=late) == "metadata_expired"


def test_time_reads_at_least_the_build_the_floor_and_the_clock() -> None:
    floor = BUILT_AT + timedelta(days=3)
    assert judge_time(Reading(wall=EPOCH), EPOCH, POLICY) == Now(at=BUILT_AT, behind=True)
    assert judge_time(Reading(wall=EPOCH), floor, POLICY) == Now(at=floor, behind=True)
    assert judge_time(Reading(wall=NOW), floor, POLICY) == Now(at=NOW, behind=False)
    assert judge_time(Reading(wall=NOW, proved=floor), EPOCH, POLICY) == Now(at=floor, behind=False)
    # Honest clocks differ by minutes; that is no alarm.
    near = floor - timedelta(minutes=9)
    assert judge_time(Reading(wall=near), floor, POLICY) == Now(at=floor, behind=False)


def test_a_policy_can_ask_for_a_token_when_the_clock_is_behind(
    world: UptaneWorld, store: TrustedStore
) -> None:
    strict = TimePolicy(built_at=BUILT_AT, token_when_behind=True)
    outcome = world.verify(store, wall=EPOCH, policy=strict)
    assert outcome.refused is not None
    assert (outcome.refused.code, outcome.clock_behind) == ("time_not_proved", True)
    assert world.refusal(store, wall=EPOCH, proved=NOW, policy=strict) is None
    assert world.refusal(store, policy=strict) is None


def test_a_clock_a_month_ahead_opens_nothing_and_a_token_corrects_it(
    world: UptaneWorld, store: TrustedStore
) -> None:
    ahead = NOW + timedelta(days=31)
    outcome = world.verify(store, wall=ahead)
    assert outcome.refused is not None
    assert (outcome.refused.code, outcome.refused.retryable) == ("metadata_expired", True)
    # It did not raise the floor: a clock is nobody's signature.
    assert outcome.store.floor(BUILT_AT) == store.floor(BUILT_AT)
    raw = make_time_token(NONCE, NOW, world.signers("director/time"))
    proved, kept = check(raw, NONCE, outcome.store)
    assert world.refusal(kept, wall=ahead, proved=proved) is None


def test_a_thief_of_the_timestamp_key_moves_time_until_the_key_is_rotated(
    world: UptaneWorld, store: TrustedStore, attacker: MakeAttacker
) -> None:
    for role in ("director/timestamp", "image/timestamp"):
        repository, _, name = role.partition("/")
        bad = attacker(f"{role}/1")

        def years_ahead(signed: dict[str, object]) -> None:
            signed[SIGNED_AT] = "2040-01-01T00:00:00Z"
            signed["expires"] = "2041-01-01T00:00:00Z"
            signed["version"] = int(str(signed["version"])) + 1

        bad.edit(repository, name, years_ahead)  # type: ignore[arg-type]
        outcome = bad.verify(store)
        assert outcome.refused is not None
        assert outcome.refused.code == "metadata_expired"
        # Nothing of it was kept, since the rest of the repository could not be from 2040.
        assert outcome.store.floor(BUILT_AT) < datetime(2030, 1, 1, tzinfo=UTC)


def test_a_captured_director_moves_time_as_far_as_its_root_and_rotation_brings_it_back(
    world: UptaneWorld, store: TrustedStore, attacker: MakeAttacker
) -> None:
    bad = attacker("director/targets/1", "director/snapshot/1", "director/timestamp/1")
    bad.now = NOW + timedelta(days=300)
    bad.directed = world.directed
    bad.direct(None)
    outcome = bad.verify(store, wall=NOW)
    assert outcome.refused is not None
    assert (outcome.refused.code, outcome.refused.where) == ("metadata_expired", "image/timestamp")
    assert outcome.store.floor(BUILT_AT) == bad.now
    assert world.refusal(outcome.store) is not None
    for role in ("timestamp", "snapshot", "targets"):
        world.rotate(f"director/{role}")
    world.direct(world.release("1.2.0", 3))
    assert world.refusal(outcome.store) is None


@pytest.mark.parametrize("repository", ["director", "image"])
def test_a_floor_that_a_thief_made_goes_with_the_rotation(
    world: UptaneWorld, store: TrustedStore, repository: str
) -> None:
    poisoned = store.seen_time(f"{repository}/timestamp", datetime(2040, 1, 1, tzinfo=UTC))
    assert world.refusal(poisoned) == "metadata_expired"
    world.rotate(f"{repository}/timestamp")
    world.direct(world.release("1.2.0", 3))
    assert world.refusal(poisoned) is None


def test_a_thief_of_the_time_key_is_undone_by_rotation(world: UptaneWorld, store: TrustedStore) -> None:
    raw = make_time_token(NONCE, datetime(2040, 1, 1, tzinfo=UTC), world.signers("director/time"))
    _, poisoned = check(raw, NONCE, store)
    assert world.refusal(poisoned) == "metadata_expired"
    world.rotate("director/time")
    world.publish()
    outcome = world.verify(poisoned)
    assert outcome.refused is None
    with pytest.raises(BelowThreshold):
        check(raw, NONCE, outcome.store)


TOKENS: dict[str, tuple[Callable[[UptaneWorld], bytes], type[MetadataRefused]]] = {
    "an old answer": (
        lambda world: make_time_token("f" * 32, NOW, world.signers("director/time")),
        BadTimeToken,
    ),
    "signed by another role": (
        lambda world: make_time_token(NONCE, NOW, world.signers("director/timestamp")),
        BelowThreshold,
    ),
    "not signed": (lambda _: make_time_token(NONCE, NOW, []), BelowThreshold),
    "changed": (
        lambda world: make_time_token(NONCE, NOW, world.signers("director/time")).replace(b"2026", b"2036"),
        BelowThreshold,
    ),
    "endless": (lambda _: b"{" * 9000, BadTimeToken),
    "not JSON": (lambda _: b"\xff", BadTimeToken),
    "no time": (
        lambda world: make_time_token(NONCE, NOW, world.signers("director/time")).replace(b"2026-", b"soon-"),
        BadTimeToken,
    ),
}


@pytest.mark.parametrize("name", TOKENS)
def test_a_token_that_proves_nothing(world: UptaneWorld, store: TrustedStore, name: str) -> None:
    make, refused = TOKENS[name]
    with pytest.raises(refused):
        check(make(world), NONCE, store)


def test_a_token_raises_the_floor(world: UptaneWorld, store: TrustedStore) -> None:
    later = NOW + timedelta(days=30)
    at, kept = check(make_time_token(NONCE, later, world.signers("director/time")), NONCE, store)
    assert at == kept.floor(BUILT_AT) == later


def test_what_was_verified_in_time_may_begin_within_the_policys_grace() -> None:
    """And what has begun goes on: stopping would strand the ECU."""
    expires, week = NOW, TimePolicy(built_at=BUILT_AT, grace=timedelta(days=7))
    second = timedelta(seconds=1)
    assert may_begin(expires, NOW - second, POLICY, begun=False) is Begin.NOW
    assert may_begin(expires, NOW, POLICY, begun=False) is Begin.RENEW_FIRST
    assert may_begin(expires, NOW + timedelta(days=400), POLICY, begun=True) is Begin.NOW
    assert may_begin(expires, NOW + timedelta(days=7) - second, week, begun=False) is Begin.NOW
    assert may_begin(expires, NOW + timedelta(days=7), week, begun=False) is Begin.RENEW_FIRST


@pytest.mark.parametrize(
    "fields",
    [{"grace": timedelta(days=91)}, {"grace": timedelta(seconds=-1)}, {"tolerance": timedelta(seconds=-1)}],
)
def test_a_policy_that_would_trust_too_much_is_no_policy(fields: dict[str, timedelta]) -> None:
    with pytest.raises(ValueError, match=r"grace|tolerance"):
        TimePolicy(built_at=BUILT_AT, **fields)  # type: ignore[arg-type]


# USB bundles


def test_a_bundle_installs_without_a_link_long_after_the_timestamps_expired(
    world: UptaneWorld, store: TrustedStore
) -> None:
    world.direct_offline(world.release("1.2.0", 3))
    for key in [key for key in world.served if key[0] == "director" and "root" not in key[1]]:
        if not key[1].startswith("offline/"):
            del world.served[key]
    outcome = world.verify(store, wall=NOW + timedelta(days=89), offline=True)
    assert outcome.selection is not None
    assert outcome.selection.release.version == "1.2.0"
    assert world.refusal(store, wall=NOW + timedelta(days=90), offline=True) == "metadata_expired"


def test_a_bundle_needs_a_directors_root_that_is_good(world: UptaneWorld, store: TrustedStore) -> None:
    release = world.release("1.2.0", 3)
    world.now = NOW + timedelta(days=400)
    world.direct_offline(release)
    refused = world.verify(store, offline=True).refused
    assert refused is not None
    assert (refused.code, refused.where) == ("metadata_expired", "director/root")


def test_a_bundle_never_lowers_a_version(world: UptaneWorld, store: TrustedStore) -> None:
    world.direct_offline(world.release("1.2.0", 3), version=2)
    kept = world.verify(store, offline=True).store
    assert kept.offline == 2
    world.direct_offline(world.release("1.3.0", 4), version=1)
    assert world.refusal(kept, offline=True) == "metadata_rolled_back"
    old = {key: raw for key, raw in world.served.items() if key == ("image", "timestamp.json")}
    world.release("1.4.0", 5)
    kept = world.verify(store).store
    world.served.update(old)
    assert world.refusal(kept, offline=True) == "metadata_rolled_back"


@pytest.mark.parametrize(("days", "code"), [(91, "metadata_unreadable"), (90, None)])
def test_a_bundle_is_good_for_90_days_at_most(
    world: UptaneWorld, store: TrustedStore, days: int, code: str | None
) -> None:
    world.direct_offline(world.release("1.2.0", 3), days=days)
    assert world.refusal(store, offline=True) == code


def test_a_bundle_is_for_the_listed_trucks(world: UptaneWorld, store: TrustedStore) -> None:
    assert world.refusal(store, offline=True) == "metadata_missing"


def test_the_online_keys_sign_no_bundle(
    world: UptaneWorld, store: TrustedStore, attacker: MakeAttacker
) -> None:
    release = world.release("1.2.0", 3)
    bad = attacker("director/targets/1", "director/snapshot/1", "director/timestamp/1")
    bad.served.update(world.served)
    bad.direct_offline(release)
    assert bad.refusal(store, offline=True) == "metadata_unsigned"
