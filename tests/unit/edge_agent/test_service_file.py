"""The service file: what it promises, and nothing that systemd would not know."""

from __future__ import annotations

import shutil
import subprocess
from collections import defaultdict
from importlib import resources
from pathlib import Path

import pytest

from edge_agent.app import LINK_PULSE_S, STOP_WITHIN_S, UPDATER_PULSE_S, WATCHDOG_EVERY_S
from edge_agent.service import MUST_BE_MENDED

UNIT = (resources.files("edge_agent") / "packaging" / "quarry-agent.service").read_text(encoding="utf-8")


def read(text: str) -> dict[str, dict[str, list[str]]]:
    """Sections, keys, values; a value that is repeated is kept with the others."""
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    section = ""
    for line in text.splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line.strip() and not line.startswith("#"):
            key, sign, value = line.partition("=")
            assert sign, line
            found[section][key].append(value)
    return found


def seconds(value: str) -> float:
    for word, factor in (("min", 60.0), ("s", 1.0), ("", 1.0)):
        if value.endswith(word):
            return float(value.removesuffix(word)) * factor
    raise AssertionError(value)


def test_what_the_unit_promises() -> None:
    unit, service = read(UNIT)["Unit"], read(UNIT)["Service"]
    assert service["Type"] == ["notify"]
    assert service["Restart"] == ["always"]
    assert unit["StartLimitIntervalSec"] == ["0"], "restarts never give up"
    assert service["RestartPreventExitStatus"] == [str(MUST_BE_MENDED)]
    assert service["User"] == ["quarry"]
    assert "Requires" not in unit, "an update that has begun needs no network to be finished"
    assert "BindsTo" not in unit
    assert unit["Wants"] == ["network-online.target"]
    assert seconds(service["TimeoutStopSec"][0]) > STOP_WITHIN_S
    assert service["KillMode"] == ["mixed"]
    assert len({key for keys in read(UNIT).values() for key in keys}) > 40
    assert all(len(values) == 1 for keys in read(UNIT).values() for values in keys.values())


def test_the_watchdog_is_fed_well_within_its_time_and_ends_what_is_stuck() -> None:
    watchdog_s = seconds(read(UNIT)["Service"]["WatchdogSec"][0])
    assert min(watchdog_s / 4, WATCHDOG_EVERY_S) <= watchdog_s / 2
    assert max(LINK_PULSE_S, UPDATER_PULSE_S) + watchdog_s <= 15 * 60


HARDENED = {
    "NoNewPrivileges": "yes",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "CapabilityBoundingSet": "",
    "AmbientCapabilities": "",
    "RestrictNamespaces": "yes",
    "SystemCallFilter": "@system-service",
    "UMask": "0077",
    "StateDirectoryMode": "0700",
}


@pytest.mark.parametrize("key", HARDENED)
def test_it_is_hardened(key: str) -> None:
    assert read(UNIT)["Service"][key] == [HARDENED[key]]


def test_can_is_allowed() -> None:
    assert "AF_CAN" in read(UNIT)["Service"]["RestrictAddressFamilies"][0].split()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_understands_every_line(tmp_path: Path) -> None:
    launcher = tmp_path / "launcher"
    launcher.write_text("#!/bin/sh\n")
    launcher.chmod(0o755)
    unit = tmp_path / "quarry-agent.service"
    unit.write_text(UNIT.replace("/usr/lib/quarry-agent/bin/quarry-agent-launcher", str(launcher)))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
    )
    said = [line for line in (done.stdout + done.stderr).splitlines() if unit.name in line]
    assert said == []
    assert done.returncode == 0, done.stderr
    # A line that is wrong is found, so that silence above means something.
    unit.write_text(unit.read_text().replace("Type=notify", "Type=notfy"))
    wrong = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
    )
    assert "notfy" in wrong.stdout + wrong.stderr
