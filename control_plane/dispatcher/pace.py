"""PURE: a token bucket, so that 500 commands at once never overload the broker or the links."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(kw_only=True)
class Pace:
    """At most `burst` at once and `rate_per_s` in the long run; times are seconds of any steady clock."""

    rate_per_s: float
    burst: int
    _tokens: float = -1.0
    _at: float = 0.0

    def allowed(self, now: float) -> int:
        """How many may go now."""
        if self._tokens < 0:
            self._tokens = float(self.burst)
        else:
            grown = self._tokens + max(0.0, now - self._at) * self.rate_per_s
            self._tokens = min(float(self.burst), grown)
        self._at = now
        # A rounding error must not hold back a whole token for another turn.
        return int(self._tokens + 1e-9)

    def take(self, count: int) -> None:
        """So many, as `allowed` has just said, go."""
        self._tokens = max(0.0, self._tokens - count)

    def wait_s(self) -> float:
        """The time until one more may go, counted from the last `allowed`."""
        return max(0.0, 1.0 - self._tokens) / self.rate_per_s
