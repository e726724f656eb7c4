"""The image folder's files: how a part is judged, grows, and becomes an image; who makes room for it.

Blocking functions, for a thread. `<sha256>.part` grows, `<sha256>.bin` is whole, its hash is right and it
is safe on the disk. `bases.json` names the image that each component runs: a delta may need it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import BinaryIO

import msgspec

from edge_agent.errors import NoRoom
from shared.delta import DeltaBroken, apply_delta
from shared.logs import get_log
from shared.since_310 import StrEnum, file_digest

log = get_log("edge_agent.image_folder")

MOST_BASES = 64
BASES = "bases.json"


class Part(StrEnum):
    """What lies on the disk of an image."""

    ABSENT = "absent"
    SHORT = "short"  # may be continued
    TOO_LONG = "too_long"
    WRONG = "wrong"  # the length is right, the hash is not
    GOOD = "good"


@dataclass(frozen=True, kw_only=True)
class Found:
    """A file judged: `size` in bytes; `sha256` of its content when its length is right."""

    part: Part
    size: int = 0
    sha256: str = ""


def judge(path: Path, *, sha256: str, length: int) -> Found:
    """Look at a file that should become the image; blocks while it reads."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != length:
                return Found(part=Part.SHORT if size < length else Part.TOO_LONG, size=size)
            digest = file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return Found(part=Part.ABSENT)
    return Found(part=Part.GOOD if digest == sha256 else Part.WRONG, size=size, sha256=digest)


def size_of(path: Path) -> int:
    """Bytes of a file, 0 when there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def free_bytes(folder: Path) -> int:
    """Bytes that this process may still write where `folder` is."""
    return shutil.disk_usage(folder).free


@dataclass(frozen=True, kw_only=True)
class Room:
    """Bounds of the folder in bytes; `free` is there so that tests can make disks full."""

    most_stored: int
    margin: int
    free: Callable[[Path], int]


def make_room(folder: Path, room: Room, missing: int, keep: Collection[str]) -> None:
    """Remove the oldest images that nobody needs until `missing` more bytes fit. Raises NoRoom.

    Images that components run go last: they spare whole downloads, and no more.
    """
    bases = set(read_bases(folder).values())
    stored = []
    for path in folder.iterdir():
        if path.suffix in (".bin", ".part", ".doubt", ".made"):
            stat = path.stat()
            stored.append((path.stem in bases, stat.st_mtime, path, stat.st_size))
    used = sum(size for _, _, _, size in stored)
    unneeded = sorted(one for one in stored if one[2].stem not in keep)

    def fits() -> bool:
        return used + missing <= room.most_stored and room.free(folder) >= missing + room.margin

    while not fits() and unneeded:
        _, _, path, size = unneeded.pop(0)
        path.unlink()
        used -= size
        log.info("download.image_removed", file=path.name, bytes=size)
    if not fits():
        raise NoRoom(
            f"{missing} more bytes are needed in {folder} beside {room.margin} that stay free; "
            f"{room.free(folder)} are free, images may take {room.most_stored}, they take {used}"
        )


def open_part(part: Path, at: int) -> FileIO:
    """The part, open for writing from byte `at`; what lies behind is cut off. Unbuffered."""
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    file = FileIO(descriptor, "wb")
    file.truncate(at)
    file.seek(at)
    return file


def write_all(file: FileIO, chunk: bytes) -> None:
    """Write the whole chunk, or raise OSError."""
    view = memoryview(chunk)
    while view:
        view = view[file.write(view) :]


def drop(*paths: Path) -> None:
    """Remove what is there of these."""
    for path in paths:
        path.unlink(missing_ok=True)


def settle(part: Path, whole: Path, *leftovers: Path) -> None:
    """Give the part its final name, so that a power cut leaves either name with all its bytes."""
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(whole)
    drop(*leftovers)
    _sync_folder(whole.parent)


def build(base: Path, delta: Path, made: Path, *, sha256: str, length: int) -> None:
    """Make the image out of a base and a delta into `made`. Raises DeltaBroken, and leaves nothing then."""
    try:
        with base.open("rb") as old, delta.open("rb") as difference:
            file = open_part(made, 0)
            try:
                for chunk in apply_delta(old, difference, length=length):
                    write_all(file, chunk)
            finally:
                file.close()
    except BaseException:
        drop(made)
        raise
    found = judge(made, sha256=sha256, length=length)
    if found.part is not Part.GOOD:
        drop(made)
        raise DeltaBroken(f"the delta makes an image that is {found.part}, of {found.size} bytes")


def copy_in(file: BinaryIO, part: Path, *, length: int) -> None:
    """Copy `length` bytes, no more, of an open file."""
    out = open_part(part, 0)
    try:
        left = length
        while left:
            chunk = file.read(min(left, 256 * 1024))
            if not chunk:
                return
            write_all(out, chunk)
            left -= len(chunk)
    finally:
        out.close()


def read_bases(folder: Path) -> dict[str, str]:
    """The hash of the image that each component runs, as far as it is known; never raises."""
    try:
        return msgspec.json.decode((folder / BASES).read_bytes(), type=dict[str, str])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return {}


def note_base(folder: Path, component: str, sha256: str) -> None:
    """The component runs this image now. Not synced: what it is lost for is one larger download."""
    bases = read_bases(folder)
    if bases.get(component) == sha256:
        return
    bases.pop(component, None)
    bases = dict([*bases.items(), (component, sha256)][-MOST_BASES:])
    fresh = folder / f"{BASES}.new"
    fresh.write_bytes(msgspec.json.encode(bases))
    fresh.replace(folder / BASES)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
