"""A bounded cache: never the source of truth, safe to lose at any moment.

Whoever learns something from the database puts it in only after the commit, and drops it when it
changes. Everything has a lifetime, so that a process that missed a change is wrong for seconds only.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
K_contra = TypeVar("K_contra", bound=Hashable, contravariant=True)


class Cache(Protocol[K_contra, V]):
    """What a cache promises."""

    def get(self, key: K_contra) -> V | None:
        """The value while it lives; None when it is not there, whatever the reason."""
        ...

    def put(self, key: K_contra, value: V) -> None:
        """Keep a value for the cache's lifetime; it may be forgotten earlier."""
        ...

    def drop(self, key: K_contra) -> None:
        """Forget a value; nothing happens when it is not there."""
        ...


class MemoryCache(Generic[K, V]):
    """`Cache` in this process: at most `most` values, the least recently used goes first.

    A value lives `ttl_s` seconds from its put, however often it is read. `clock` gives seconds that
    only grow.
    """

    def __init__(self, *, most: int, ttl_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        if most < 1 or ttl_s <= 0:
            raise ValueError("a cache holds at least one value for more than no time")
        self._most = most
        self._ttl_s = ttl_s
        self._clock = clock
        self._values: OrderedDict[K, tuple[float, V]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: K) -> V | None:
        """The value while it lives."""
        found = self._values.get(key)
        if found is None:
            return None
        until, value = found
        if self._clock() >= until:
            del self._values[key]
            return None
        self._values.move_to_end(key)
        return value

    def put(self, key: K, value: V) -> None:
        """Keep a value; forgets the least recently used one when there are too many."""
        self._values[key] = (self._clock() + self._ttl_s, value)
        self._values.move_to_end(key)
        while len(self._values) > self._most:
            self._values.popitem(last=False)

    def drop(self, key: K) -> None:
        """Forget a value."""
        self._values.pop(key, None)
