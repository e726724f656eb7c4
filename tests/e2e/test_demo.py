"""The demo itself, as a newcomer runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]


def run_demo(*args: str, timeout: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "cli.main", "demo", *args],
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )


@pytest.fixture(scope="module")
def played() -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    done = run_demo("--json", timeout=280)
    assert done.returncode == 0, done.stderr
    return done, json.loads(done.stdout)


@pytest.mark.timeout(300)
def test_the_demo_ends_well_and_prints_one_object(
    played: tuple[subprocess.CompletedProcess[str], dict[str, Any]],
) -> None:
    done, report = played
    assert done.stdout.count("\n") == 1
    assert report["ok"] is True
    assert report["seconds"] > 0
    assert len(report["trucks"]) == 3


def test_every_mcu_holds_exactly_the_release(
    played: tuple[subprocess.CompletedProcess[str], dict[str, Any]],
) -> None:
    trucks = played[1]["trucks"]
    assert len({truck["device_id"] for truck in trucks}) == 3
    assert all(truck["mcu_sha256"] == truck["expected_sha256"] for truck in trucks)
    # Two kinds of ECU: an STM32 on two trucks, an ESP32 on the third.
    assert len({truck["expected_sha256"] for truck in trucks}) == 2
    assert all(truck["jobs"][-1]["state"] == "done" for truck in trucks)


def test_the_tampered_image_was_refused_with_a_reason_and_nothing_else_was(
    played: tuple[subprocess.CompletedProcess[str], dict[str, Any]],
) -> None:
    jobs = [job for truck in played[1]["trucks"] for job in truck["jobs"]]
    refused = [job for job in jobs if job["state"] == "error"]
    assert len(jobs) == 4
    assert len(refused) == 1
    assert "SHA-256" in refused[0]["refused_reason"]
    assert all("refused_reason" not in job for job in jobs if job["state"] == "done")


def test_no_status_is_lost_and_none_is_kept_twice(
    played: tuple[subprocess.CompletedProcess[str], dict[str, Any]],
) -> None:
    for truck in played[1]["trucks"]:
        assert truck["duplicates"] == 0
        # received, downloading, verifying, flashing, done: fewer can't tell the story.
        assert truck["statuses"] >= 5


def test_the_demo_leaves_no_process_behind(
    played: tuple[subprocess.CompletedProcess[str], dict[str, Any]],
) -> None:
    left = []
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = cmdline.read_bytes()
        except OSError:
            continue
        if b"quarry-demo-" in command:
            left.append(command)
    assert left == []


@pytest.mark.parametrize("args", [["--trucks", "0"], ["--trucks", "many"], ["--no-such"]])
def test_wrong_use_of_the_demo_is_one_clear_error(args: list[str]) -> None:
    done = run_demo(*args, timeout=60)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
