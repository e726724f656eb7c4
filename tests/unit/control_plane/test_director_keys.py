"""The director's keys and roots: a director that trucks would refuse does not start."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner

from control_plane.config import OfficeConfig
from control_plane.director.keys import KeyFile, open_director, open_time_signers
from control_plane.director.room import read_trust
from shared.errors import ConfigError
from sim.uptane_world import UptaneWorld

ONLINE = ("targets", "snapshot", "timestamp")


@pytest.fixture
def world() -> UptaneWorld:
    return UptaneWorld()


def _keys(path: Path, signers: list[CryptoSigner], mode: int = 0o600) -> KeyFile:
    path.write_bytes(b"# of the director\n" + b"\n".join(signer.private_bytes for signer in signers))
    path.chmod(mode)
    return KeyFile(path=path)


def _roots(folder: Path, world: UptaneWorld) -> Path:
    folder.mkdir(exist_ok=True)
    for name, raw in world.director.published.items():
        (folder / name).write_bytes(raw)
    return folder


def _online(world: UptaneWorld) -> list[CryptoSigner]:
    return [world.keys[f"director/{role}/1"] for role in ONLINE]


def test_each_role_is_signed_by_the_keys_that_the_newest_root_names(
    tmp_path: Path, world: UptaneWorld
) -> None:
    old = world.keys["director/timestamp/1"]
    world.rotate("director/timestamp")
    world.publish()
    source = _keys(tmp_path / "k", [*_online(world), old])
    director = open_director(source, _roots(tmp_path / "r", world))
    assert director.root.version == 2
    assert sorted(director.roots) == ["1.root.json", "2.root.json"]
    for role in ONLINE:
        [signer] = getattr(director.signers, role)
        assert signer.public_key == world.keys[f"director/{role}/1"].public_key
    assert "private" not in repr(director).lower()


def test_a_missing_key_is_named_by_its_role(tmp_path: Path, world: UptaneWorld) -> None:
    for lost in range(3):
        keys = _online(world)
        del keys[lost]
        with pytest.raises(ConfigError, match=f"director_key: {ONLINE[lost]} needs 1"):
            open_director(_keys(tmp_path / "k", keys), _roots(tmp_path / "r", world))


def test_a_key_of_the_root_does_not_belong_here(tmp_path: Path, world: UptaneWorld) -> None:
    keys = [*_online(world), world.keys["director/root/1"]]
    with pytest.raises(ConfigError, match="root's own key"):
        open_director(_keys(tmp_path / "k", keys), _roots(tmp_path / "r", world))


def test_a_key_file_that_others_can_read_or_that_is_none(tmp_path: Path, world: UptaneWorld) -> None:
    roots = _roots(tmp_path / "r", world)
    with pytest.raises(ConfigError, match="others than its owner"):
        open_director(_keys(tmp_path / "k", _online(world), mode=0o644), roots)
    with pytest.raises(ConfigError, match="director_key: there is no file"):
        open_director(KeyFile(path=tmp_path / "nothing"), roots)
    with pytest.raises(ConfigError, match="no private key"):
        open_director(_keys(tmp_path / "k", []), roots)


def _gap(folder: Path, world: UptaneWorld) -> None:
    (folder / "3.root.json").write_bytes((folder / "1.root.json").read_bytes())


def _renamed(folder: Path, world: UptaneWorld) -> None:
    (folder / "2.root.json").write_bytes((folder / "1.root.json").read_bytes())


def _foreign(folder: Path, world: UptaneWorld) -> None:
    other = UptaneWorld()
    other.rotate("director/timestamp")
    other.publish()
    (folder / "2.root.json").write_bytes(other.director.published["2.root.json"])


def _empty(folder: Path, world: UptaneWorld) -> None:
    (folder / "1.root.json").unlink()


def _no_root(folder: Path, world: UptaneWorld) -> None:
    (folder / "1.root.json").write_bytes(b"{}")


@pytest.mark.parametrize("spoil", [_gap, _renamed, _foreign, _empty, _no_root])
def test_roots_that_trucks_could_not_follow(
    tmp_path: Path, world: UptaneWorld, spoil: Callable[[Path, UptaneWorld], None]
) -> None:
    folder = _roots(tmp_path / "r", world)
    spoil(folder, world)
    with pytest.raises(ConfigError, match="director_roots"):
        open_director(_keys(tmp_path / "k", _online(world)), folder)


def test_the_configuration_is_whole_or_there_is_no_director(tmp_path: Path, world: UptaneWorld) -> None:
    _keys(tmp_path / "k", _online(world))
    _roots(tmp_path / "r", world)
    (tmp_path / "image.json").write_bytes(world.image.published["1.root.json"])
    given: dict[str, Any] = {
        "director_key": str(tmp_path / "k"),
        "director_roots": str(tmp_path / "r"),
        "director_image_root": str(tmp_path / "image.json"),
    }
    assert read_trust(OfficeConfig(data=tmp_path, **given)) is None
    assert read_trust(OfficeConfig(data=tmp_path, director=True, **given)) is not None
    for key in given:
        with pytest.raises(ConfigError, match=f"{key} is missing"):
            OfficeConfig(data=tmp_path, director=True, **(given | {key: ""}))
    for name in ("nothing.json", "r/1.root.json"):
        # No file; or one root for both: one theft would take both repositories.
        with pytest.raises(ConfigError, match="director_image_root"):
            read_trust(
                OfficeConfig(
                    data=tmp_path, director=True, **(given | {"director_image_root": str(tmp_path / name)})
                )
            )


def test_the_time_role_s_key_is_one_that_the_root_names(tmp_path: Path, world: UptaneWorld) -> None:
    root = open_director(_keys(tmp_path / "k", _online(world)), _roots(tmp_path / "r", world)).root
    right = _keys(tmp_path / "t", [world.keys["director/offline/1"], world.keys["director/time/1"]])
    [signer] = open_time_signers(right, root)
    assert signer.public_key == world.keys["director/time/1"].public_key
    with pytest.raises(ConfigError, match="director_time_key: time needs 1"):
        open_time_signers(_keys(tmp_path / "w", _online(world)), root)
    root.unrecognized_fields.clear()
    with pytest.raises(ConfigError, match=r"director_time_key: .*no role 'time'"):
        open_time_signers(right, root)


def test_a_time_key_without_a_director_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="director_time_key"):
        OfficeConfig(data=tmp_path, director_time_key="time-key")
