"""What time is it, for the purpose of trusting something? A stated policy, and pure.

A gateway without a battery starts in 1970; another is a month ahead. The rule: time never reads
below the floor, the newest *signed* time that was verified, else the time of the build.

- Behind (1970): the floor and the signed times of fresh metadata lift it, so that what expired
  long ago stays expired. `token_when_behind` asks for more: a time token, whatever the floor.
- Ahead: everything looks expired, which installs nothing and is answered by "renew first"; a time
  token, bound to a nonce of this boot, replaces the wall clock and corrects it downwards too.
- Signed times come from keys. A thief of one can push the floor far ahead, and nothing installs
  until that key is rotated: the rotation drops the floor that it made (see root_chain).

Metadata that expired while the truck was away is renewed before anything begins. `grace` lets a
release that was verified whole in time begin so much later without a link: for a truck that waits
in a pit for its interlocks. What has begun is finished whatever the time: stopping would strand it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum

from shared.since_310 import UTC
from shared.trust.uptane.errors import TimeNotProved

MOST_GRACE = timedelta(days=90)


@dataclass(frozen=True, kw_only=True)
class TimePolicy:
    """`built_at` is the build's time, UTC. `tolerance` is how far honest clocks differ."""

    built_at: datetime
    tolerance: timedelta = timedelta(minutes=10)
    grace: timedelta = timedelta(0)
    token_when_behind: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError for a policy that would trust what is older than any bundle may be."""
        if not timedelta(0) <= self.grace <= MOST_GRACE:
            raise ValueError(f"grace {self.grace} is not 0 to {MOST_GRACE.days} days")
        if self.tolerance < timedelta(0):
            raise ValueError("tolerance is negative")
        if self.built_at.tzinfo is None:
            raise ValueError("built_at has no time zone")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What the truck's clocks say, UTC.

    `proved` is the time of a verified token of this boot and what the boot-time clock counted since;
    None without one.
    """

    wall: datetime
    proved: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Now:
    """The time to judge by. `behind`: the clock reads less than what was signed already."""

    at: datetime
    behind: bool


class Begin(Enum):
    """May a release that was verified earlier begin now?"""

    NOW = "now"
    RENEW_FIRST = "renew_first"


def judge_time(reading: Reading, floor: datetime, policy: TimePolicy) -> Now:
    """The time not below `floor`. Raises TimeNotProved where the policy asks for a token."""
    said = (reading.proved or reading.wall).astimezone(UTC)
    floor = max(floor, policy.built_at)
    behind = said < floor - policy.tolerance
    if behind and policy.token_when_behind and reading.proved is None:
        raise TimeNotProved("clock", f"it reads {said.isoformat()}, {floor.isoformat()} was signed already")
    return Now(at=max(said, floor), behind=behind)


def may_begin(expires: datetime, now: datetime, policy: TimePolicy, *, begun: bool) -> Begin:
    """May a release whose metadata is good until `expires` begin, or go on when it has `begun`?"""
    return Begin.NOW if begun or now < expires + policy.grace else Begin.RENEW_FIRST
