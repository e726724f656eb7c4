"""The token bucket, by a clock of the test's own."""

from __future__ import annotations

import pytest

from control_plane.dispatcher.pace import Pace


def test_at_once_only_the_burst_then_the_rate() -> None:
    pace = Pace(rate_per_s=2.0, burst=5)
    assert pace.allowed(100.0) == 5
    pace.take(5)
    assert pace.allowed(100.0) == 0
    assert pace.wait_s() == pytest.approx(0.5)
    assert pace.allowed(100.5) == 1
    pace.take(1)
    assert pace.allowed(101.9) == 2
    assert pace.allowed(10_000.0) == 5


def test_a_clock_that_goes_back_gives_nothing() -> None:
    pace = Pace(rate_per_s=1.0, burst=2)
    pace.allowed(100.0)
    pace.take(2)
    assert pace.allowed(50.0) == 0
    assert pace.allowed(51.0) == 1


def test_what_is_not_used_is_kept_up_to_the_burst() -> None:
    pace = Pace(rate_per_s=1.0, burst=3)
    pace.allowed(0.0)
    pace.take(1)
    assert pace.allowed(0.0) == 2
    assert pace.allowed(0.9) == 2
    assert pace.allowed(1.0) == 3
