"""`quarry release`: a release from keys to what trucks verify, on a desk and with an air gap."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient import FetcherInterface, Updater

import cli.repository_folder as module
from cli.main import dispatch
from cli.repository_folder import RepositoryFolder
from shared.trust.keys import load_signer
from shared.trust.uptane.director import DirectorSigners, direct
from shared.trust.uptane.release_document import read_release
from shared.trust.uptane.steps import Wanted, drive
from shared.trust.uptane.store import provision
from shared.trust.uptane.time_policy import Reading, TimePolicy
from shared.trust.uptane.vehicle import Ecu, Vehicle
from shared.trust.uptane.verify import verify
from sim.mcu.images import build_image

PASSPHRASE = "open, quarry"
IMAGE = bytes(range(256)) * 16
BRAKE = "brake-controller"
NAMES = ("root-1", "root-2", "root-3", "targets", "snapshot", "timestamp", "brake-1", "brake-2")


def repo(verb: str, *arguments: object) -> int:
    return dispatch(["release", *verb.split(), *map(str, arguments)])


@pytest.fixture(autouse=True)
def _secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUARRY_KEY_PASSPHRASE", PASSPHRASE)


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """Keys of every role, an image, and the repository `repo` begun: its root waits for signatures."""
    for name in NAMES:
        assert repo("keygen", "--out", tmp_path / name) == 0
    (tmp_path / "image.bin").write_bytes(IMAGE)
    roots = [word for name in NAMES[:3] for word in ("--root", tmp_path / f"{name}.pub")]
    others = [word for name in NAMES[3:6] for word in (f"--{name}", tmp_path / f"{name}.pub")]
    assert repo("init", "--folder", tmp_path / "repo", *roots, *others) == 0
    return tmp_path


def sign(desk: Path, *names: str, verb: str = "sign") -> int:
    keys = [word for name in names for word in ("--key", desk / name)]
    return repo(verb, "--folder", desk / "repo", *keys)


def publish(desk: Path) -> int:
    keys = ["--snapshot-key", desk / "snapshot", "--timestamp-key", desk / "timestamp"]
    return repo("publish", "--folder", desk / "repo", *keys)


def add(desk: Path, *more: object) -> int:
    words = ["--image", desk / "image.bin", "--kind", BRAKE, "--hardware", "B2", "--version", "1.0.0"]
    return repo("add", "--folder", desk / "repo", *words, "--counter", 1, "--judge", "none", *more)


@pytest.fixture
def live(desk: Path) -> Path:
    """The same, with the brake family (2 of 2 keys) and one firmware, published."""
    keys = ["--key", desk / "brake-1.pub", "--key", desk / "brake-2.pub", "--threshold", 2]
    assert repo("delegate", "--folder", desk / "repo", "--family", BRAKE, "--hardware", "B2", *keys) == 0
    assert add(desk) == 0
    assert sign(desk, "root-1", "root-3", verb="root sign") == 0
    assert sign(desk, "targets", "brake-1", "brake-2") == 0
    assert publish(desk) == 0
    return desk


def release_of(version: str, counter: int, length: int, sha256: str) -> str:
    """A release of one brake firmware, as an engineer writes it."""
    target = {"kind": BRAKE, "hardware": ["B2"], "version": version, "release_counter": counter}
    targets = [{**target, "length": length, "sha256": sha256}]
    return json.dumps({"name": "haul", "version": version, "targets": targets})


def facts(desk: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert repo("show", "--folder", desk / "repo", "--json") == 0
    said: dict[str, Any] = json.loads(capsys.readouterr().out)
    return said


class FolderFetcher(FetcherInterface):
    """python-tuf's own client on the folder, as a static file server would give it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _fetch(self, url: str) -> Iterator[bytes]:
        path = self.folder / url.removeprefix("http://repo/")
        if not path.exists():
            raise DownloadHTTPError("not there", 404)
        yield path.read_bytes()


def test_another_tuf_client_accepts_what_is_published(live: Path, capsys: pytest.CaptureFixture[str]) -> None:
    public = live / "repo" / "public"
    (live / "md").mkdir()
    (live / "dl").mkdir()
    client = Updater(
        str(live / "md"),
        "http://repo/",
        str(live / "dl"),
        "http://repo/targets/",
        fetcher=FolderFetcher(public),
        bootstrap=(public / "1.root.json").read_bytes(),
    )
    client.refresh()
    [target] = facts(live, capsys)["targets"]
    info = client.get_targetinfo(target["path"])
    assert info is not None
    assert Path(client.download_target(info)).read_bytes() == IMAGE


