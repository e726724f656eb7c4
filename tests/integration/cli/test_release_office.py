"""The desk's verbs against an office with a director: upload, ECUs, jobs of releases, what runs where."""

from __future__ import annotations

import json
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cli.main import dispatch
from cli.release_files import FileTrouble
from cli.release_tar import members_of, size_of, stream
from cli.repository_folder import RepositoryFolder
from sim.uptane_world import UptaneWorld

READY_WITHIN_S = 90.0


@dataclass(kw_only=True)
class Desk:
    """An office that runs, its data folder, and the repositories of a fleet."""

    data: Path
    world: UptaneWorld
    fleet: RepositoryFolder
    url: str

    def quarry(self, line: str, *more: object) -> int:
        return dispatch([*line.split(), *map(str, more), "--data", str(self.data)])

    def admin(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {(self.data / 'admin-token').read_text().strip()}"}

    def write_fleet(self) -> None:
        """The world's image repository as a folder."""
        for (repository, name), raw in self.world.served.items():
            if repository == "image":
                path = self.fleet.public / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(raw)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """One office for all tests of this file; each has trucks of its own."""
    folder = tmp_path_factory.mktemp("desk")
    world = UptaneWorld(now=datetime.now(UTC))
    world.release("1.1.0", 2)
    key = folder / "director-key"
    key.touch(0o600)
    key.write_bytes(
        b"".join(
            world.keys[f"director/{one}/1"].private_bytes for one in ("targets", "snapshot", "timestamp")
        )
    )
    (folder / "roots").mkdir()
    (folder / "roots" / "1.root.json").write_bytes(world.director.published["1.root.json"])
    (folder / "image.root.json").write_bytes(world.image.published["1.root.json"])
    fleet = RepositoryFolder(folder / "fleet")
    fleet.create(world.image)
    lines = {
        "http_port": 0,
        "mqtt_port": 0,
        "director": True,
        "director_key": str(key),
        "director_roots": str(folder / "roots"),
        "director_image_root": str(folder / "image.root.json"),
    }
    config = folder / "office.toml"
    config.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in lines.items()))
    with running(folder / "office", config) as url:
        made = Desk(data=folder / "office", world=world, fleet=fleet, url=url)
        made.write_fleet()
        yield made


@contextmanager
def running(data: Path, config: Path) -> Iterator[str]:
    """`quarry serve` in a process of its own, since the desk's verbs block; its address."""
    command = [sys.executable, "-P", "-m", "cli.main", "serve", "--data", str(data), "--config", str(config)]
    with (data.parent / "office.log").open("wb") as log:
        served = subprocess.Popen(command, stdout=log, stderr=log, cwd=Path(__file__).parents[3])
    try:
        until = time.monotonic() + READY_WITHIN_S
        while not (data / "endpoints.json").exists():
            assert served.poll() is None, (data.parent / "office.log").read_text()
            assert time.monotonic() < until
            time.sleep(0.05)
        yield json.loads((data / "endpoints.json").read_text())["url"]
    finally:
        served.send_signal(signal.SIGTERM)
        served.wait(60)


def _add_truck(desk: Desk, name: str) -> None:
    first, second = desk.world.vehicle.ecus
    components = [f"brakes:{first.kind}:{first.hardware}", f"hoist:{second.kind}:{second.hardware}"]
    assert (
        desk.quarry(f"device add {name}", *[word for one in components for word in ("--component", one)]) == 0
    )


def _shown(desk: Desk, line: str, capsys: pytest.CaptureFixture[str]) -> Any:
    capsys.readouterr()
    assert desk.quarry(line, "--json") == 0
    return json.loads(capsys.readouterr().out)


# Upload


