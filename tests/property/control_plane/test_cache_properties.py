"""Whatever is done to the cache: it never holds more than its bound, and never lies."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from control_plane.cache import MemoryCache

KEYS = st.integers(min_value=0, max_value=9)
MOST, TTL_S = 4, 10.0


class CacheMachine(RuleBasedStateMachine):
    """Against a model that remembers every put with its time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.cache: MemoryCache[int, int] = MemoryCache(most=MOST, ttl_s=TTL_S, clock=lambda: self.now)
        self.truth: dict[int, tuple[float, int]] = {}
        self.used: list[int] = []

    def _touched(self, key: int) -> None:
        self.used = [k for k in self.used if k != key] + [key]

    @rule(key=KEYS, value=st.integers())
    def put(self, key: int, value: int) -> None:
        self.cache.put(key, value)
        self.truth[key] = (self.now, value)
        self._touched(key)

    @rule(key=KEYS)
    def get(self, key: int) -> None:
        got = self.cache.get(key)
        if got is not None:
            at, value = self.truth[key]
            assert got == value
            assert self.now < at + TTL_S
            self._touched(key)

    @rule(key=KEYS)
    def drop(self, key: int) -> None:
        self.cache.drop(key)
        self.truth.pop(key, None)
        assert self.cache.get(key) is None

    @rule(by=st.floats(min_value=0, max_value=12))
    def wait(self, by: float) -> None:
        self.now += by

    @invariant()
    def bounded(self) -> None:
        assert len(self.cache) <= MOST

    @rule()
    def the_recently_used_are_there(self) -> None:
        # What was used most recently is only gone when its time is over.
        for key in self.used[-1:]:
            if key in self.truth and self.now < self.truth[key][0] + TTL_S:
                assert self.cache.get(key) == self.truth[key][1]


CacheMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestCache = CacheMachine.TestCase
