"""What every FirmwareFiles promises. A second implementation joins by one more line in STORES."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from control_plane.errors import NotFound
from control_plane.storage.base import MOST_URL_LIFE_S, FirmwareFiles, WrongBytes
from control_plane.storage.folder import FolderFiles
from control_plane.storage.urls import UrlSigner


async def _folder(tmp_path: Path) -> FirmwareFiles:
    files = FolderFiles(tmp_path / "store", UrlSigner(b"k" * 32, "http://office"))
    await files.prepare()
    return files


STORES: dict[str, Callable[[Path], Awaitable[FirmwareFiles]]] = {"folder": _folder}


@pytest.fixture(params=STORES)
async def files(request: pytest.FixtureRequest, tmp_path: Path) -> FirmwareFiles:
    return await STORES[request.param](tmp_path)


def _source(tmp_path: Path, content: bytes) -> tuple[str, Path]:
    path = tmp_path / f"source-{len(content)}"
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest(), path


async def test_what_was_put_is_there_until_it_is_removed(files: FirmwareFiles, tmp_path: Path) -> None:
    sha256, source = _source(tmp_path, b"image")
    assert not await files.exists(sha256)
    await files.put(sha256, source)
    assert await files.exists(sha256)
    assert source.read_bytes() == b"image", "the source is left alone"
    await files.put(sha256, source)
    await files.remove(sha256)
    assert not await files.exists(sha256)
    await files.remove(sha256)


async def test_what_was_put_can_be_read_here(files: FirmwareFiles, tmp_path: Path) -> None:
    sha256, source = _source(tmp_path, b"image")
    with pytest.raises(NotFound) as refused:
        async with files.reading(sha256):
            pass
    assert refused.value.code == "gone"
    await files.put(sha256, source)
    async with files.reading(sha256) as path:
        assert path.read_bytes() == b"image"


async def test_other_bytes_than_the_name_says_are_refused(files: FirmwareFiles, tmp_path: Path) -> None:
    _, source = _source(tmp_path, b"image")
    wrong = hashlib.sha256(b"other").hexdigest()
    with pytest.raises(WrongBytes):
        await files.put(wrong, source)
    assert not await files.exists(wrong)


async def test_put_at_once_by_many(files: FirmwareFiles, tmp_path: Path) -> None:
    sha256, source = _source(tmp_path, b"x" * 1_000_000)
    await asyncio.gather(*(files.put(sha256, source) for _ in range(8)))
    assert await files.exists(sha256)


async def test_a_url_is_absolute_and_bounded(files: FirmwareFiles) -> None:
    sha256 = hashlib.sha256(b"image").hexdigest()
    assert files.url(sha256, for_s=60).startswith("http")
    assert sha256 in files.url(sha256, for_s=60)
    for for_s in (0, -1, MOST_URL_LIFE_S + 1):
        with pytest.raises(ValueError):
            files.url(sha256, for_s=for_s)
