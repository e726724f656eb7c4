"""The recipe in cli/README.md, line by line, against a real office, and what a truck makes of it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import re
import secrets
import shlex
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cli.main import dispatch
from control_plane.app import Office
from control_plane.config import load_config
from edge_agent.trust.metadata_source import BundleSource, Source
from shared.trust.uptane.steps import Wanted
from shared.trust.uptane.store import TrustedStore, provision
from shared.trust.uptane.time_policy import Reading, TimePolicy
from shared.trust.uptane.time_token import check_time_token
from shared.trust.uptane.vehicle import Ecu, Vehicle
from shared.trust.uptane.verify import Outcome, verify

README = Path(__file__).parents[3] / "cli" / "README.md"
BUILT_AT = datetime(2026, 1, 1, tzinfo=UTC)
TRUCK = Vehicle(
    vehicle_id="truck-001",
    ecus=(
        Ecu(serial="brake", kind="brake-controller", hardware="rev-b"),
        Ecu(serial="hoist", kind="hoist-controller", hardware="rev-a"),
    ),
)


def recipe() -> list[str]:
    """The command lines of the section, in their order."""
    section = README.read_text(encoding="utf-8").split("## A first release")[1].split("\n## ")[0]
    lines = [
        line for block in re.findall(r"```sh\n(.*?)```", section, re.DOTALL) for line in block.splitlines()
    ]
    assert len(lines) == 22
    assert all(line.startswith("quarry ") for line in lines)
    return lines


async def quarry(line: str) -> str:
    """Run a command line; what it printed, which `> FILE` sends there too."""
    command, _, file = line.partition(" > ")
    said = io.StringIO()

    def act() -> int:
        with contextlib.redirect_stdout(said):
            return dispatch(shlex.split(command)[1:])

    assert await asyncio.to_thread(act) == 0, line
    if file:
        Path(file).write_text(said.getvalue(), encoding="utf-8")
    return said.getvalue()


class OverHttp:
    """What the truck's link brings."""

    def __init__(self, http: httpx.AsyncClient, token: str) -> None:
        self._http = http
        self._headers = {"Authorization": f"Bearer {token}"}

    async def fetch(self, wanted: Wanted) -> bytes | None:
        whose = "image" if wanted.repository == "image" else f"director/{TRUCK.vehicle_id}"
        answer = await self._http.get(f"/repo/{whose}/{wanted.name}", headers=self._headers)
        return answer.content if answer.status_code == 200 else None


async def verified(source: Source, store: TrustedStore, *, offline: bool = False) -> Outcome:
    """A whole verification on the truck."""
    reading, policy = Reading(wall=datetime.now(UTC)), TimePolicy(built_at=BUILT_AT)
    steps = verify(store, TRUCK, reading, policy, offline=offline)
    try:
        wanted = next(steps)
        while True:
            wanted = steps.send(await source.fetch(wanted))
    except StopIteration as ended:
        outcome: Outcome = ended.value
        return outcome


async def enrol(http: httpx.AsyncClient, office: Office) -> str:
    """As `quarry agent enroll` does it; returns the truck's token."""
    admin = {"Authorization": f"Bearer {office.token_file.read_text().strip()}"}
    made = await http.post("/api/v1/devices/truck-001/enrolment-tokens", json={}, headers=admin)
    key = Ed25519PrivateKey.generate().public_key()
    pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    token = secrets.token_urlsafe(32)
    body = {
        "enrolment_token": made.json()["token"],
        "http_token": token,
        "mqtt_password": secrets.token_urlsafe(32),
        "manifest_key": pem.decode(),
    }
    answer = await http.post("/api/v1/enrolments", json=body)
    assert answer.is_success, answer.text
    return token


@contextlib.asynccontextmanager
async def served(line: str) -> AsyncIterator[tuple[Office, httpx.AsyncClient]]:
    """As `quarry serve` does it, on ports that are free."""
    words = shlex.split(line)
    data, file = (Path(words[words.index(option) + 1]) for option in ("--data", "--config"))
    config = load_config(data=data, file=file, http_port=0, mqtt_port=0)
    async with Office(config) as office, httpx.AsyncClient(base_url=office.url, trust_env=False) as http:
        yield office, http


async def test_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QUARRY_KEY_PASSPHRASE", "open, quarry")
    (tmp_path / "brake.bin").write_bytes(b"brake 1.1.0 " * 500)
    (tmp_path / "hoist.bin").write_bytes(b"hoist 1.1.0 " * 700)
    lines = recipe()
    at = next(n for n, line in enumerate(lines) if line.startswith("quarry serve"))
    for line in lines[:at]:
        await quarry(line)
    store = provision(
        director_root=(tmp_path / "kit/truck/director.root.json").read_bytes(),
        image_root=(tmp_path / "kit/truck/image.root.json").read_bytes(),
    )
    async with served(lines[at]) as (office, http):
        said: dict[str, str] = {}
        token = ""
        for line in lines[at + 1 :]:
            if line.startswith("quarry agent enroll"):
                token = await enrol(http, office)
                continue
            said[" ".join(line.split()[:3])] = await quarry(line)
        assert "not reported" in said["quarry device show"]
        await _is_directed(http, token, store)
        ecus = json.loads((tmp_path / "truck-001.json").read_text())
        assert ecus["gateway_key"].startswith("-----BEGIN PUBLIC KEY-----")
        nonce = "ab" * 24
        answer = await http.get("/repo/time", params={"nonce": nonce})
        proved, _ = check_time_token(answer.content, nonce, store)
        assert abs(proved - datetime.now(UTC)) < timedelta(minutes=5)
        # Again changes nothing, and sends no image twice.
        again = await quarry("quarry release upload --folder fleet --data office")
        assert int(again.split()[1]) < int(said["quarry release upload"].split()[1]) - 10_000
    outcome = await verified(BundleSource(folder=tmp_path / "stick"), store, offline=True)
    assert outcome.refused is None
    assert outcome.selection is not None
    for one in outcome.selection.assignments:
        image = (tmp_path / "stick" / "image" / one.served_name).read_bytes()
        assert image == (tmp_path / f"{one.ecu.serial}.bin").read_bytes()


async def _is_directed(http: httpx.AsyncClient, token: str, store: TrustedStore) -> None:
    """The job's release is the truck's, once its time has come."""
    async with asyncio.timeout(30):
        while True:
            outcome = await verified(OverHttp(http, token), store)
            assert outcome.refused is None
            if outcome.selection is not None:
                break
            await asyncio.sleep(0.05)
    assert outcome.selection.release.name == "haul"
    assert [one.ecu.serial for one in outcome.selection.assignments] == ["hoist", "brake"]
