"""`quarry sim chaos`: what it prints, and how it ends."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli import sim_chaos
from cli.sim import app
from sim.chaos.fleet import By
from sim.chaos.run import Report

REPORT = Report(
    ok=True,
    seed=7,
    by="releases",
    updates=4,
    trucks=2,
    ends={"done": 3, "error": 1},
    planned={"kill": 3},
    happened={"kill": 2},
    left_out=[],
    doubled_messages=5,
    restarts=2,
    crashes=0,
    statuses=40,
    duplicates=0,
    lost=0,
    dead_letters=0,
    databases_set_aside=0,
    wrong=[],
    seconds=12.34,
)


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    asked: dict[str, Any] = {"report": REPORT}

    async def play(folder: Path, *, show: Any, **what: Any) -> Report:
        asked.update(what)
        show("update 0")
        assert folder.is_dir()
        asked["folder"] = folder
        report: Report = asked["report"]
        return report

    monkeypatch.setattr(sim_chaos, "play", play)
    monkeypatch.setattr(sim_chaos, "set_up_logs", lambda *_, **__: None)
    return asked


def test_one_json_object_and_nothing_left_behind(played: dict[str, Any]) -> None:
    words = ["chaos", "--updates", "4", "--trucks", "2", "--seed", "7", "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {**REPORT.as_json(), "seconds": 12.3}
    assert (played["updates"], played["trucks"], played["seed"]) == (4, 2, 7)
    assert played["by"] is By.RELEASES
    assert not played["folder"].exists()


def test_words_for_people(played: dict[str, Any]) -> None:
    done = CliRunner().invoke(app, ["chaos", "--by", "documents"])
    assert done.exit_code == 0
    assert "3 done, 1 error" in done.stdout
    assert "lost 0, twice 0" in done.stdout
    assert played["by"] is By.DOCUMENTS


def test_what_went_wrong_is_said_and_is_a_failure(played: dict[str, Any]) -> None:
    played["report"] = replace(REPORT, ok=False, wrong=["update 3: neither whole-new nor whole-old"])
    done = CliRunner().invoke(app, ["chaos", "--json"])
    assert done.exit_code == 1
    assert "update 3: neither whole-new nor whole-old" in done.stderr
    assert json.loads(done.stdout)["ok"] is False


@pytest.mark.parametrize("words", [["--updates", "0"], ["--trucks", "11"], ["--by", "hope"]])
def test_wrong_use(words: list[str]) -> None:
    assert CliRunner().invoke(app, ["chaos", *words]).exit_code == 2
