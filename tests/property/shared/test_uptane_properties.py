"""Whatever bytes a link brings, a truck selects what was directed or nothing, and never goes back."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.trust.uptane.store import RepositoryName, TrustedStore
from shared.trust.uptane.verify import Outcome
from sim.uptane_world import NOW, UptaneWorld

Served = dict[tuple[RepositoryName, str], bytes]
MOMENTS = 4


class Lived:
    """A fleet over four releases, with the key rotations of a year, and all that was ever served."""

    def __init__(self) -> None:
        self.world = UptaneWorld()
        self.moments: list[Served] = []
        for number in range(MOMENTS):
            self.world.now = NOW + timedelta(hours=number)
            if number == 2:
                self.world.rotate("image/root")
                self.world.rotate("director/root")
            self.world.direct(self.world.release(f"1.{number}.0", 2 + number))
            self.moments.append(dict(self.world.served))
        self.names = sorted({key for moment in self.moments for key in moment})
        self.metadata = [key for key in self.names if key[1].endswith(".json")]


@pytest.fixture(scope="module")
def lived() -> Lived:
    return Lived()


def verify(lived: Lived, served: Served, store: TrustedStore) -> Outcome:
    lived.world.served = served
    return lived.world.verify(store)


MANY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@MANY
@given(st.data())
def test_a_changed_byte_selects_nothing_else(lived: Lived, data: st.DataObject) -> None:
    """Of any file that is served, metadata or release document: one byte changed, put in or taken out."""
    honest = lived.moments[-1]
    store = lived.world.store()
    selected = verify(lived, honest, store).selection
    assert selected is not None
    key = data.draw(st.sampled_from(lived.metadata))
    raw = honest[key]
    at = data.draw(st.integers(0, len(raw) - 1))
    byte = bytes([data.draw(st.one_of(st.integers(0, 255), st.sampled_from(b'0123456789{}[]",:af')))])
    how = data.draw(st.sampled_from(["change", "insert", "drop"]))
    changed = raw[:at] + (b"" if how == "drop" else byte) + raw[at + (how != "insert") :]
    outcome = verify(lived, {**honest, key: changed}, store)
    assert (outcome.selection is None) == (outcome.refused is not None)
    if outcome.selection is not None:
        assert outcome.selection == selected
    again = TrustedStore.load(outcome.store.dump())
    assert verify(lived, honest, again).selection == selected


@MANY
@given(st.data())
def test_files_of_any_moments_mixed_never_take_a_truck_back(lived: Lived, data: st.DataObject) -> None:
    """Mix-and-match, replay and drops over a life: what is accepted is a whole moment, and no earlier one."""
    store = lived.world.store()
    reached = -1
    for _ in range(data.draw(st.integers(1, 6))):
        whole = data.draw(st.integers(0, MOMENTS - 1))
        served = dict(lived.moments[whole])
        for key in data.draw(st.lists(st.sampled_from(lived.names), max_size=6)):
            moment = lived.moments[data.draw(st.integers(0, MOMENTS - 1))]
            if key in moment:
                served[key] = moment[key]
            else:
                served.pop(key, None)
        outcome = verify(lived, served, store)
        assert outcome.refused is not None or outcome.selection is not None
        if outcome.selection is not None:
            versions = {one.spec.version for one in outcome.selection.assignments}
            assert versions == {outcome.selection.release.version}
            number = int(outcome.selection.release.version.split(".")[1])
            assert number >= reached
            reached = number
        for repository in ("director", "image"):
            before, after = store.of(repository), outcome.store.of(repository)
            assert after.timestamp >= before.timestamp
            assert after.snapshot >= before.snapshot
            assert all(after.roles[name] >= version for name, version in before.roles.items())
        store = outcome.store
