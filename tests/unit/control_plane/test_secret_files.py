"""Secret files: private, whole, never overwritten by accident."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from control_plane.access.accounts import OFFICE_USER, load_office_account
from control_plane.secret_files import create_secret, read_or_create_secret, read_secret
from control_plane.storage.urls import UrlSigner, load_url_key
from shared.errors import ConfigError
from shared.ids import BadId, check_id


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_it_is_made_private_whatever_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    before = os.umask(0)
    try:
        assert create_secret(path, b"one")
    finally:
        os.umask(before)
    assert _mode(path) == 0o600
    assert [one.name for one in tmp_path.iterdir()] == ["secret"], "nothing half-made is left"


def test_one_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    create_secret(path, b"one")
    assert not create_secret(path, b"two")
    assert read_secret(path) == b"one"
    assert [one.name for one in tmp_path.iterdir()] == ["secret"]
    assert create_secret(path, b"three", replace=True)
    assert read_secret(path) == b"three"


def test_of_many_that_make_it_at_once_all_get_the_same(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    with ThreadPoolExecutor(8) as pool:
        got = set(pool.map(lambda n: read_or_create_secret(path, lambda: b"%d" % n), range(32)))
    assert len(got) == 1


def test_what_others_can_read_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    create_secret(path, b"one")
    for mode in (0o604, 0o640, 0o620, 0o601):
        path.chmod(mode)
        with pytest.raises(ConfigError, match="secret"):
            read_secret(path)


def test_what_is_no_plain_file_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    create_secret(target, b"one")
    link = tmp_path / "link"
    link.symlink_to(target)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o600)
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o700)
    large = tmp_path / "large"
    create_secret(large, b"x" * 5000)
    for path in (link, fifo, folder, large):
        with pytest.raises(ConfigError):
            read_secret(path)
    assert read_secret(tmp_path / "missing") is None


def test_the_key_of_urls_stays_and_a_short_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "url-key"
    key = load_url_key(path)
    assert len(key) == 32
    assert load_url_key(path) == key
    assert load_url_key(tmp_path / "other") != key
    path.write_bytes(b"short")
    with pytest.raises(ConfigError, match="url-key"):
        load_url_key(path)


def test_the_offices_account_stays_and_no_truck_can_be_called_like_it(tmp_path: Path) -> None:
    path = tmp_path / "office"
    account = load_office_account(path)
    assert load_office_account(path) == account
    assert account.broker_user().name == OFFICE_USER
    assert len(account.client_id) > 40, "unguessable: who connects with it takes over the session"
    assert account.password not in account.broker_user().password_bcrypt
    with pytest.raises(BadId):
        check_id(OFFICE_USER, "device_id")
    for wrong in (b"", b"{}", b"[]", b'{"user": "a", "password": "b", "client_id": "c", "more": 1}', b"\xff"):
        path.write_bytes(wrong)
        with pytest.raises(ConfigError, match="office"):
            load_office_account(path)


@pytest.mark.parametrize(
    "base", ["", "office", "ftp://office", "http://", "//office", "http://office?x=1", "http://office#x"]
)
def test_urls_need_an_address_that_trucks_reach(base: str) -> None:
    with pytest.raises(ConfigError):
        UrlSigner(b"k" * 32, base)


def test_urls_live_for_a_bounded_time() -> None:
    signer = UrlSigner(b"k" * 32, "http://office:8080/quarry/", clock=lambda: 1000.5)
    url = signer.url("ab" * 32, for_s=60)
    assert url.startswith(f"http://office:8080/quarry/files/{'ab' * 32}?expires=1061&sig=")
    for for_s in (0, -1, 7 * 24 * 3600 + 1, float("inf"), float("nan")):
        with pytest.raises(ValueError):
            signer.url("ab" * 32, for_s=for_s)
    for sha256 in ("", "AB" * 32, "../" + "a" * 61, "ab" * 32 + "\n"):
        with pytest.raises(ValueError):
            signer.url(sha256, for_s=60)
