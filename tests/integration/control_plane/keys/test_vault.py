"""Keys in Vault's transit engine: against a strict stub of its documented API, for want of a Vault."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cli.main import dispatch
from control_plane.director import vault_keys
from control_plane.director.key_references import Opening, SigningFailed, open_reference, read_references
from control_plane.director.keys import KeyFile
from shared.errors import ConfigError
from shared.trust.keys import BadKey, load_role_key


def _reference(vault: Any, key: str = "ed", **more: Any) -> dict[str, Any]:
    public = vault.keys[key][0].public_key()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    pem = public.public_bytes(serialization.Encoding.PEM, form).decode()
    said = {"signer": f"vault:{key}", "public_key": pem, "address": vault.url, "token_file": "token"}
    return {**said, **more}


def _open(vault: Any, folder: Path, key: str = "ed", **more: Any) -> Any:
    (folder / "token").touch(0o600)
    (folder / "token").write_text(f"{vault.token}\n")
    [reference] = read_references(json.dumps(_reference(vault, key, **more)).encode(), "key")
    return open_reference(reference, Opening(folder=folder), "key")


@pytest.mark.parametrize("key", ["ed", "ec"])
def test_vault_signs_what_verifies(vault: Any, tmp_path: Path, key: str) -> None:
    signer = _open(vault, tmp_path, key)
    payload = bytes(range(256)) * 100
    signer.public_key.verify_signature(signer.sign(payload), payload)
    [asked] = vault.asked
    assert base64.b64decode(asked["input"]) == payload
    assert ("hash_algorithm" in asked) is (key == "ec")


def test_a_pinned_version_of_the_key_signs_on_after_a_rotation_there(vault: Any, tmp_path: Path) -> None:
    pinned, newest = _open(vault, tmp_path, key_version=1), _open(vault, tmp_path)
    vault.keys["ed"].append(Ed25519PrivateKey.generate())
    assert pinned.sign(b"x").signature
    with pytest.raises(SigningFailed, match="signs with another key") as refused:
        newest.sign(b"x")
    assert not refused.value.retryable


def test_a_token_that_was_renewed_in_its_file_is_used(vault: Any, tmp_path: Path) -> None:
    signer = _open(vault, tmp_path)
    vault.token = "hvs.renewed"
    with pytest.raises(SigningFailed, match="403: permission denied") as refused:
        signer.sign(b"x")
    assert not refused.value.retryable
    (tmp_path / "token").write_text(vault.token)
    assert signer.sign(b"x").signature


def _say(status: int, raw: bytes) -> Callable[[Any], bool]:
    def spoil(handler: Any) -> bool:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(raw)))
        handler.end_headers()
        handler.wfile.write(raw)
        return True

    return spoil


def _redirect(handler: Any) -> bool:
    handler.send_response(307)
    handler.send_header("Location", "http://127.0.0.1:9/v1/transit/sign/ed")
    handler.send_header("Content-Length", "0")
    handler.end_headers()
    return True


def _cut(handler: Any) -> bool:
    handler.connection.close()
    return True


BAD_ANSWERS: dict[str, tuple[Callable[[Any], bool], str, bool]] = {
    "sealed": (_say(503, b'{"errors": ["Vault is sealed"]}'), "503: Vault is sealed", True),
    "too many": (_say(429, b"{}"), "429: no reason given", True),
    "a page": (_say(200, b"<html>log in</html>"), "no Vault", True),
    "a list": (_say(200, b"[]"), "no Vault", True),
    "no signature": (_say(200, b'{"data": {"signature": "hmac:x"}}'), "no signature of Vault's", True),
    "no base64": (_say(200, b'{"data": {"signature": "vault:v1:a"}}'), "no signature of Vault's", True),
    "of nothing": (_say(200, b'{"data": {"signature": "vault:v1:AAAA"}}'), "signs with another key", False),
    "without end": (_say(200, b" " * 70_000), "an answer of over", True),
    "redirected": (_redirect, "answered 307", False),
    "cut": (_cut, "does not answer", True),
}


@pytest.mark.parametrize("name", BAD_ANSWERS)
def test_what_vault_must_not_answer(vault: Any, tmp_path: Path, name: str) -> None:
    spoil, says, retryable = BAD_ANSWERS[name]
    signer = _open(vault, tmp_path)
    vault.spoil = spoil
    with pytest.raises(SigningFailed, match=says) as refused:
        signer.sign(b"x")
    assert refused.value.retryable is retryable


def test_a_vault_that_does_not_answer_is_left_after_a_while(
    vault: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vault_keys, "ANSWER_WITHIN_S", 0.3)
    go_on = threading.Event()

    def wait(_: Any) -> bool:
        go_on.wait(30)
        return True

    vault.spoil = wait
    signer = _open(vault, tmp_path)
    with pytest.raises(SigningFailed, match="does not answer"):
        signer.sign(b"x")
    go_on.set()


REFERENCES: dict[str, tuple[dict[str, Any], str]] = {
    "in the clear": ({"address": "http://vault.example:8200"}, "not https"),
    "no address": ({"address": None}, "must be named"),
    "no token": ({"token_file": None}, "must be named"),
    "no URL": ({"address": "https://vault:eight"}, "no address"),
    "no name": ({"signer": "vault:../../sys/seal"}, "not the name of a key"),
    "no mount": ({"mount": "../sys"}, "no key reference"),
    "no authority": ({"ca_file": "nowhere.pem"}, "ca_file nowhere.pem"),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_a_reference_that_can_not_be_used(vault: Any, tmp_path: Path, name: str) -> None:
    change, says = REFERENCES[name]
    with pytest.raises(BadKey, match=says):
        _open(vault, tmp_path, **change)


@pytest.mark.parametrize("key", ["ed", "ec"])
def test_the_desk_writes_a_reference_and_signs_with_it(vault: Any, tmp_path: Path, key: str) -> None:
    (tmp_path / "token").touch(0o600)
    (tmp_path / "token").write_text(vault.token)
    vault.keys[key].append(vault.keys[key][0])
    out = tmp_path / "key.json"
    words = ["--address", vault.url, "--token-file", "token", "--out", str(out)]
    assert dispatch(["release", "reference", f"vault:{key}", *words]) == 0
    [reference] = read_references(out.read_bytes(), "key")
    assert reference.key_version == 2
    signer = open_reference(reference, Opening(folder=tmp_path), "key")
    assert load_role_key((tmp_path / "key.json.pub").read_bytes()) == signer.public_key
    assert signer.sign(b"x").signature
    assert dispatch(["release", "reference", f"vault:{key}", *words]) == 1


def test_what_vault_does_not_show(vault: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "token").touch(0o600)
    (tmp_path / "token").write_text(vault.token)
    words = ["--address", vault.url, "--token-file", "token", "--out", str(tmp_path / "key.json")]
    assert dispatch(["release", "reference", "vault:none", *words]) == 1
    assert "Vault answered 404" in capsys.readouterr().err
    for raw in (
        b"{}",
        b'{"data": {"type": "ed25519", "latest_version": 1, "keys": {"1": {"public_key": "x"}}}}',
    ):
        vault.spoil = _say(200, raw)
        assert dispatch(["release", "reference", "vault:ed", *words]) == 1
        assert "shows no such public key" in capsys.readouterr().err
    assert dispatch(["release", "reference", "file:x", *words]) == 1
    assert not (tmp_path / "key.json").exists()


def _key_file(vault: Any, folder: Path, **more: Any) -> KeyFile:
    (folder / "token").touch(0o600)
    (folder / "token").write_text(vault.token)
    path = folder / "director-key"
    path.touch(0o600)
    path.write_text(json.dumps([_reference(vault, "ed", **more), _reference(vault, "ec")]))
    return KeyFile(path=path)


def test_the_office_opens_it_and_starts_also_while_vault_is_away(vault: Any, tmp_path: Path) -> None:
    source = _key_file(vault, tmp_path)
    first, second = source.open()
    assert first.public_key.scheme == "ed25519"
    assert second.public_key.scheme == "ecdsa-sha2-nistp256"
    assert len(vault.asked) == 2
    vault.spoil = _say(503, b'{"errors": ["Vault is sealed"]}')
    away, _ = source.open()
    vault.spoil = lambda _: False
    assert away.sign(b"x").signature


def test_the_office_does_not_start_with_a_key_that_is_not_its_own(vault: Any, tmp_path: Path) -> None:
    other = _reference(vault, "ec")["public_key"]
    with pytest.raises(ConfigError, match=r"director_key: .*(400|signs with another key)"):
        _key_file(vault, tmp_path, public_key=other).open()
