"""PURE: the schedule of a chaos run. One seed gives one schedule: which fault in which update at which point.

Points are places in an update's progress (a kill point of the agent, an act on its disk, bytes downloaded or
programmed), never times of a clock, so that a slow machine meets the same faults. How long a fault lasts is
in seconds.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What goes wrong."""

    LINK_CUT = "link_cut"  # both links, for a while
    KILL = "kill"  # SIGKILL to the agent
    POWER_GATEWAY = "power_gateway"  # the same, and what it had not synced is lost
    POWER_ALL = "power_all"  # the gateway's and every ECU's power at once
    POWER_ECU = "power_ecu"  # one ECU's power, the gateway runs on
    DISK_FULL = "disk_full"  # the data folder's files can't grow any more, for a while
    CLOCK = "clock"  # the wall clock jumps, and is set right after a while
    CLOCK_RESTART = "clock_restart"  # the agent is killed and starts with a wrong clock


KILLS = frozenset({Kind.KILL, Kind.POWER_GATEWAY, Kind.POWER_ALL, Kind.CLOCK_RESTART})
NEEDS_RECORDING = frozenset(
    {Kind.POWER_GATEWAY, Kind.POWER_ALL, Kind.DISK_FULL, Kind.CLOCK, Kind.CLOCK_RESTART}
)
"""Kinds that take the preloaded library (sim/power.c), so a C compiler."""


class At(StrEnum):
    """What is counted to the point of a fault."""

    ORDERED = "ordered"  # the job was ordered
    POINT = "point"  # the agent passes a kill point of this name
    DISK = "disk"  # so many acts on the agent's disk later
    DOWNLOADED = "downloaded"  # this part of an image has come
    PROGRAMMED = "programmed"  # this part of an ECU's image is in its flash


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault. `name` is a kill point's or a component's, `value` a fraction or a count; see At.

    `lasts_s` for what passes; `clock_s` the jump, None: to 1970; `room_bytes` what a full disk still takes;
    `seed` which unsynced pages a power cut takes.
    """

    kind: Kind
    at: At
    name: str = ""
    value: float = 0.0
    lasts_s: float = 0.0
    clock_s: float | None = 0.0
    room_bytes: int = 0
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Update:
    """One update. `bad`: the new image of the ECU with two slots crashes at boot. `cancel`: an operator
    thinks better of it. `doubled`: each MQTT message of QoS 1 comes twice. `lag_s`: the link's delay.
    """

    number: int
    truck: int
    faults: tuple[Fault, ...]
    bad: bool
    cancel: bool
    doubled: bool
    lag_s: float


STATES = ("downloading", "verifying", "waiting", "flashing", "activating", "checking", "confirming", "done")
CLOCK_JUMPS: tuple[float | None, ...] = (None, 31 * 86400.0, -7 * 86400.0, 3600.0)
BAD_ONE_IN = 10
CANCEL_ONE_IN = 12


def make_plan(
    seed: int,
    *,
    updates: int,
    trucks: int,
    components: Sequence[str],
    kinds: Sequence[Kind] = tuple(Kind),
    may_go_back: bool = True,
) -> tuple[Update, ...]:
    """The schedule. `may_go_back`: updates are releases of several ECUs, so a bad image may be among them."""
    dice = random.Random(seed)
    made = []
    for number in range(updates):
        faults = tuple(_fault(dice, components, kinds) for _ in range(dice.choice((0, 1, 1, 2, 2, 3))))
        made.append(
            Update(
                number=number,
                truck=number % trucks,
                faults=tuple(sorted(faults, key=_place)),
                bad=may_go_back and dice.randrange(BAD_ONE_IN) == 0,
                cancel=dice.randrange(CANCEL_ONE_IN) == 0,
                doubled=dice.random() < 0.4,
                lag_s=dice.choice((0.0, 0.0, 0.01, 0.05)),
            )
        )
    return tuple(made)


def _fault(dice: random.Random, components: Sequence[str], kinds: Sequence[Kind]) -> Fault:
    kind = dice.choice(kinds)
    places = [At.ORDERED, At.DOWNLOADED, At.PROGRAMMED, At.PROGRAMMED]
    if kind in KILLS:
        places += [At.POINT] * 4
        if Kind.POWER_GATEWAY in kinds:
            places += [At.DISK] * 2
    at = dice.choice(places)
    name, value = "", 0.0
    match at:
        case At.POINT:
            name = f"journal.{dice.choice(('before', 'after'))}:{dice.choice(STATES)}"
        case At.DISK:
            value = float(dice.randint(1, 120))
        case At.DOWNLOADED:
            value = dice.uniform(0.05, 0.9)
        case At.PROGRAMMED:
            value = dice.uniform(0.02, 0.95)
            name = dice.choice(components)
    return Fault(
        kind=kind,
        at=at,
        name=name,
        value=value,
        lasts_s=round(dice.uniform(0.2, 2.5), 2),
        clock_s=dice.choice(CLOCK_JUMPS),
        room_bytes=dice.choice((0, 0, 1000, 6000)),
        seed=dice.randrange(1 << 30),
    )


_ORDER = {At.ORDERED: 0, At.DOWNLOADED: 1, At.POINT: 2, At.DISK: 2, At.PROGRAMMED: 3}


def _place(fault: Fault) -> tuple[int, int]:
    """So that an earlier point is not waited for behind a later one."""
    if fault.at is At.POINT:
        state = STATES.index(fault.name.partition(":")[2])
        return (1 if state < 3 else 3, state)
    return (_ORDER[fault.at], 3)
