"""Delays between tries: exponential, capped, jittered; a pure value without a clock."""

from __future__ import annotations

import random
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """The delays of a retried act, in seconds.

    The n-th delay (from 0) is `first_s * factor**n`, at most `most_s`, then spread evenly over
    `1 - jitter .. 1` of itself, so that a fleet that lost one link does not come back at once.
    """

    first_s: float = 1.0
    most_s: float = 300.0
    factor: float = 2.0
    jitter: float = 0.0
    rng: random.Random = field(default_factory=random.Random, repr=False, compare=False)

    def delay_s(self, tries: int) -> float:
        """The wait after the `tries`-th failure, counted from 0."""
        # The exponent is bounded, since a truck may retry for weeks and floats overflow.
        grown = self.first_s * self.factor ** min(tries, 64)
        delay = min(grown, self.most_s)
        return delay * (1.0 - self.jitter * self.rng.random())


OUTBOX_BACKOFF = Backoff(first_s=1.0, most_s=8.0)
"""1, 2, 4, 8 s: the delays of an event that the bus refused; then it is dead-lettered."""
OUTBOX_TRIES = 5
"""The first try and the four that follow the delays above."""
