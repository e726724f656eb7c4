"""The whole office with its director, its real broker, and `quarry alarm` beside it."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cli.main import dispatch
from control_plane.app import Office
from control_plane.config import OfficeConfig
from shared.errors import ConfigError
from sim.uptane_world import UptaneWorld

TRUCK = "truck-7"


@pytest.fixture
def config(tmp_path: Path) -> OfficeConfig:
    world = UptaneWorld(now=datetime.now(UTC))
    key = tmp_path / "director-key"
    key.touch(0o600)
    roles = ("targets", "snapshot", "timestamp")
    key.write_bytes(b"".join(world.keys[f"director/{role}/1"].private_bytes for role in roles))
    (tmp_path / "roots").mkdir()
    (tmp_path / "roots" / "1.root.json").write_bytes(world.director.published["1.root.json"])
    (tmp_path / "image.root.json").write_bytes(world.image.published["1.root.json"])
    return OfficeConfig(
        data=tmp_path / "office",
        http_port=0,
        mqtt_port=0,
        director=True,
        director_key=str(key),
        director_roots=str(tmp_path / "roots"),
        director_image_root=str(tmp_path / "image.root.json"),
    )


async def test_the_office_directs_and_shows_alarms(
    config: OfficeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    async with Office(config) as office, httpx.AsyncClient(base_url=office.url, trust_env=False) as http:
        admin = {"Authorization": f"Bearer {office.token_file.read_text().strip()}"}
        device = {"device_id": TRUCK}
        assert (await http.post("/api/v1/devices", json=device, headers=admin)).status_code == 201
        made = await http.post(f"/api/v1/devices/{TRUCK}/enrolment-tokens", json={}, headers=admin)
        token = secrets.token_urlsafe(32)
        enrolled = await http.post(
            "/api/v1/enrolments",
            json={
                "enrolment_token": made.json()["token"],
                "http_token": token,
                "mqtt_password": secrets.token_urlsafe(32),
            },
        )
        assert enrolled.status_code in {200, 201}, enrolled.text
        truck = {"Authorization": f"Bearer {token}"}

        async def version() -> int:
            answer = await http.get(f"/repo/director/{TRUCK}/timestamp.json", headers=truck)
            assert answer.status_code == 200, answer.text
            return int(answer.json()["signed"]["version"])

        assert await version() == 1
        pem = Ed25519PrivateKey.generate().public_key()
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        body = {
            "primary_serial": "GW-7",
            "gateway_key": pem.public_bytes(serialization.Encoding.PEM, form).decode(),
            "ecus": [],
        }
        put = await http.put(f"/api/v1/devices/{TRUCK}/ecus", json=body, headers=admin)
        assert put.status_code == 200, put.text
        told = await http.post(f"/api/v1/devices/{TRUCK}/vehicle-manifest", content=b"{}", headers=truck)
        assert (told.status_code, told.json()["code"]) == (422, "manifest_unreadable")

        data = str(config.data)
        assert await asyncio.to_thread(dispatch, ["alarm", "list", "--data", data, "--json"]) == 0
        [alarm] = json.loads(capsys.readouterr().out)
        assert (alarm["alarm"], alarm["count"]) == ("manifest_unreadable", 1)
        assert await asyncio.to_thread(dispatch, ["alarm", "ack", alarm["alarm_id"], "--data", data]) == 0
        assert await asyncio.to_thread(dispatch, ["alarm", "list", "--data", data]) == 0
        assert "There are no alarms." in capsys.readouterr().out
        metrics = (await http.get("/metrics")).text
        assert 'director_manifests_total{outcome="refused"} 1.0' in metrics
        assert "director_signed_total 1.0" in metrics


def _no_key(config: OfficeConfig) -> None:
    Path(config.director_key).unlink()


def _no_root(config: OfficeConfig) -> None:
    (Path(config.director_roots) / "1.root.json").unlink()


@pytest.mark.parametrize("lose", [_no_key, _no_root])
async def test_without_its_key_or_root_the_office_does_not_start(
    config: OfficeConfig, lose: Callable[[OfficeConfig], None]
) -> None:
    lose(config)
    with pytest.raises(ConfigError, match="director_"):
        async with Office(config):
            pytest.fail("it started")
    assert not (config.data / "postgres").exists()
