"""The demo itself, as a newcomer runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]

Played = tuple[subprocess.CompletedProcess[str], dict[str, Any]]


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
def played() -> Played:
    done = run_demo("--json", timeout=280)
    assert done.returncode == 0, done.stderr
    return done, json.loads(done.stdout)


def jobs_of(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [job for truck in report["trucks"] for job in truck["jobs"]]


@pytest.mark.timeout(300)
def test_the_demo_ends_well_and_prints_one_object(played: Played) -> None:
    done, report = played
    assert done.stdout.count("\n") == 1
    assert report["ok"] is True
    assert report["seconds"] > report["set_up_seconds"] > 0
    assert len(report["trucks"]) == 3


def test_every_ecu_holds_exactly_its_release_and_the_signed_manifest_says_so(played: Played) -> None:
    trucks = played[1]["trucks"]
    assert len({truck["device_id"] for truck in trucks}) == 3
    for truck in trucks:
        assert truck["mcu_sha256"] == truck["expected_sha256"]
        assert {ecu["component"] for ecu in truck["ecus"]} == {"brake", "body"}
        for ecu in truck["ecus"]:
            assert ecu["mcu_sha256"] == ecu["expected_sha256"] == ecu["manifest_sha256"]
        # Two kinds of ECU, one release.
        assert len({ecu["expected_sha256"] for ecu in truck["ecus"]}) == 2
        assert len({ecu["version"] for ecu in truck["ecus"]}) == 1
    assert [truck["ecus"][0]["version"] for truck in trucks] == ["1.2.1", "1.2.1", "1.1.0"]
    assert all(truck["jobs"][-1]["state"] == "done" for truck in trucks)


def test_what_had_to_be_refused_was_refused_with_a_reason_and_nothing_else_was(played: Played) -> None:
    jobs = jobs_of(played[1])
    refused = {job["code"]: job for job in jobs if job["state"] == "error"}
    assert Counter(job["state"] for job in jobs) == {"done": 5, "error": 4}
    assert set(refused) == {
        "wrong_image",
        "target_not_found",
        "release_counter_rolled_back",
        "rolled_back",
    }
    assert "SHA-256" in refused["wrong_image"]["refused_reason"]
    assert "releases/haul/6.6.6/" in refused["target_not_found"]["refused_reason"]
    assert "has release counter 1" in refused["release_counter_rolled_back"]["refused_reason"]
    assert "not 1.2.0" in refused["rolled_back"]["refused_reason"]
    assert all("refused_reason" not in job for job in jobs if job["state"] == "done")
    assert all(job["release"].startswith("releases/haul/") for job in jobs)


SCENES = {
    "signed_offline": "brake-controller misses 1 of 2",
    "tampered_image_refused": "both ECUs untouched",
    "waits_for_the_parking_brake": "the parking brake is not set",
    "two_slots_first_then_one_then_the_commit": "before the brake's only one was touched",
    "link_cut_in_the_download": "not one of them was fetched again",
    "agent_killed_in_the_flash": "in the brake's one slot",
    "two_ecus_updated": "3 of 3 trucks",
    "captured_office_invents_a_release": "attack_reported target_not_found",
    "captured_office_directs_an_older_release": "attack_reported release_counter_rolled_back",
    "goes_back_whole": "both run 1.1.0 again",
    "office_recovered": "nothing of the thief's",
    "corrected_release": "runs 1.2.1 on both ECUs",
}


def test_every_scene_was_played_and_is_so(played: Played) -> None:
    scenes = played[1]["scenes"]
    assert {scene["name"] for scene in scenes} == set(SCENES)
    for scene in scenes:
        assert scene["ok"] is True, scene
        assert SCENES[scene["name"]] in scene["said"]


def test_the_attacks_and_nothing_else_are_alarms(played: Played) -> None:
    alarms = {(one["device_id"], one["alarm"], one["about"]) for one in played[1]["alarms"]}
    assert alarms == {
        ("truck-001", "attack_reported", "target_not_found"),
        ("truck-001", "attack_reported", "release_counter_rolled_back"),
        ("truck-003", "attack_reported", "wrong_image"),
    }


def test_no_status_is_lost_and_none_is_kept_twice(played: Played) -> None:
    for truck in played[1]["trucks"]:
        assert truck["duplicates"] == 0
        # received, downloading, verifying, flashing, done: fewer can't tell the story.
        assert truck["statuses"] >= 5


def test_the_demo_leaves_no_process_behind(played: Played) -> None:
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
