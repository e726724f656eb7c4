"""`quarry bench agent`: its cases, and that each measures what it says; sizes are reduced."""

from __future__ import annotations

import json
import shutil

import pytest
from typer.testing import CliRunner

from cli import bench
from cli.benches import agent_delta, agent_idle, agent_queue, agent_verify
from cli.benches.agent import CASES


def test_it_has_the_cases_that_people_compare() -> None:
    assert [one.name for one in CASES] == [
        *("idle.rss", "idle.cpu", "idle.cpu_j1939", "journal.bytes_per_1000_statuses", "start.first_status"),
        *("backlog.drain", "queue.year_offline", "delta.ratio", "delta.seconds", "verify.release"),
    ]
    assert {one.name for one in CASES if one.goal == "none"} == {
        *("journal.bytes_per_1000_statuses", "start.first_status", "verify.release")
    }


def test_json_of_those_that_need_no_office(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "set_up_logs", lambda *_, **__: None)
    monkeypatch.setattr(agent_queue, "BACKLOG", 400)
    monkeypatch.setattr(agent_queue, "STATUSES", 100)
    monkeypatch.setattr(agent_queue, "DAYS", 2)
    monkeypatch.setattr(agent_queue, "SAMPLES_A_DAY", 50)
    monkeypatch.setattr(agent_verify, "TARGETS", 40)
    names = ["journal.*", "backlog.drain", "queue.*", "verify.*"]
    result = CliRunner().invoke(bench.app, ["agent", "--json", *(f"--case={name}" for name in names)])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["bench"] == "agent"
    assert {row["case"]: row.get("why") for row in told["rows"]} == {
        "journal.bytes_per_1000_statuses": None,
        "backlog.drain": None,
        "queue.year_offline": None,
        "verify.release": None,
    }
    rows = {row["case"]: row for row in told["rows"]}
    assert all(row["value"] > 0 for row in rows.values())
    # What is written is more than what is told; a year's queues stay within their bound.
    assert rows["journal.bytes_per_1000_statuses"]["ratio"] > 1
    assert rows["queue.year_offline"]["met"] is True


@pytest.mark.skipif(shutil.which("gcc") is None, reason="the images are built with gcc")
def test_a_delta_of_two_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_delta, "SIZES", {"small": 24 * 1024})
    agent_delta._pair.cache_clear()
    agent_delta._toolchain.cache_clear()
    monkeypatch.setattr(shutil, "which", lambda _: None)
    try:
        ratio, seconds = agent_delta.ratio(), agent_delta.seconds()
        pair = agent_delta._pair(24 * 1024)
    finally:
        agent_delta._pair.cache_clear()
        agent_delta._toolchain.cache_clear()
    assert 12 * 1024 < len(pair.base) < len(pair.image) < 48 * 1024
    # Code was inserted early: what is alike stands elsewhere.
    assert sum(a != b for a, b in zip(pair.base, pair.image, strict=False)) > len(pair.base) // 4
    assert ratio.value is not None
    assert seconds.value is not None
    assert 0 < ratio.value < 1
    assert "generated C" in ratio.apart


def test_without_a_compiler_the_row_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "set_up_logs", lambda *_, **__: None)
    monkeypatch.setenv("PATH", "/nowhere")
    agent_delta._pair.cache_clear()
    agent_delta._toolchain.cache_clear()
    result = CliRunner().invoke(bench.app, ["agent", "--json", "--strict", "--case", "delta.ratio"])
    agent_delta._toolchain.cache_clear()
    assert result.exit_code == 1
    [row] = json.loads(result.stdout)["rows"]
    assert (row["value"], row["met"], row["goal"]) == (None, False, "< limit")
    assert "gcc can't build the images" in row["why"]


def test_the_reader_is_measured_beside_a_busy_bus() -> None:
    row = agent_idle.idle_cpu_j1939(seconds=1.0)
    assert row.value is not None
    assert row.value > 0
