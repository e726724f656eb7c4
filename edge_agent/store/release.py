"""PURE: how far a release of several ECUs is, as the journal remembers it. JSON in one column.

What is written here is what was seen or begun, never what must be true now: after a restart and after
every failure `doubted` forgets how far each ECU was said to be, and each act asks the ECU first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

import msgspec

from edge_agent.store.release_plan import Part, ReleasePlan
from shared.messages import Error, TargetResult


class Reached(IntEnum):
    """How far an ECU was seen to be on its way to the new image."""

    NOTHING = 0
    STAGED = 1
    ACTIVE = 2
    PROVED = 3


_REACHED_BY = {Part.STAGE: Reached.STAGED, Part.ACTIVATE: Reached.ACTIVE, Part.CHECK: Reached.PROVED}


@dataclass(frozen=True, kw_only=True)
class Former:
    """What an ECU held before it was touched. `is_kept`: the gateway has the image to flash it again.

    `faults` are the trouble codes that it had, where the release asks for them; None: not known.
    """

    version: str | None
    sha256: str | None
    is_kept: bool
    faults: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class TargetState:
    """One ECU of a release. `touched`: it may be changed. `settled`: confirmed, or back where it was.
    `failures` are its failed tries.

    `image` is the path of the new image, `result` what the ECU answered last of the new one.
    """

    component: str
    touched: bool = False
    reached: Reached = Reached.NOTHING
    settled: bool = False
    failures: int = 0
    image: str | None = None
    former: Former | None = None
    result: TargetResult | None = None


@dataclass(frozen=True, kw_only=True)
class Release:
    """A release under way. `at` is the component whose act comes next; None: all of them are asked.

    `failure` is why it goes back. `only_forward`: an image to return to was lost, or never demanded.
    """

    plan: ReleasePlan
    states: tuple[TargetState, ...]
    at: str | None = None
    failure: Error | None = None
    only_forward: bool = False

    @classmethod
    def of(cls, plan: ReleasePlan) -> Release:
        """A release of which nothing is done yet."""
        return cls(plan=plan, states=tuple(TargetState(component=one.component) for one in plan.targets))

    def state(self, component: str) -> TargetState:
        """One ECU of it."""
        return next(one for one in self.states if one.component == component)

    def having(self, component: str, **changes: Any) -> Release:
        """The same with one ECU's fields changed."""
        states = tuple(replace(one, **changes) if one.component == component else one for one in self.states)
        return replace(self, states=states)

    @property
    def touched(self) -> bool:
        """Whether any ECU may be changed."""
        return any(one.touched for one in self.states)

    @property
    def may_go_back(self) -> bool:
        """Whether every touched single-slot ECU has an image to return to."""
        return not self.only_forward and all(
            one.former is not None and (one.former.is_kept or self.plan.target(one.component).slots == 2)
            for one in self.states
            if one.touched
        )

    def doubted(self) -> Release:
        """Nothing that was seen is believed any more."""
        states = tuple(replace(one, reached=Reached.NOTHING, settled=False) for one in self.states)
        return replace(self, states=states)

    def next_part(self) -> tuple[Part, str] | None:
        """The first part of the program that is not reached; None: all are proved."""
        reached = {one.component: one.reached for one in self.states}
        for part, component in self.plan.program():
            if reached[component] < _REACHED_BY[part]:
                return part, component
        return None

    def next_to_confirm(self) -> str | None:
        """The next ECU whose image is to be made permanent."""
        return next((one.component for one in self.states if not one.settled), None)

    def next_to_restore(self) -> str | None:
        """The next touched ECU that is to go back, the last one started first."""
        for component in self.plan.way_back():
            state = self.state(component)
            if state.touched and not state.settled:
                return component
        return None

    def where(self, component: str | None) -> str:
        """A component and its place among all, for people."""
        names = [one.component for one in self.plan.targets]
        if component is None:
            return f"all {len(names)} components"
        return f"{component} ({names.index(component) + 1} of {len(names)})"


def encode(release: Release) -> str:
    """As it is kept."""
    return msgspec.json.encode(release).decode()


def decode(text: str) -> Release:
    """What was kept. Raises msgspec.ValidationError."""
    return msgspec.json.decode(text, type=Release)
