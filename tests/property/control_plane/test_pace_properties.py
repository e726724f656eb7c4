"""However commands come and time goes, the broker gets no more than the rate allows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from control_plane.dispatcher.pace import Pace


@given(
    rate=st.floats(0.1, 100.0),
    burst=st.integers(1, 50),
    turns=st.lists(st.tuples(st.floats(0, 5), st.integers(0, 60)), max_size=40),
)
def test_in_every_span_at_most_burst_and_rate(
    rate: float, burst: int, turns: list[tuple[float, int]]
) -> None:
    pace = Pace(rate_per_s=rate, burst=burst)
    now = 0.0
    sent: list[tuple[float, int]] = []
    for wait, wanted in turns:
        now += wait
        count = min(wanted, pace.allowed(now))
        pace.take(count)
        sent.append((now, count))
    for first in range(len(sent)):
        total = 0
        for at, count in sent[first:]:
            total += count
            assert total <= burst + rate * (at - sent[first][0]) + 1e-6


@given(rate=st.floats(0.1, 1000.0), burst=st.integers(1, 50))
def test_after_the_wait_one_may_go(rate: float, burst: int) -> None:
    pace = Pace(rate_per_s=rate, burst=burst)
    pace.allowed(0.0)
    pace.take(burst)
    wait_s = pace.wait_s()
    assert wait_s > 0
    assert pace.allowed(wait_s) == 1
