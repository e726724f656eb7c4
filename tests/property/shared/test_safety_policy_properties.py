"""The safety that was signed in a release: a truck narrows it and never widens it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shared.trust.uptane.safety_policy import LOOSEST, Period, SafetyPolicy, narrow

POLICIES = st.builds(
    SafetyPolicy,
    speed_at_most=st.integers(0, 10_000),
    standstill_signals=st.integers(2, 8),
    engine_speed_at_most_rpm=st.integers(0, 3000),
    need_parking_brake=st.booleans(),
    need_neutral=st.booleans(),
    need_key_switch_on=st.booleans(),
    need_consent=st.booleans(),
    battery_at_least=st.integers(0, 30_000),
    stale_after=st.integers(1, 10_000),
    steady_for=st.integers(0, 10_000),
    forbidden=st.lists(
        st.builds(Period, start=st.integers(0, 1440), end=st.integers(0, 1440)), max_size=3, unique=True
    ).map(lambda some: tuple(sorted(some))),
    holds=st.sets(st.sampled_from(["shift", "service", "blast"])).map(lambda some: tuple(sorted(some))),
    may_take_silent_engine_as_off=st.booleans(),
    may_flash_gateway_only=st.booleans(),
    may_go_without_way_back=st.booleans(),
)


def as_strict(one: SafetyPolicy, other: SafetyPolicy) -> bool:
    """Everything that `one` permits, `other` permits too."""
    return (
        one.speed_at_most <= other.speed_at_most
        and one.standstill_signals >= other.standstill_signals
        and one.engine_speed_at_most_rpm <= other.engine_speed_at_most_rpm
        and one.need_parking_brake >= other.need_parking_brake
        and one.need_neutral >= other.need_neutral
        and one.need_key_switch_on >= other.need_key_switch_on
        and one.need_consent >= other.need_consent
        and one.battery_at_least >= other.battery_at_least
        and one.stale_after <= other.stale_after
        and one.steady_for >= other.steady_for
        and set(one.forbidden) >= set(other.forbidden)
        and set(one.holds) >= set(other.holds)
        and one.may_take_silent_engine_as_off <= other.may_take_silent_engine_as_off
        and one.may_flash_gateway_only <= other.may_flash_gateway_only
        and one.may_go_without_way_back <= other.may_go_without_way_back
    )


@given(POLICIES, POLICIES)
def test_a_truck_narrows_and_never_widens(policy: SafetyPolicy, local: SafetyPolicy) -> None:
    both = narrow(policy, local)
    assert as_strict(both, policy)
    assert as_strict(both, local)
    assert narrow(both, local) == both == narrow(local, policy)
    assert narrow(policy, LOOSEST) == policy
