"""`quarry release`: from no keys to a release, a kit for the office, and a USB bundle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import cli.release_usb as usb_module
from cli.main import dispatch
from control_plane.config import load_config
from control_plane.director.room import read_trust
from shared.trust.uptane.offline import offline_file
from shared.trust.uptane.release_document import read_release
from shared.trust.uptane.steps import Wanted, drive
from shared.trust.uptane.store import provision
from shared.trust.uptane.time_policy import Reading, TimePolicy
from shared.trust.uptane.vehicle import Ecu, Vehicle
from shared.trust.uptane.verify import verify

PASSPHRASE = "open, quarry"
BRAKE, HOIST = "brake-controller", "hoist-controller"
IMAGES = {BRAKE: b"brake 1.1.0 " * 90, HOIST: b"hoist 1.1.0 " * 70}


def release(verb: str, *arguments: object) -> int:
    return dispatch(["release", *verb.split(), *map(str, arguments)])


def add(desk: Path, kind: str, *more: object, version: str = "1.1.0", counter: int = 2) -> int:
    """An image of a kind, drafted."""
    (desk / f"{kind}.bin").write_bytes(IMAGES[kind].replace(b"1.1.0", version.encode()))
    words = ["--kind", kind, "--hardware", "A", "--version", version, "--counter", counter, "--judge", "none"]
    return release("add", "--folder", desk / "fleet", "--image", desk / f"{kind}.bin", *words, *more)


def publish(desk: Path) -> None:
    assert release("sign", "--folder", desk / "fleet", "--key", desk / "keys/targets") == 0
    online = ["--snapshot-key", desk / "keys/snapshot", "--timestamp-key", desk / "keys/timestamp"]
    assert release("publish", "--folder", desk / "fleet", *online) == 0


@pytest.fixture(autouse=True)
def _secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUARRY_KEY_PASSPHRASE", PASSPHRASE)


@pytest.fixture(scope="module")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    desk = tmp_path_factory.mktemp("desk")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUARRY_KEY_PASSPHRASE", PASSPHRASE)
        fleet, director, keys = desk / "fleet", desk / "director", desk / "keys"
        assert release("init", "--folder", fleet, "--new-keys", keys) == 0
        assert release("director init", "--folder", director, "--new-keys", keys) == 0
        for folder, names in (
            (fleet, ("root-1", "root-3")),
            (director, ("director-root-1", "director-root-2")),
        ):
            signers = [word for name in names for word in ("--key", keys / name)]
            assert release("root sign", "--folder", folder, *signers) == 0
        assert release("publish", "--folder", director) == 0
        for kind in IMAGES:
            assert add(desk, kind) == 0
        targets = ["--target", f"{HOIST}:1.1.0", "--target", f"{BRAKE}:1.1.0"]
        assert (
            release("add-release", "--folder", fleet, "--name", "haul", "--version", "1.1.0", *targets) == 0
        )
        publish(desk)
    return desk


@pytest.fixture
def desk(_made: Path, tmp_path: Path) -> Path:
    """`fleet` with release haul/1.1.0 published, `director` with its root, `keys` of both."""
    shutil.copytree(_made, tmp_path / "desk")
    return tmp_path / "desk"


# Keys and repositories


def test_new_keys_are_encrypted_but_those_that_a_server_needs(desk: Path) -> None:
    keys = desk / "keys"
    opened = {
        path.name for path in keys.iterdir() if not path.suffix and b"ENCRYPTED" not in path.read_bytes()
    }
    assert opened == {"director-online", "director-time"}
    assert {path.stat().st_mode & 0o777 for path in keys.iterdir() if not path.suffix} == {0o600}
    assert len(list(keys.glob("*.pub"))) == 6 + 6


def test_a_repository_that_is_there_costs_no_keys(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb, folder in (("init", "fleet"), ("director init", "director")):
        assert release(verb, "--folder", desk / folder, "--new-keys", desk / "more") == 1
        assert "holds a repository already" in capsys.readouterr().err
    assert not (desk / "more").exists()


def test_a_role_without_a_key_is_named(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    roots = [word for n in (1, 2) for word in ("--root", desk / f"keys/root-{n}.pub")]
    assert release("init", "--folder", desk / "new", *roots) == 1
    assert "no key of role targets is given" in capsys.readouterr().err
    assert not (desk / "new").exists()


def test_keys_that_are_given_are_not_made_again(desk: Path) -> None:
    roots = [word for n in (1, 2) for word in ("--root", desk / f"keys/root-{n}.pub")]
    assert release("init", "--folder", desk / "new", *roots, "--new-keys", desk / "others") == 0
    assert {path.name for path in (desk / "others").glob("*.pub")} == {
        "targets.pub",
        "snapshot.pub",
        "timestamp.pub",
    }


# Images and releases


def document_of(desk: Path, kind: str, **more: Any) -> Path:
    """A signed document of the desk's image."""
    out = desk / "document.json"
    out.unlink(missing_ok=True)
    if not (desk / "ecu-key").exists():
        assert release("document keygen", "--out", desk / "ecu-key") == 0
    said = {"kind": kind, "hardware": "A", "version": "1.2.0", "counter": 3, **more}
    words = [word for name, value in said.items() for word in (f"--{name}", value)]
    image = ["--image", desk / f"{kind}.bin", "--key", desk / "ecu-key"]
    assert release("document sign", *image, "--out", out, *words) == 0
    return out


