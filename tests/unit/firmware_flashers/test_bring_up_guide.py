"""The guide to a new ECU: every command in it exists, with the options that it shows."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli import sim
from firmware_flashers import cli, profile
from firmware_flashers.profile import examples, read_profile

GUIDE = Path(profile.__file__).with_name("BRING_UP.md").read_text(encoding="utf-8")
COMMANDS = sorted(
    set(re.findall(r"^\./quarry ((?:flash|sim) [^#\n]*)", GUIDE.replace("\\\n", " "), flags=re.MULTILINE))
)


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 5


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_has_the_options_that_the_guide_shows(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    verb, *words = shlex.split(command)
    app = cli.app if verb == "flash" else sim.app
    path = [word for word in words[:2] if not word.startswith("-") and word != "FILE"]
    told = CliRunner().invoke(app, [*path, "--help"])
    assert told.exit_code == 0, told.output
    for option in (word for word in words if word.startswith("--")):
        assert option in told.output, f"{option} of: {command}"


def test_every_profile_that_it_names_is_an_example() -> None:
    named = set(re.findall(r"\| `([a-z0-9-]+)` \|$", GUIDE, flags=re.MULTILINE))
    assert named <= set(examples())
    assert len(named) >= 4


@pytest.mark.parametrize("name", examples())
def test_an_example_makes_a_component(name: str) -> None:
    one = read_profile(name).settings(component="x", interface="virtual", channel="x", kind="k", hardware="h")
    assert one.profile == read_profile(name).values
    assert read_profile(name).description
