"""A scenario's report: when is it well, and what does the demo make of one that is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cli.main import dispatch
from sim.scenarios.report import EcuReport, JobReport, Picture, Report, Scene, TruckReport

ECU = EcuReport(
    component="brake",
    serial="t-brake",
    version="1.1.0",
    mcu_sha256="11",
    expected_sha256="11",
    manifest_sha256="11",
)
DONE = JobReport(job_id="j2", state="done", release="releases/haul/1.1.0/5e.json")
REFUSED = JobReport(job_id="j1", state="error", refused_reason="it has SHA-256 77", code="wrong_image")
TRUCK = TruckReport(device_id="truck-001", jobs=(REFUSED, DONE), ecus=(ECU,), statuses=9, duplicates=0)
SCENE = Scene(name="tampered_image_refused", ok=True, said="it is refused")
WELL = Report(trucks=(TRUCK,), scenes=(SCENE,), alarms=(), seconds=30.0, set_up_s=8.0)


def with_truck(**other: Any) -> Report:
    return replace(WELL, trucks=(replace(TRUCK, **other),))


NOT_WELL: dict[str, Report] = {
    "a scene is not so": replace(WELL, scenes=(SCENE, replace(SCENE, ok=False))),
    "an ECU holds something else": with_truck(ecus=(ECU, replace(ECU, mcu_sha256="22"))),
    "the manifest says something else": with_truck(ecus=(replace(ECU, manifest_sha256="22"),)),
    "no manifest": with_truck(ecus=(replace(ECU, manifest_sha256=None),)),
    "the last job failed": with_truck(jobs=(DONE, REFUSED)),
    "a job failed without a reason": with_truck(jobs=(replace(REFUSED, refused_reason=None), DONE)),
    "a job was cancelled": with_truck(jobs=(replace(REFUSED, state="cancelled", refused_reason=None), DONE)),
    "a status twice": with_truck(duplicates=1),
}


def test_a_report_that_is_well() -> None:
    assert WELL.ok


@pytest.mark.parametrize("case", NOT_WELL)
def test_a_report_that_is_not_well(case: str) -> None:
    assert not NOT_WELL[case].ok


def test_what_a_job_has_not_is_left_out_of_the_json() -> None:
    made = json.loads(json.dumps(WELL.as_json()))
    truck = made["trucks"][0]
    assert truck["jobs"] == [
        {"job_id": "j1", "state": "error", "refused_reason": "it has SHA-256 77", "code": "wrong_image"},
        {"job_id": "j2", "state": "done", "release": "releases/haul/1.1.0/5e.json"},
    ]
    assert (truck["mcu_sha256"], truck["expected_sha256"]) == ("11", "11")
    assert (made["ok"], made["seconds"], made["set_up_seconds"]) == (True, 30.0, 8.0)


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> Callable[[Report, list[str]], int]:
    """The command with a scenario that is told here."""

    def run(report: Report, args: list[str]) -> int:
        async def play(_: Path, *, trucks: int, show: Callable[[Picture], None]) -> Report:
            picture = Picture(stage="a stage")
            picture.row(f"truck-{trucks}").ecus = {"brake": "1.0.0"}
            show(picture)
            picture.lines += ["a stage", "  truck-1: [a note]"]
            show(picture)
            show(picture)
            return report

        monkeypatch.setattr("cli.demo.play", play)
        monkeypatch.setattr("cli.demo.set_up_logs", lambda *_, **__: None)
        return dispatch(["demo", *args])

    return run


def test_the_demo_says_each_line_once_and_ends_well(demo: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo(WELL, []) == 0
    said = capsys.readouterr()
    assert said.out.count("truck-1: [a note]") == 1
    assert "wrong_image" in said.out
    assert said.err == ""


@pytest.mark.parametrize("args", [[], ["--json"]])
def test_the_demo_fails_when_what_it_shows_is_not_so(
    demo: Any, capsys: pytest.CaptureFixture[str], args: list[str]
) -> None:
    assert demo(NOT_WELL["a scene is not so"], args) == 1
    assert "not as it must be: tampered_image_refused" in capsys.readouterr().err
    assert demo(NOT_WELL["the manifest says something else"], args) == 1
    assert "not every ECU holds its release" in capsys.readouterr().err
