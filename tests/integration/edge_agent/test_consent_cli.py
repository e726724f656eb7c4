"""An operator's consent as it is typed at the truck, and as the agent then reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from edge_agent.cli import app
from edge_agent.clock import Clock
from edge_agent.interlocks.people import BadConsent, Gates
from shared.trust.keys import new_key

CONFIG = """
data_dir = "data"
[office]
url = "http://127.0.0.1:9"
[trust]
firmware_keys = ["key.pem"]
threshold = 1
[vehicle]
source = "file"
path = "vehicle.json"
[safety]
need_consent = true
[[component]]
name = "brake"
kind = "brake-controller"
hardware = "rev-b"
flasher = "stm32-uds"
interface = "virtual"
channel = "bench"
tx_id = 0x7E0
rx_id = 0x7E8
security_secret_file = "brake.secret"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "key.pem").write_bytes(new_key()[1])
    (tmp_path / "brake.secret").touch(mode=0o600)
    (tmp_path / "brake.secret").write_bytes(bytes(32))
    (tmp_path / "agent.toml").write_text(CONFIG)
    return tmp_path


def typed(folder: Path, *words: str) -> Result:
    return CliRunner().invoke(app, [*words, "--config", str(folder / "agent.toml")])


def asked(folder: Path, *words: str) -> dict[str, Any]:
    done = typed(folder, *words, "--json")
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


async def test_a_consent_is_given_read_and_withdrawn(folder: Path) -> None:
    gates = Gates(data_dir=folder / "data", clock=Clock())
    found = asked(folder, "consent", "--by", "anna", "--hours", "1.5", "--job", "job-7")
    assert found == {"ok": True, "consent": True, "by": "anna", "hours": 1.5, "job_id": "job-7"}
    consent = (await gates.read()).consent
    assert consent is not None
    assert (consent.by, consent.job_id) == ("anna", "job-7")
    assert 0 < consent.seconds_left <= 1.5 * 3600
    assert "any job" in typed(folder, "consent", "--by", "anna").stdout
    assert asked(folder, "withdraw-consent") == {"ok": True, "consent": False}
    assert asked(folder, "withdraw-consent") == {"ok": True, "consent": False}
    assert (await gates.read()).consent is None


def test_a_consent_for_ever_is_refused(folder: Path) -> None:
    done = typed(folder, "consent", "--by", "anna", "--hours", "25")
    assert isinstance(done.exception, BadConsent)
    assert not (folder / "data" / "consent.json").exists()
