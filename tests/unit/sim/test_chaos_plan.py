"""The schedule of a chaos run: one seed, one schedule, and all that can go wrong in it."""

from __future__ import annotations

import pytest

from sim.chaos.plan import KILLS, NEEDS_RECORDING, STATES, At, Kind, make_plan

COMPONENTS = ("brake", "body")


def test_a_seed_gives_the_same_faults_at_the_same_points() -> None:
    one = make_plan(1, updates=200, trucks=5, components=COMPONENTS)
    assert one == make_plan(1, updates=200, trucks=5, components=COMPONENTS)
    assert one != make_plan(2, updates=200, trucks=5, components=COMPONENTS)
    # A longer run begins as the shorter one.
    assert make_plan(1, updates=50, trucks=5, components=COMPONENTS) == one[:50]


def test_two_hundred_updates_meet_everything() -> None:
    plan = make_plan(1, updates=200, trucks=5, components=COMPONENTS)
    faults = [fault for update in plan for fault in update.faults]
    assert {fault.kind for fault in faults} == set(Kind)
    assert {fault.at for fault in faults} == set(At)
    assert {update.truck for update in plan} == set(range(5))
    for what in ("bad", "cancel", "doubled", "lag_s"):
        assert 0 < sum(bool(getattr(update, what)) for update in plan) < 200, what
    named = {fault.name for fault in faults if fault.at is At.POINT}
    assert named == {f"journal.{when}:{state}" for when in ("before", "after") for state in STATES}


@pytest.mark.parametrize("seed", range(20))
def test_an_agent_ends_itself_only_for_a_fault_that_kills_it(seed: int) -> None:
    for update in make_plan(seed, updates=50, trucks=3, components=COMPONENTS):
        for fault in update.faults:
            assert fault.kind in KILLS or fault.at not in {At.POINT, At.DISK}
            assert (fault.name in COMPONENTS) is (fault.at is At.PROGRAMMED)


def test_a_machine_without_a_compiler_has_the_other_kinds() -> None:
    kinds = tuple(one for one in Kind if one not in NEEDS_RECORDING)
    plan = make_plan(1, updates=200, trucks=5, components=COMPONENTS, kinds=kinds)
    faults = [fault for update in plan for fault in update.faults]
    assert {fault.kind for fault in faults} == {Kind.KILL, Kind.LINK_CUT, Kind.POWER_ECU}
    assert At.DISK not in {fault.at for fault in faults}


def test_a_single_ecu_has_nothing_to_go_back_with() -> None:
    plan = make_plan(1, updates=200, trucks=5, components=COMPONENTS, may_go_back=False)
    assert not any(update.bad for update in plan)
