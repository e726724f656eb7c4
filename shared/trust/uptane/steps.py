"""How a pure verification asks for files: a generator yields `Wanted` and is sent bytes, or None.

So the same checks run over a link, from a USB bundle, from a truck's cache and in memory. Whoever
drives it does the fetching, with time-outs and a lowest rate (slow retrieval), and reads at most
`most_bytes`. What it sends is believed in nothing: a cache may be damaged, a link may be anyone's.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

import msgspec

from shared.trust.uptane.errors import Expired, TimeNotProved
from shared.trust.uptane.store import RepositoryName, TrustedStore
from shared.trust.uptane.time_policy import Now, Reading, TimePolicy, judge_time

_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A file: `name` relative to the repository's base address.

    `sha256` is given where it is known already, so that a cache can answer. `probe`: it may well not
    be there, None is a good answer.
    """

    repository: RepositoryName
    name: str
    most_bytes: int
    sha256: str | None = None
    probe: bool = False


Steps = Generator[Wanted, bytes | None, _Result]


def drive(steps: Steps[_Result], fetch: Callable[[Wanted], bytes | None]) -> _Result:
    """Run a verification to its end with a function that fetches."""
    try:
        wanted = next(steps)
        while True:
            wanted = steps.send(fetch(wanted))
    except StopIteration as ended:
        result: _Result = ended.value
        return result


@dataclass(kw_only=True)
class Run:
    """One verification under way: `store` moves on by whole repositories and whole links of root.

    `expiries` are all times that what was accepted so far depends on. `offline`: the selection comes
    from a bundle, whose own expiry stands for the freshness of timestamp and snapshot.
    """

    store: TrustedStore
    reading: Reading
    policy: TimePolicy
    offline: bool = False
    signed_times: dict[str, datetime] = field(default_factory=dict)
    expiries: dict[str, datetime] = field(default_factory=dict)

    def now(self) -> Now:
        """The time, not below what was signed, this run's metadata included."""
        floor = max([self.store.floor(self.policy.built_at), *self.signed_times.values()])
        return judge_time(self.reading, floor, self.policy)

    def clock_behind(self) -> bool:
        """The truck's clock reads less than what was signed already."""
        try:
            return self.now().behind
        except TimeNotProved:
            return True

    def check_expiry(self, where: str, expires: datetime) -> None:
        """Raise Expired when this is over; remember it otherwise."""
        now = self.now().at
        if now >= expires:
            raise Expired(where, f"expired at {expires.isoformat()}, now is {now.isoformat()}")
        self.expiries[where] = expires

    def check_expiries(self) -> None:
        """All of them again: a later signed time may have shown that the clock was behind."""
        for where, expires in tuple(self.expiries.items()):
            self.check_expiry(where, expires)

    def keep_times(self) -> None:
        """The floor rises to what was verified in this run."""
        for who, at in self.signed_times.items():
            self.store = self.store.seen_time(who, at)

    def forget_times(self, *who: str) -> None:
        """A key was rotated away: the floor that it made goes with it."""
        kept = {name: at for name, at in self.store.times.items() if name not in who}
        self.store = msgspec.structs.replace(self.store, times=kept)
