"""Figures of the whole agent as a process beside a real office; the rest is a second instead of a minute."""

from __future__ import annotations

import pytest

from cli.benches import agent_process


@pytest.mark.timeout(240)
def test_memory_and_cpu_are_the_agents_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_process, "IDLE_S", 1.0)
    monkeypatch.setattr(agent_process, "SETTLE_S", 0.1)
    rss, cpu = agent_process.idle_rss(), agent_process.idle_cpu()
    assert (rss.case, rss.unit, rss.limit) == ("idle.rss", "MiB", 50.0)
    # No Python with TLS, SQLite and a trust chain is smaller; this test's own process is larger.
    assert rss.value is not None
    assert 25 < rss.value < 120
    assert rss.met == (rss.value < 50)
    assert (cpu.case, cpu.unit) == ("idle.cpu", "% of a core")
    assert cpu.value is not None
    assert 0 <= cpu.value <= 200


@pytest.mark.long
@pytest.mark.timeout(240)
def test_a_start_is_measured_to_the_office() -> None:
    row = agent_process.start()
    assert (row.case, row.unit, row.goal) == ("start.first_status", "s", "none")
    assert row.value is not None
    assert row.value > 0
