"""Time on a truck: never below a floor, and intervals by a clock that nobody sets.

A gateway without a battery starts in 1970. What is signed must not become good again by that, so
wall time reads at least the floor: the time of this build (a signed document carries no time of
signing that could raise it yet).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from shared.since_310 import UTC

BUILT_AT = datetime(2026, 11, 24, tzinfo=UTC)
"""Raised with each release of the agent."""


def _wall() -> datetime:
    return datetime.now(UTC)


def boot_s() -> float:
    """Seconds since boot, suspended time counted; what `/proc/uptime` says."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, kw_only=True)
class Clock:
    """`now()` is UTC and not below `floor`; `boot_s()` measures intervals."""

    floor: datetime = BUILT_AT
    wall: Callable[[], datetime] = _wall
    boot_s: Callable[[], float] = boot_s

    def now(self) -> datetime:
        """The time to judge expiries by."""
        return max(self.wall(), self.floor)
