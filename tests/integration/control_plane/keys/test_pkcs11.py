"""Keys in a PKCS #11 token (SoftHSM): for the director's online keys, and at the release desk."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner

from cli.main import dispatch
from control_plane.director.key_references import (
    Opening,
    SigningFailed,
    open_reference,
    read_references,
)
from control_plane.director.keys import KeyFile, open_director
from shared.errors import ConfigError
from shared.trust.keys import BadKey, load_role_key
from shared.trust.uptane.director import direct
from shared.trust.uptane.publication import publish
from shared.trust.uptane.repository import RoleKeys, begin, sign
from shared.trust.uptane.steps import drive
from shared.trust.uptane.store import provision
from shared.trust.uptane.time_policy import Reading, TimePolicy
from shared.trust.uptane.verify import verify
from sim.uptane_world import BUILT_AT, UptaneWorld

PIN = "834201"


def _file(folder: Path, references: Any, *, pin: str = PIN) -> Path:
    for name, text in (("director-key", json.dumps(references)), ("pin", f"{pin}\n")):
        (folder / name).touch(0o600)
        (folder / name).write_text(text)
    return folder / "director-key"


def _open(token: Any, folder: Path, keyid: int = 1, **more: Any) -> Any:
    path = _file(folder, token.reference(keyid, **more))
    [reference] = read_references(path.read_bytes(), "key")
    return open_reference(reference, Opening(folder=folder), "key")


def test_a_token_signs_what_trucks_verify(token: Any, tmp_path: Path) -> None:
    """A director whose one online key never leaves its token, from its root to a verified selection."""
    world = UptaneWorld()
    release = world.release("1.2.0", 3)
    online = RoleKeys(keys=(load_role_key(token.publics[1].encode()),), threshold=1)
    roots = [CryptoSigner(Ed25519PrivateKey.generate()) for _ in range(2)]
    repository = begin(
        "director",
        {
            "root": RoleKeys(keys=tuple(one.public_key for one in roots), threshold=2),
            **dict.fromkeys(("targets", "snapshot", "timestamp"), online),
        },
        world.now,
    )
    for one in roots:
        repository, _ = sign(repository, one)
    repository = publish(repository, now=world.now)
    (tmp_path / "roots").mkdir()
    (tmp_path / "roots" / "1.root.json").write_bytes(repository.published["1.root.json"])
    director = open_director(KeyFile(path=_file(tmp_path, [token.reference()])), tmp_path / "roots")
    files = direct(world.vehicle, release, version=1, signers=director.signers, now=world.now)
    for name, raw in {**files, **repository.published}.items():
        world.served["director", name] = raw
    store = provision(
        director_root=repository.published["1.root.json"], image_root=world.image.published["1.root.json"]
    )
    reading = Reading(wall=world.now)
    outcome = drive(verify(store, world.vehicle, reading, TimePolicy(built_at=BUILT_AT)), world.fetch)
    assert outcome.refused is None
    assert outcome.selection is not None
    assert outcome.selection.release == release


def test_many_threads_sign_at_once(token: Any, tmp_path: Path) -> None:
    """A token's login is the whole process's: a second one beside it would be refused."""
    first, second = _open(token, tmp_path), _open(token, tmp_path, 2)
    start = threading.Barrier(8)

    def act(number: int) -> None:
        signer = (first, second)[number % 2]
        start.wait(20)
        for _ in range(5):
            payload = str(number).encode()
            signer.public_key.verify_signature(signer.sign(payload), payload)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(act, range(8)))


def test_another_key_in_the_token_is_noticed_before_anything_is_signed(token: Any, tmp_path: Path) -> None:
    path = _file(tmp_path, token.reference(1, public_key=token.publics[2]))
    with pytest.raises(ConfigError, match=r"director_key: .*signs with another key"):
        KeyFile(path=path).open()


def test_a_wrong_pin_is_tried_once(token: Any, tmp_path: Path) -> None:
    """A token that is asked again and again locks itself."""
    path = _file(tmp_path, token.reference(), pin="000000")
    with pytest.raises(ConfigError, match="refused the PIN"):
        KeyFile(path=path).open()
    signer = _open(token, tmp_path)
    (tmp_path / "pin").write_text("000000")
    with pytest.raises(SigningFailed, match="refused the PIN"):
        signer.sign(b"x")
    (tmp_path / "pin").write_text(PIN)
    with pytest.raises(SigningFailed, match="refused the PIN") as refused:
        signer.sign(b"x")
    assert not refused.value.retryable
    _open(token, tmp_path).sign(b"x")


def _no_such_key(said: dict[str, Any]) -> None:
    said["signer"] = "hsm:7?label=director"


def _no_such_token(said: dict[str, Any]) -> None:
    said["signer"] = "hsm:1?label=another"


def _no_such_library(said: dict[str, Any]) -> None:
    said["library"] = "/nowhere/lib.so"


@pytest.mark.parametrize("change", [_no_such_key, _no_such_token, _no_such_library])
def test_what_is_not_there_is_said_and_may_come(token: Any, tmp_path: Path, change: Any) -> None:
    """A token that is out at the start keeps no office from starting: it may be put in."""
    said = token.reference()
    change(said)
    [signer] = KeyFile(path=_file(tmp_path, said)).open()
    with pytest.raises(SigningFailed, match="the token did not sign") as refused:
        signer.sign(b"x")
    assert refused.value.retryable


def test_a_pin_that_others_can_read_is_not_used(token: Any, tmp_path: Path) -> None:
    path = _file(tmp_path, token.reference())
    (tmp_path / "pin").chmod(0o644)
    with pytest.raises(ConfigError, match="others than its owner"):
        KeyFile(path=path).open()


def test_the_desk_signs_with_a_token(token: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The PIN is asked for as a passphrase is, where the reference names no file of it."""
    monkeypatch.setenv("QUARRY_KEY_PASSPHRASE", PIN)
    out = ["--library", token.library, "--out", str(tmp_path / "targets.json")]
    assert dispatch(["release", "reference", "hsm:1?label=director", *out]) == 0
    assert (tmp_path / "targets.json.pub").read_text() == token.publics[1]
    keys = str(tmp_path / "keys")
    folder = ["--folder", str(tmp_path / "fleet")]
    targets = ["--targets", str(tmp_path / "targets.json")]
    assert dispatch(["release", "init", *folder, "--new-keys", keys, *targets]) == 0
    roots = [word for n in (1, 3) for word in ("--key", f"{keys}/root-{n}")]
    assert dispatch(["release", "root", "sign", *folder, *roots]) == 0
    assert dispatch(["release", "sign", *folder, "--key", str(tmp_path / "targets.json")]) == 0
    online = ["--snapshot-key", f"{keys}/snapshot", "--timestamp-key", f"{keys}/timestamp"]
    assert dispatch(["release", "publish", *folder, *online]) == 0


