"""The bench of the vehicle's reader measures a reader that hears."""

from __future__ import annotations

from cli.benches.agent_idle import idle_cpu_j1939


def test_it_is_the_readers_own_cpu() -> None:
    row = idle_cpu_j1939(seconds=2.5)
    assert (row.case, row.unit, row.limit) == ("idle.cpu_j1939", "% of a core", 2.0)
    assert row.value is not None
    assert 0 < row.value < 100
    assert row.met == (row.value < 2.0)
