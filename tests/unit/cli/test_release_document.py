"""`quarry release document`: keys, signatures, and files that must not be overwritten."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.main import dispatch

IMAGE = bytes(range(256)) * 16


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a key pair and an image."""
    monkeypatch.delenv("QUARRY_KEY_PASSPHRASE", raising=False)
    assert dispatch(["release", "document", "keygen", "--out", str(tmp_path / "key")]) == 0
    (tmp_path / "image.bin").write_bytes(IMAGE)
    return tmp_path


def sign(desk: Path, *more: str) -> int:
    """Sign the desk's image; an option in `more` stands behind, and so replaces, the same one before."""
    files = [
        "--image",
        str(desk / "image.bin"),
        "--key",
        str(desk / "key"),
        "--out",
        str(desk / "document.json"),
    ]
    words = ["--kind", "brake-controller", "--hardware", "rev-b", "--hardware", "rev-c"]
    version = ["--version", "1.1.0", "--counter", "2"]
    return dispatch(["release", "document", "sign", *files, *words, *version, *more])


def test_a_key_is_private_and_never_overwritten(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (desk / "key").stat().st_mode & 0o777 == 0o600
    before = (desk / "key").read_bytes()
    assert dispatch(["release", "document", "keygen", "--out", str(desk / "key")]) == 1
    assert "is not overwritten" in capsys.readouterr().err
    assert (desk / "key").read_bytes() == before


def test_what_was_signed_is_shown_and_checked(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sign(desk) == 0
    capsys.readouterr()
    show = ["release", "document", "show", "--document", str(desk / "document.json"), "--json"]
    assert dispatch([*show, "--public-key", str(desk / "key.pub")]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["signature_checked"] is True
    assert facts["hardware"] == ["rev-b", "rev-c"]
    assert facts["length"] == len(IMAGE)
    assert dispatch(show) == 0
    assert json.loads(capsys.readouterr().out)["signature_checked"] is False


def test_another_key_did_not_sign_it(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sign(desk) == 0
    assert dispatch(["release", "document", "keygen", "--out", str(desk / "other")]) == 0
    capsys.readouterr()
    show = ["release", "document", "show", "--document", str(desk / "document.json")]
    assert dispatch([*show, "--public-key", str(desk / "other.pub")]) == 1
    assert "0 valid signatures" in capsys.readouterr().err


def test_an_encrypted_key_needs_its_passphrase(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "image.bin").write_bytes(IMAGE)
    monkeypatch.setenv("QUARRY_KEY_PASSPHRASE", "open, quarry")
    assert dispatch(["release", "document", "keygen", "--out", str(tmp_path / "key")]) == 0
    assert "ENCRYPTED" in (tmp_path / "key").read_text()
    monkeypatch.delenv("QUARRY_KEY_PASSPHRASE")
    assert sign(tmp_path) == 1
    assert "private key can't be read" in capsys.readouterr().err
    assert not (tmp_path / "document.json").exists()
    monkeypatch.setenv("QUARRY_KEY_PASSPHRASE", "open, quarry")
    assert sign(tmp_path) == 0


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--version", "1.1 0"], "version '1.1 0'"),
        (["--kind", "brake/controller"], "kind 'brake/controller'"),
        (["--hardware", "rev b"], "hardware 'rev b'"),
    ],
)
def test_what_cannot_be_signed_is_refused_by_name(
    desk: Path, more: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sign(desk, *more) == 1
    assert says in capsys.readouterr().err
    assert not (desk / "document.json").exists()
