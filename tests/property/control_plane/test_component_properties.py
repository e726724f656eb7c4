"""Registered and reported components: neither side ever overwrites the other's word silently."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from control_plane.devices.model import Component, NewComponent, registered, reported
from shared.messages import Installed

WORDS = st.sampled_from(["a", "b", "c"])
VERSIONS = st.none() | st.sampled_from(["1", "2"])
AT = datetime(2026, 11, 25, tzinfo=UTC)

SAID = st.builds(
    Installed,
    component=st.just("x"),
    kind=WORDS,
    hardware=WORDS,
    version=VERSIONS,
    in_bootloader=st.booleans(),
)
NEW = st.builds(NewComponent, component=st.just("x"), kind=WORDS, hardware=WORDS, installed_version=VERSIONS)


def _play(steps: list[Installed | NewComponent]) -> Component:
    one: Component | None = None
    for step in steps:
        one = reported(one, step, AT) if isinstance(step, Installed) else registered(one, step)
    assert one is not None
    return one


@given(st.lists(SAID | NEW, min_size=1, max_size=8))
def test_whatever_happens_both_words_can_be_read(steps: list[Installed | NewComponent]) -> None:
    one = _play(steps)
    operators = [step for step in steps if isinstance(step, NewComponent)]
    # Whoever spoke first of it registered it; after that only operators decide.
    decided = operators[-1] if operators else steps[0]
    assert (one.kind, one.hardware) == (decided.kind, decided.hardware)
    assert one.reported_kind != one.kind
    assert one.reported_hardware != one.hardware
    if isinstance(steps[-1], Installed):
        said = steps[-1]
        assert (one.reported_kind or one.kind, one.reported_hardware or one.hardware) == (
            said.kind,
            said.hardware,
        )
        assert one.differs == ((said.kind, said.hardware) != (one.kind, one.hardware))
        assert (one.installed_version, one.in_bootloader) == (said.version, said.in_bootloader)


@given(st.lists(SAID | NEW, min_size=1, max_size=6), SAID, NEW)
def test_repeats_change_nothing(
    steps: list[Installed | NewComponent], said: Installed, new: NewComponent
) -> None:
    for step in (said, new):
        assert _play([*steps, step, step]) == _play([*steps, step])


@given(st.lists(SAID | NEW, max_size=6), SAID)
def test_an_operator_who_agrees_with_the_truck_ends_the_difference_and_keeps_what_it_said(
    steps: list[Installed | NewComponent], said: Installed
) -> None:
    before = _play([*steps, said])
    after = _play([*steps, said, NewComponent(component="x", kind=said.kind, hardware=said.hardware)])
    assert not after.differs
    assert after.installed_version == before.installed_version
    assert after.reported_at == AT