def test_an_image_takes_its_ecus_document_along(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (desk / f"{BRAKE}.bin").write_bytes(b"brake 1.2.0 " * 90)
    document = document_of(desk, BRAKE)
    image = ["--image", desk / f"{BRAKE}.bin", "--judge", "none", "--document", document]
    assert release("add", "--folder", desk / "fleet", *image) == 0
    publish(desk)
    signed = json.loads((desk / "fleet/public/2.targets.json").read_text())["signed"]["targets"]
    [entry] = [one for path, one in signed.items() if path.startswith(f"{BRAKE}/1.2.0/")]
    assert entry["custom"]["document"] == document.read_text()
    assert (entry["custom"]["version"], entry["custom"]["release_counter"]) == ("1.2.0", 3)
    capsys.readouterr()
    for more, says in (
        (["--version", "1.2.1"], "another firmware: version 1.2.0, not 1.2.1"),
        (["--hardware", "B"], "another firmware: hardware A, not B"),
        (["--counter", "9"], "another firmware: release_counter 3, not 9"),
    ):
        assert release("add", "--folder", desk / "fleet", *image, *more) == 1
        assert says in capsys.readouterr().err


def test_a_document_of_other_bytes_or_without_end(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = document_of(desk, BRAKE)
    other = ["--image", desk / f"{HOIST}.bin", "--judge", "none", "--document", document]
    assert release("add", "--folder", desk / "fleet", *other) == 1
    assert "another firmware: length" in capsys.readouterr().err
    document.write_bytes(b" " * 4097)
    assert release("add", "--folder", desk / "fleet", *other) == 1
    assert "at most 4096 are taken" in capsys.readouterr().err


def test_an_image_must_be_described(desk: Path) -> None:
    image = ["--image", desk / f"{BRAKE}.bin", "--judge", "none"]
    said = ["--kind", BRAKE, "--hardware", "A", "--version", "1", "--counter", "1"]
    for left_out in range(0, len(said), 2):
        words = said[:left_out] + said[left_out + 2 :]
        assert release("add", "--folder", desk / "fleet", *image, *words) == 2


def test_a_release_is_written_shortly_and_signed_whole(desk: Path) -> None:
    [path] = (desk / "fleet/public/targets/releases/haul/1.1.0").iterdir()
    made = read_release(path.read_bytes())
    assert [(one.kind, one.order, one.release_counter) for one in made.targets] == [
        (HOIST, 0, 2),
        (BRAKE, 1, 2),
    ]
    assert made.targets[1].length == len(IMAGES[BRAKE])
    assert made.targets[1].hardware == ("A",)


def test_a_release_from_json_says_only_what_differs(desk: Path) -> None:
    said = {
        "name": "haul",
        "version": "1.1.1",
        "targets": [{"kind": BRAKE, "version": "1.1.0", "group": "brakes", "attempts": 1}],
        "safety": {"need_consent": True},
    }
    (desk / "release.json").write_text(json.dumps(said))
    assert release("add-release", "--folder", desk / "fleet", "--spec", desk / "release.json") == 0
    [path] = (desk / "fleet/waiting/targets/releases/haul/1.1.1").iterdir()
    made = read_release(path.read_bytes())
    assert (made.targets[0].group, made.targets[0].attempts, made.safety.need_consent) == ("brakes", 1, True)


BAD_RELEASES: dict[str, tuple[Any, str]] = {
    "no JSON": ("{", "it is no JSON"),
    "a list": ([], "Expected `object`"),
    "an image that is not there": (
        {"targets": [{"kind": BRAKE, "version": "9"}]},
        "0 images in the repository",
    ),
    "an unknown field": ({"targets": [{"kind": BRAKE, "version": "1.1.0"}], "speed": 3}, "speed"),
    "no target": ({"targets": []}, "length >= 1"),
}


@pytest.mark.parametrize("name", BAD_RELEASES)
def test_what_is_no_release(desk: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    said, says = BAD_RELEASES[name]
    if isinstance(said, dict):
        said = {"name": "haul", "version": "2", **said}
    (desk / "release.json").write_text(said if isinstance(said, str) else json.dumps(said))
    assert release("add-release", "--folder", desk / "fleet", "--spec", desk / "release.json") == 1
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--name", "haul", "--version", "2"),
        ("--name", "haul", "--version", "2", "--target", BRAKE),
        ("--spec", "x.json", "--name", "haul", "--version", "2", "--target", f"{BRAKE}:1.1.0"),
    ],
)
def test_a_release_is_given_in_one_way(desk: Path, words: tuple[str, ...]) -> None:
    assert release("add-release", "--folder", desk / "fleet", *words) == 2


# The kit


def kit(desk: Path, *more: object) -> int:
    where = ["--folder", desk / "director", "--images", desk / "fleet", "--out", desk / "kit"]
    return release("director kit", *where, "--online-key", desk / "keys/director-online", *more)


def test_the_office_starts_with_its_kit(desk: Path) -> None:
    assert kit(desk, "--time-key", desk / "keys/director-time") == 0
    office = desk / "kit/office"
    trust = read_trust(load_config(data=desk / "data", file=office / "office.toml"))
    assert trust is not None
    assert len(trust.time_signers) == 1
    secret = {path.name for path in office.iterdir() if path.is_file() and not path.stat().st_mode & 0o077}
    assert secret == {"director-key", "director-time-key"}
    truck = desk / "kit/truck"
    provision(
        director_root=(truck / "director.root.json").read_bytes(),
        image_root=(truck / "image.root.json").read_bytes(),
    )
    assert b"PRIVATE" not in b"".join(path.read_bytes() for path in truck.iterdir())


def test_a_kit_says_where_it_will_lie(desk: Path) -> None:
    assert kit(desk, "--at", "/etc/quarry") == 0
    said = (desk / "kit/office/office.toml").read_text()
    assert 'director_key = "/etc/quarry/director-key"' in said
    assert "time" not in said


def test_a_kit_with_a_key_that_the_root_does_not_name(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert kit(desk, "--online-key", desk / "keys/director-time") == 1
    assert "does not name the key" in capsys.readouterr().err
    assert kit(desk, "--time-key", desk / "keys/director-online") == 1
    assert "for time" in capsys.readouterr().err
    assert not (desk / "kit").exists()


def test_a_kit_is_not_overwritten_nor_made_before_there_is_a_root(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert kit(desk) == 0
    assert kit(desk) == 1
    assert "can't be made" in capsys.readouterr().err
    assert release("director init", "--folder", desk / "d2", "--new-keys", desk / "k2") == 0
    assert kit(desk, "--folder", desk / "d2") == 1
    assert "has published no root yet" in capsys.readouterr().err


# USB


def truck_file(
    desk: Path, name: str = "truck-7", kinds: tuple[str, ...] = (BRAKE, HOIST), **more: Any
) -> Path:
    """As `quarry device ecus show --json` prints it, what is not needed left out."""
    ecus = [{"serial": f"SN-{kind}", "kind": kind, "hardware": "A", "counter": 1} for kind in kinds]
    path = desk / f"{name}.json"
    path.write_text(json.dumps({"device_id": name, "version": 3, "ecus": ecus, **more}))
    return path


def usb(desk: Path, *trucks: Path, out: str = "stick", key: str = "director-offline", more: Any = ()) -> int:
    listed = [word for truck in trucks for word in ("--truck", truck)]
    where = ["--folder", desk / "director", "--images", desk / "fleet", "--out", desk / out]
    return release("usb", *where, "--release", "haul/1.1.0", "--key", desk / "keys" / key, *listed, *more)


def bundle_fetch(folder: Path) -> Callable[[Wanted], bytes | None]:
    def fetch(wanted: Wanted) -> bytes | None:
        path = folder / wanted.repository / wanted.name
        return path.read_bytes() if path.is_file() else None

    return fetch


def vehicle(name: str = "truck-7") -> Vehicle:
    ecus = tuple(
        Ecu(serial=f"SN-{kind}", kind=kind, hardware="A", installed_counter=1) for kind in (BRAKE, HOIST)
    )
    return Vehicle(vehicle_id=name, ecus=ecus)


def installs(desk: Path, out: str, *, name: str = "truck-7", days: float = 0.0) -> str:
    """What a truck with the published roots says of a bundle, `days` after it was made."""
    store = provision(
        director_root=(desk / "director/public/1.root.json").read_bytes(),
        image_root=(desk / "fleet/public/1.root.json").read_bytes(),
    )
    reading = Reading(wall=datetime.now(UTC) + timedelta(days=days))
    policy = TimePolicy(built_at=datetime(2026, 1, 1, tzinfo=UTC))
    outcome = drive(verify(store, vehicle(name), reading, policy, offline=True), bundle_fetch(desk / out))
    if outcome.refused is not None:
        return outcome.refused.code
    return "nothing" if outcome.selection is None else outcome.selection.release.version


def test_a_bundle_is_whole_and_good_for_its_trucks_and_its_days(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert usb(desk, truck_file(desk), truck_file(desk, "truck-8"), more=("--json",)) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["trucks"].keys() == {"truck-7", "truck-8"}
    # Snapshot and timestamp are over long before; the offline role's word stands for their freshness.
    assert [installs(desk, "stick", days=days) for days in (0, 89.9, 90.1)] == [
        "1.1.0",
        "1.1.0",
        "metadata_expired",
    ]
    assert installs(desk, "stick", name="truck-8") == "1.1.0"
    assert installs(desk, "stick", name="truck-9") == "metadata_missing"
    images = sorted((desk / "stick/image/targets").rglob("*.bin"))
    assert {path.read_bytes() for path in images} == set(IMAGES.values())


def test_a_bundle_holds_no_image_that_its_trucks_do_not_need(desk: Path) -> None:
    assert usb(desk, truck_file(desk, kinds=(BRAKE,))) == 0
    [image] = (desk / "stick/image/targets").rglob("*.bin")
    assert image.read_bytes() == IMAGES[BRAKE]


def test_the_version_of_a_bundle_never_goes_down(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = []
    clock = [datetime.now(UTC)]
    monkeypatch.setattr(usb_module, "now", lambda: clock[0])
    for number, step in enumerate((timedelta(), timedelta(), timedelta(hours=-1), timedelta(days=1))):
        clock[0] += step
        if number == 3:
            # Lost with its machine: the clock goes on above what was given out.
            (desk / "director" / usb_module.VERSIONS).unlink()
        assert usb(desk, truck_file(desk), out=f"stick-{number}") == 0
        raw = (desk / f"stick-{number}" / "director" / offline_file("truck-7")).read_bytes()
        versions.append(json.loads(raw)["signed"]["version"])
    assert versions == sorted(set(versions))


def test_a_bundle_that_a_truck_would_refuse_is_not_made(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert usb(desk, truck_file(desk), key="director-root-1") == 1
    assert "valid signatures by trusted keys" in capsys.readouterr().err
    assert usb(desk, truck_file(desk), truck_file(desk, "truck-8", kinds=("fan",))) == 1
    assert "for none of the ECUs of truck-8" in capsys.readouterr().err
    assert not list(desk.glob("*stick*"))


BAD_TRUCKS: dict[str, tuple[Callable[[Path], tuple[Path, ...]], str]] = {
    "twice": (lambda desk: (truck_file(desk), truck_file(desk)), "listed twice"),
    "no ECU": (lambda desk: (truck_file(desk, kinds=()),), "length >= 1"),
    "one serial twice": (lambda desk: (truck_file(desk, kinds=(BRAKE, BRAKE)),), "have the same serial"),
    "a path for a name": (lambda desk: (truck_file(desk, device_id="../x"),), "device_id"),
    "no file": (lambda desk: (desk / "nowhere.json",), "can't be read"),
}


@pytest.mark.parametrize("name", BAD_TRUCKS)
def test_what_is_no_list_of_trucks(desk: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    make, says = BAD_TRUCKS[name]
    assert usb(desk, *make(desk)) == 1
    assert says in capsys.readouterr().err


def test_a_bundle_is_for_at_most_ninety_days_and_not_overwritten(desk: Path) -> None:
    truck = truck_file(desk)
    assert usb(desk, truck, more=("--days", "91")) == 2
    assert usb(desk, truck, more=("--days", "1")) == 0
    assert installs(desk, "stick", days=1.1) == "metadata_expired"
    assert usb(desk, truck) == 1
    assert usb(desk, truck, out="other", more=("--release", "haul/9")) == 1