def test_an_upload_is_verified_and_sends_each_image_once(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    assert desk.quarry("release upload --folder", desk.fleet.path) == 0
    first = capsys.readouterr().out
    assert "2 releases" in first or "1 releases" in first
    assert desk.quarry("release upload --folder", desk.fleet.path) == 0
    assert int(capsys.readouterr().out.split()[1]) < int(first.split()[1])
    listed = _shown(desk, "release list", capsys)
    assert "haul" in {one["name"] for one in listed["releases"]}
    assert desk.quarry("release list") == 0
    assert "haul/1.1.0" in capsys.readouterr().out


def test_what_trucks_would_refuse_is_refused_by_its_name(
    desk: Desk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert desk.quarry("release upload --folder", desk.fleet.path) == 0
    other = RepositoryFolder(tmp_path / "fleet")
    stranger = UptaneWorld(now=datetime.now(UTC))
    other.create(stranger.image)
    capsys.readouterr()
    assert desk.quarry("release upload --folder", other.path) == 1
    assert "valid signatures by trusted keys" in capsys.readouterr().err


def test_what_can_not_be_uploaded(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    director = RepositoryFolder(tmp_path / "director")
    director.create(desk.world.director)
    assert desk.quarry("release upload --folder", director.path) == 1
    assert "is a director's repository" in capsys.readouterr().err
    monkeypatch.setenv("QUARRY_KEY_PASSPHRASE", "open, quarry")
    new = ["--folder", str(tmp_path / "empty"), "--new-keys", str(tmp_path / "keys")]
    assert dispatch(["release", "init", *new]) == 0
    assert desk.quarry("release upload --folder", tmp_path / "empty") == 1
    assert "has published nothing yet" in capsys.readouterr().err
    assert desk.quarry("release upload --folder", tmp_path / "nowhere") == 1


def test_a_tar_has_the_size_that_was_said(tmp_path: Path) -> None:
    names = ["a", "b" * 200, f"targets/k/v/{'c' * 64}.{'d' * 64}.bin"]
    for number, name in enumerate(names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * (number * 511))
    members = members_of(tmp_path, names)
    whole = b"".join(stream(members))
    assert len(whole) == size_of(members)
    for content in (b"", b"y" * 600):
        (tmp_path / names[1]).write_bytes(content)
        with pytest.raises(FileTrouble, match="changed while it was sent"):
            b"".join(stream(members))
    with pytest.raises(FileTrouble, match="can't be read"):
        members_of(tmp_path, ["nowhere"])


# ECUs


def test_ecus_are_registered_shown_and_changed(
    desk: Desk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _add_truck(desk, "truck-e")
    assert desk.quarry("device ecus set truck-e") == 0
    ecus = _shown(desk, "device ecus show truck-e", capsys)
    assert (ecus["device_id"], ecus["version"], ecus["primary_serial"]) == ("truck-e", 1, "gateway")
    assert [one["serial"] for one in ecus["ecus"]] == ["brakes", "hoist"]
    # The same again is no new version, whose expectations would begin anew.
    assert desk.quarry("device ecus set truck-e") == 0
    assert _shown(desk, "device ecus show truck-e", capsys)["version"] == 1
    pem = tmp_path / "ecu.pub"
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    pem.write_bytes(Ed25519PrivateKey.generate().public_key().public_bytes(serialization.Encoding.PEM, form))
    ecu = ["--ecu", f"SN-1:brake-controller:H0:{pem}", "--ecu", "SN-2:hoist-controller:H1"]
    assert desk.quarry("device ecus set truck-e", *ecu, "--gateway", "GW", "--gateway-key", pem) == 0
    ecus = _shown(desk, "device ecus show truck-e", capsys)
    assert (ecus["version"], ecus["primary_serial"], ecus["gateway_key"]) == (2, "GW", pem.read_text())
    assert [one["public_key"] for one in ecus["ecus"]] == [pem.read_text(), None]


@pytest.mark.parametrize(
    ("ecu", "code", "says"),
    [
        ("SN-1", 2, "SERIAL:KIND:HARDWARE"),
        ("SN-1:kind", 2, "SERIAL:KIND:HARDWARE"),
        ("SN-1::H", 2, "SERIAL:KIND:HARDWARE"),
        ("SN-1:kind:H:", 2, "SERIAL:KIND:HARDWARE"),
        ("SN-1:kind:H:/nowhere", 1, "can't be read"),
        ("SN-1:a kind:H", 1, "ecus.0.kind"),
    ],
)
def test_what_is_no_ecu(
    desk: Desk, ecu: str, code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    desk.quarry("device add truck-w --component", "b:brake-controller:H0")
    capsys.readouterr()
    assert desk.quarry("device ecus set truck-w --ecu", ecu) == code
    assert says in capsys.readouterr().err.replace("\n", " ")


def test_a_truck_shows_what_runs_and_what_is_wrong(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    _add_truck(desk, "truck-s")
    assert _shown(desk, "device show truck-s", capsys)["ecus"] is None
    assert desk.quarry("device ecus set truck-s") == 0
    with httpx.Client(base_url=desk.url, trust_env=False) as http:
        made = http.post("/api/v1/devices/truck-s/enrolment-tokens", json={}, headers=desk.admin())
        token = secrets.token_urlsafe(32)
        body = {
            "enrolment_token": made.json()["token"],
            "http_token": token,
            "mqtt_password": secrets.token_urlsafe(32),
        }
        assert http.post("/api/v1/enrolments", json=body).is_success
        # Until the truck has told its gateway's key nothing is judged, and no alarm raised.
        headers = {"Authorization": f"Bearer {token}"}
        told = http.post("/api/v1/devices/truck-s/vehicle-manifest", content=b"{}", headers=headers)
        assert (told.status_code, told.json()["code"]) == (409, "ecus_not_registered")
        key = Ed25519PrivateKey.generate().public_key()
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        ecus = http.get("/api/v1/devices/truck-s/ecus", headers=desk.admin())
        put = {
            "primary_serial": "gateway",
            "gateway_key": key.public_bytes(serialization.Encoding.PEM, form).decode(),
            "ecus": [{k: one[k] for k in ("serial", "kind", "hardware")} for one in ecus.json()["ecus"]],
        }
        answer = http.put(
            "/api/v1/devices/truck-s/ecus",
            json=put,
            headers=desk.admin() | {"If-Match": ecus.headers["etag"]},
        )
        assert answer.is_success, answer.text
        told = http.post("/api/v1/devices/truck-s/vehicle-manifest", content=b"{}", headers=headers)
        assert told.status_code == 422
    shown = _shown(desk, "device show truck-s", capsys)
    assert [one["alarm"] for one in shown["alarms"]] == ["manifest_unreadable"]
    assert desk.quarry("device show truck-s") == 0
    said = capsys.readouterr().out
    assert "not reported" in said
    assert "ALARM manifest_unreadable" in said


# Jobs


def test_a_job_of_a_release_is_ordered_and_shown(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert desk.quarry("release upload --folder", desk.fleet.path) == 0
    _add_truck(desk, "truck-j")
    assert desk.quarry("job create truck-j --release haul/1.1.0") == 1
    assert (
        "no ECUs of truck-j are registered -- Register them: quarry device ecus set"
        in capsys.readouterr().err
    )
    assert desk.quarry("device ecus set truck-j") == 0
    capsys.readouterr()
    assert desk.quarry("job create truck-j --release haul/1.1.0 --json") == 0
    job = json.loads(capsys.readouterr().out)
    assert [one["component"] for one in job["targets"]] == ["brakes", "hoist"]
    assert desk.quarry("job show", job["job_id"]) == 0
    said = capsys.readouterr().out
    assert "Its ECUs" in said
    assert "not yet" in said
    assert desk.quarry("job list --device truck-j") == 0
    assert "haul/1.1.0" in capsys.readouterr().out
    assert desk.quarry("job cancel", job["job_id"]) == 0
    for release, says in (("haul/9", "no release haul/9 was uploaded"), ("haul", "no release haul was")):
        assert desk.quarry("job create truck-j --release", release) == 1
        assert says in capsys.readouterr().err


@pytest.mark.parametrize("words", ["truck-1", "truck-1 brakes", "truck-1 brakes 1.1.0 --release haul/1.1.0"])
def test_a_job_names_one_thing(desk: Desk, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert desk.quarry(f"job create {words}") == 2
    assert "or --release" in capsys.readouterr().err
