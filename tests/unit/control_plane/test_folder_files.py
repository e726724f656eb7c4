"""The folder of images when things go wrong: crashes, full disks, damaged files."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import pytest

from control_plane.storage import folder as folder_module
from control_plane.storage.base import StoreUnavailable
from control_plane.storage.folder import FolderFiles
from control_plane.storage.urls import UrlSigner

IMAGE = b"image" * 1000
SHA256 = hashlib.sha256(IMAGE).hexdigest()


@pytest.fixture
async def files(tmp_path: Path) -> FolderFiles:
    files = FolderFiles(tmp_path / "store", UrlSigner(b"k" * 32, "http://office"))
    await files.prepare()
    return files


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(IMAGE)
    return path


async def test_what_a_crash_left_half_done_is_swept_at_start(files: FolderFiles, source: Path) -> None:
    await files.put(SHA256, source)
    (files.incoming.folder / "0123.part").write_bytes(b"half")
    (files.incoming.folder / "sub").mkdir()
    await files.prepare()
    assert [one.name for one in files.incoming.folder.iterdir()] == ["sub"], "only files of ours are swept"
    assert await files.exists(SHA256)


async def test_it_is_synced_before_it_has_its_name(
    files: FolderFiles, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def watched_fsync(handle: int) -> None:
        kind = "folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file"
        steps.append(f"sync {kind}")
        fsync(handle)

    def watched_replace(self: Path, target: Path) -> Path:
        steps.append("name")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(Path, "replace", watched_replace)
    await files.put(SHA256, source)
    assert steps == ["sync file", "name", "sync folder"]


async def test_a_full_disk_leaves_nothing(
    files: FolderFiles, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(folder_module, "_copy_synced", full)
        with pytest.raises(StoreUnavailable, match="No space left"):
            await files.put(SHA256, source)
    assert not await files.exists(SHA256)
    assert [one.name for one in files.incoming.folder.iterdir()] == []
    await files.put(SHA256, source)
    assert files.path(SHA256).read_bytes() == IMAGE


async def test_a_damaged_file_is_replaced_by_the_next_put(files: FolderFiles, source: Path) -> None:
    await files.put(SHA256, source)
    for damaged in (b"", IMAGE[:-1], b"X" + IMAGE[1:]):
        files.path(SHA256).write_bytes(damaged)
        await files.put(SHA256, source)
        assert files.path(SHA256).read_bytes() == IMAGE


async def test_folders_are_private(files: FolderFiles) -> None:
    for folder in (files.incoming.folder, files.incoming.folder.parent):
        assert folder.stat().st_mode & 0o077 == 0


async def test_a_folder_that_is_away_is_an_outage(files: FolderFiles, source: Path) -> None:
    files.incoming.folder.rmdir()
    with pytest.raises(StoreUnavailable):
        await files.put(SHA256, source)
