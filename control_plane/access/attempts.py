"""Bounds on wrong tries of an endpoint that anybody may call.

Enrolment tokens are 256 random bits, so nobody guesses one; the bound keeps a broken or hostile
client from costing more than a look into memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from control_plane.cache import MemoryCache
from control_plane.errors import TooMany


class WrongAttempts:
    """Counts wrong tries by where they come from; after `most` of them there is a pause of `pause_s`."""

    def __init__(
        self,
        *,
        most: int = 20,
        pause_s: float = 60.0,
        most_sources: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most = most
        self._counts: MemoryCache[str, int] = MemoryCache(most=most_sources, ttl_s=pause_s, clock=clock)

    def check(self, source: str) -> None:
        """Raise TooMany while `source` has to pause."""
        if (self._counts.get(source) or 0) >= self._most:
            raise TooMany("too many wrong tries from this address")

    def wrong(self, source: str) -> None:
        """Another wrong try. They are forgotten `pause_s` after the last one."""
        self._counts.put(source, (self._counts.get(source) or 0) + 1)
