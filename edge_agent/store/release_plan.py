"""PURE: the order in which a release of several ECUs is brought to a truck.

What can be undone by a reset comes first: every two-slot ECU takes its image into its passive slot while
all of them run on. Then, group by group, the two-slot ones of the group are started on trial and proved, and
only then its single-slot ones are erased, written, started and proved. So the release is known to be good
for every ECU that it could be tried on before the first one loses what it runs. The release ends whole or
goes back whole whatever its groups; a group says which ECUs change together on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from shared.errors import OtaError
from shared.messages import Command
from shared.since_310 import StrEnum

USUAL_ATTEMPTS = 5
"""Where no signed release says how many."""


class BadPlan(OtaError):
    """A release names its targets in a way that can't be carried out."""

    code = "bad_plan"
    advice = "Correct the release's targets and groups, and sign it again."


class Part(StrEnum):
    """One part of the way of one ECU."""

    STAGE = "stage"
    ACTIVATE = "activate"
    CHECK = "check"


@dataclass(frozen=True, kw_only=True)
class FaultBounds:
    """No trouble code with a bit of `status_mask` for `for_s` on end, but for `ignored` ones and, with
    `known_may_stay`, those of before the release.
    """

    status_mask: int
    ignored: tuple[int, ...] = ()
    known_may_stay: bool = True
    for_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class HeartbeatBounds:
    """Frames of `pgn` at most `every_s` apart, for `for_s` on end. `source` None: the component's own."""

    pgn: int
    source: int | None = None
    every_s: float
    for_s: float


@dataclass(frozen=True, kw_only=True)
class HealthBounds:
    """How long an ECU may take to prove itself after its start, and how often it is asked; in seconds.

    Without `faults` and `heartbeat` it proves its identity alone.
    """

    within_s: float = 30.0
    every_s: float = 1.0
    faults: FaultBounds | None = None
    heartbeat: HeartbeatBounds | None = None

    @property
    def asks_more(self) -> bool:
        """Whether identity is not all."""
        return self.faults is not None or self.heartbeat is not None


@dataclass(frozen=True, kw_only=True)
class PlannedTarget:
    """One ECU of a release. `slots` is 1 or 2.

    `needs_way_back`: the release is refused unless the image that a single-slot ECU holds is kept,
    verified, on the gateway; without it the release can only go forward once that ECU is touched.
    `attempts`: failed tries on this ECU after which the release goes back.
    """

    component: str
    slots: int
    group: int = 0
    needs_way_back: bool = True
    attempts: int = USUAL_ATTEMPTS
    health: HealthBounds = HealthBounds()


@dataclass(frozen=True, kw_only=True)
class ReleasePlan:
    """Targets in the order that the release names; groups are numbered from 0 in their order."""

    targets: tuple[PlannedTarget, ...]

    def __post_init__(self) -> None:
        """Raises BadPlan."""
        names = [one.component for one in self.targets]
        if not names:
            raise BadPlan("the release names no target")
        if len(set(names)) < len(names):
            raise BadPlan(f"a component is named twice: {', '.join(names)}")
        if any(one.slots not in {1, 2} for one in self.targets):
            raise BadPlan("an ECU has one slot or two")

    def program(self) -> tuple[tuple[Part, str], ...]:
        """Every part of the way in its order."""
        parts = [(Part.STAGE, one.component) for one in self.targets if one.slots == 2]
        for group in sorted({one.group for one in self.targets}):
            members = [one for one in self.targets if one.group == group]
            for one in (*(m for m in members if m.slots == 2), *(m for m in members if m.slots == 1)):
                if one.slots == 1:
                    parts.append((Part.STAGE, one.component))
                parts += [(Part.ACTIVATE, one.component), (Part.CHECK, one.component)]
        return tuple(parts)

    def way_back(self) -> tuple[str, ...]:
        """Components in the reverse of the order in which they are started."""
        return tuple(component for part, component in reversed(self.program()) if part is Part.ACTIVATE)

    def target(self, component: str) -> PlannedTarget:
        """One ECU of the release."""
        return next(one for one in self.targets if one.component == component)


Planner = Callable[[Command, Mapping[str, int]], ReleasePlan]
"""Makes a plan of a command and the slots of each of its components. Raises BadPlan."""


def plan_of(command: Command, slots: Mapping[str, int]) -> ReleasePlan:
    """The targets in the command's order, as one group, each with a way back."""
    return ReleasePlan(
        targets=tuple(
            PlannedTarget(component=target.component, slots=slots[target.component])
            for target in command.targets
        )
    )