def test_no_draft_goes_out_below_its_threshold(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sign(desk, "root-1", "targets") == 0
    assert publish(desk) == 1
    assert "root misses 1 of 2" in capsys.readouterr().err
    assert list((desk / "repo" / "public").iterdir()) == []
    [root] = [one for one in facts(desk, capsys)["drafts"] if one["role"] == "root"]
    assert (root["needed"], len(root["signed"])) == (1, 1)


def test_an_image_is_served_only_once_its_role_is_published(desk: Path) -> None:
    assert add(desk) == 0
    served = desk / "repo" / "public" / "targets"
    assert not served.exists()
    assert sign(desk, "root-1", "root-2", "targets") == 0
    assert publish(desk) == 0
    assert [path.read_bytes() for path in served.rglob("*.bin")] == [IMAGE]


def test_over_an_air_gap_and_back(desk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = tmp_path / "bundle.json"
    assert repo("export", "--folder", desk / "repo", "--out", bundle) == 0
    # On the other machine there is the bundle and the keys, and no repository.
    assert repo("show", "--bundle", bundle) == 0
    for verb, name in (("root sign", "root-2"), ("root sign", "root-3"), ("sign", "targets")):
        assert repo(verb, "--bundle", bundle, "--key", desk / name) == 0
    assert repo("import", "--folder", desk / "repo", "--bundle", bundle) == 0
    assert publish(desk) == 0
    assert repo("import", "--folder", desk / "repo", "--bundle", bundle) == 1
    assert "is not the one that was signed" in capsys.readouterr().err


def test_withdraw_renew_and_rotate(live: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [target] = facts(live, capsys)["targets"]
    assert repo("withdraw", "--folder", live / "repo", "--path", target["path"]) == 0
    assert [one["removes"] for one in facts(live, capsys)["drafts"]] == [[target["path"]]]
    assert sign(live, "brake-1", "brake-2") == 0
    assert repo("keygen", "--out", live / "timestamp-2") == 0
    old = json.loads((live / "repo" / "public" / "timestamp.json").read_text())["signatures"][0]["keyid"]
    new = live / "timestamp-2.pub"
    assert (
        repo("rotate-key", "--folder", live / "repo", "--role", "timestamp", "--old", old[:12], "--new", new)
        == 0
    )
    assert repo("renew", "--folder", live / "repo", "--role", "targets") == 0
    assert sign(live, "root-1", "root-2", "targets") == 0
    assert publish(live) == 1
    assert "timestamp needs 1 of its keys" in capsys.readouterr().err
    keys = ["--snapshot-key", live / "snapshot", "--timestamp-key", live / "timestamp-2"]
    assert repo("publish", "--folder", live / "repo", *keys) == 0
    said = facts(live, capsys)
    assert said["targets"] == said["drafts"] == []
    assert {one["role"]: one["version"] for one in said["published"]} == {
        "root": 2,
        "targets": 2,
        "snapshot": 2,
        "timestamp": 2,
        BRAKE: 2,
    }


def test_a_publication_that_was_cut_off_is_taken_up(live: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever write is the last one, what is served is whole, and the next publication ends it."""
    assert add(live, "--version", "1.1.0", "--counter", "2") == 0
    assert sign(live, "brake-1", "brake-2") == 0
    folder = RepositoryFolder(live / "repo")
    before = (folder.public / "timestamp.json").read_bytes()
    written: list[str] = []
    real = module.replace_file

    def cut(path: Path, raw: bytes) -> None:
        if path.name == "timestamp.json":
            raise KeyboardInterrupt
        written.append(path.name)
        real(path, raw)

    monkeypatch.setattr(module, "replace_file", cut)
    assert publish(live) == 130
    monkeypatch.setattr(module, "replace_file", real)
    assert written == [f"2.{BRAKE}.json", "2.snapshot.json"]
    assert (folder.public / "timestamp.json").read_bytes() == before
    assert publish(live) == 0
    assert folder.load().newest("timestamp").signed.snapshot_meta.version == 3  # type: ignore[union-attr]


def test_a_truck_verifies_a_release_made_at_the_desk(live: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both repositories from the command line, the release document too; the director signs online."""
    [target] = facts(live, capsys)["targets"]
    (live / "release.json").write_text(release_of("1.0.0", 1, target["length"], target["sha256"]))
    assert repo("add-release", "--folder", live / "repo", "--spec", live / "release.json") == 0
    assert sign(live, "targets") == 0
    assert publish(live) == 0
    roots = [f"d-root-{n}" for n in (1, 2, 3)]
    for name in (*roots, "online", "time", "offline"):
        assert repo("keygen", "--out", live / name) == 0
    keys: list[object] = [word for name in roots for word in ("--root", live / f"{name}.pub")]
    for role in ("online", "time", "offline"):
        keys += [f"--{role}", live / f"{role}.pub"]
    director = live / "director"
    assert repo("director init", "--folder", director, *keys) == 0
    for name in roots[:2]:
        assert repo("root sign", "--folder", director, "--key", live / name) == 0
    assert repo("publish", "--folder", director) == 0
    [document] = (live / "repo" / "public" / "targets" / "releases").rglob("*.json")
    vehicle = Vehicle(vehicle_id="truck-7", ecus=(Ecu(serial="SN-0", kind=BRAKE, hardware="B2"),))
    online = (load_signer((live / "online").read_bytes(), PASSPHRASE.encode()),)
    now = datetime.now(UTC)
    files = direct(
        vehicle,
        read_release(document.read_bytes()),
        version=1,
        signers=DirectorSigners(targets=online, snapshot=online, timestamp=online),
        now=now,
    )

    def fetch(wanted: Wanted) -> bytes | None:
        if wanted.repository == "director" and wanted.name in files:
            return files[wanted.name]
        path = (director if wanted.repository == "director" else live / "repo") / "public" / wanted.name
        return path.read_bytes() if path.exists() else None

    store = provision(
        director_root=(director / "public" / "1.root.json").read_bytes(),
        image_root=(live / "repo" / "public" / "1.root.json").read_bytes(),
    )
    outcome = drive(verify(store, vehicle, Reading(wall=now), TimePolicy(built_at=now)), fetch)
    assert outcome.refused is None
    assert outcome.selection is not None
    assert [one.spec.sha256 for one in outcome.selection.assignments] == [target["sha256"]]


def test_a_release_names_what_is_there(live: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for content, said in (
        ('{"name": "haul"}', "missing required field"),
        (release_of("9", 9, 1, "00" * 32), "not in the repository"),
    ):
        (live / "release.json").write_text(content)
        assert repo("add-release", "--folder", live / "repo", "--spec", live / "release.json") == 1
        assert said in capsys.readouterr().err


# Keys


def test_a_key_is_encrypted_private_and_never_overwritten(desk: Path) -> None:
    key = desk / "root-1"
    assert "ENCRYPTED" in key.read_text()
    assert key.stat().st_mode & 0o777 == 0o600
    before = key.read_bytes()
    assert repo("keygen", "--out", key) == 1
    assert key.read_bytes() == before


def test_without_a_passphrase_there_is_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("QUARRY_KEY_PASSPHRASE")
    assert repo("keygen", "--out", tmp_path / "key") == 1
    assert "no passphrase" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_passphrase_can_come_by_a_file_descriptor(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QUARRY_KEY_PASSPHRASE")
    for said, code in ((b"wrong\n", 1), (PASSPHRASE.encode() + b"\n", 0)):
        reader, writer = os.pipe()
        os.write(writer, said)
        os.close(writer)
        try:
            key = ["--key", desk / "root-1", "--passphrase-fd", reader]
            assert repo("root sign", "--folder", desk / "repo", *key) == code
        finally:
            os.close(reader)


@pytest.mark.parametrize(("again", "code"), [("quiet", 0), ("quite", 1)])
def test_a_new_passphrase_is_asked_for_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: str, code: int
) -> None:
    monkeypatch.delenv("QUARRY_KEY_PASSPHRASE")
    answers = iter(["quiet", again])
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("getpass.getpass", lambda _: next(answers))
    assert repo("keygen", "--out", tmp_path / "key") == code
    assert (tmp_path / "key").exists() == (code == 0)


def test_a_key_that_lies_open_is_not_used(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("QUARRY_KEY_PASSPHRASE")
    assert dispatch(["release", "document", "keygen", "--out", str(desk / "open")]) == 0
    assert sign(desk, "open") == 1
    assert "is not encrypted" in capsys.readouterr().err


def test_a_token_without_its_library_is_said(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reference = {"signer": "hsm:2?label=release", "public_key": (desk / "root-1.pub").read_text()}
    (desk / "token").write_text(json.dumps(reference))
    assert sign(desk, "token") == 1
    assert "token can't be used" in capsys.readouterr().err
    (desk / "token").write_text(json.dumps({**reference, "signer": "file:/etc/passwd"}))
    assert sign(desk, "token") == 1
    assert "not the address of a key" in capsys.readouterr().err
    (desk / "token").write_text("{}")
    assert sign(desk, "token") == 1


def test_a_stranger_signs_nothing(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sign(desk, "brake-1") == 1
    assert "no draft takes a signature" in capsys.readouterr().err


# The folder and the judges


def test_one_process_edits_at_a_time(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RepositoryFolder(desk / "repo").opened():
        assert add(desk) == 1
    assert "being edited" in capsys.readouterr().err
    assert add(desk) == 0


def test_a_repository_is_begun_once(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = [
        word
        for role in ("root", "targets", "snapshot", "timestamp")
        for word in (f"--{role}", desk / "root-1.pub")
    ]
    assert repo("init", "--folder", desk / "repo", *keys, "--root-threshold", 1) == 1
    assert "holds a repository already" in capsys.readouterr().err
    assert repo("init", "--folder", desk / "other", *keys, "--root-threshold", 2) == 1


SLOT = ("--judge", "stm32", "--family", "stm32f40x", "--slot", "0x08010000..0x08080000")


def test_an_image_that_could_not_start_is_not_added(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert add(desk, *SLOT) == 1
    assert "initial stack pointer" in capsys.readouterr().err
    for judge in ("esp", "mcuboot"):
        assert add(desk, "--judge", judge) == 1
    assert add(desk, "--judge", "stm32") == 2
    assert add(desk, *SLOT[:-1], "somewhere") == 2
    assert [path for path in (desk / "repo" / "waiting").rglob("*") if path.is_file()] == []
    (desk / "image.bin").write_bytes(build_image("1.0.0", 4096, 0x0801_0000))
    assert add(desk, *SLOT) == 0