@pytest.mark.parametrize("signer", ["hsm:9?label=director", "hsm:1?label=another", "hsm:one"])
def test_the_desk_does_not_write_a_reference_to_nothing(
    token: Any,
    tmp_path: Path,
    signer: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("QUARRY_KEY_PASSPHRASE", PIN)
    out = ["--library", token.library, "--out", str(tmp_path / "key.json")]
    assert dispatch(["release", "reference", signer, *out]) == 1
    assert "the token can't be read" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_kit_takes_a_reference(token: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The director's online key in a token, from its root to an office that would start."""
    monkeypatch.setenv("QUARRY_KEY_PASSPHRASE", PIN)
    keys, online = tmp_path / "keys", tmp_path / "online.json"
    name = ["--library", token.library, "--pin-file", "pin", "--out", str(online)]
    assert dispatch(["release", "reference", "hsm:2?label=director", *name]) == 0
    for verb, folder, more in (
        ("init", "fleet", ()),
        ("director init", "director", ("--online", str(online))),
    ):
        where = ["--folder", str(tmp_path / folder)]
        assert dispatch(["release", *verb.split(), *where, "--new-keys", str(keys), *more]) == 0
        prefix = "" if folder == "fleet" else "director-"
        signers = [word for n in (1, 2) for word in ("--key", str(keys / f"{prefix}root-{n}"))]
        assert dispatch(["release", "root", "sign", *where, *signers]) == 0
    fleet, director = ["--folder", str(tmp_path / "fleet")], ["--folder", str(tmp_path / "director")]
    assert dispatch(["release", "sign", *fleet, "--key", str(keys / "targets")]) == 0
    of_fleet = ["--snapshot-key", str(keys / "snapshot"), "--timestamp-key", str(keys / "timestamp")]
    assert dispatch(["release", "publish", *fleet, *of_fleet]) == 0
    assert dispatch(["release", "publish", *director]) == 0
    kit = ["--images", str(tmp_path / "fleet"), "--online-key", str(online), "--out", str(tmp_path / "kit")]
    assert dispatch(["release", "director", "kit", *director, *kit]) == 0
    office = tmp_path / "kit" / "office"
    (office / "pin").touch(0o600)
    (office / "pin").write_text(PIN)
    opened = open_director(KeyFile(path=office / "director-key"), office / "director-roots")
    assert opened.signers.timestamp[0].sign(b"x").signature


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"library": None}, "its library is not named"),
        ({"public_key": "no PEM"}, "can't be read"),
        ({"signer": "hsm:one"}, "can't be used"),
        ({"signer": "file:/etc/passwd"}, "not the address of a key"),
        ({"pin": PIN}, "no key reference"),
    ],
)
def test_a_reference_that_names_no_key(
    token: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], says: str
) -> None:
    monkeypatch.delenv("PYKCS11LIB", raising=False)
    with pytest.raises(BadKey, match=says):
        _open(token, tmp_path, **change)
