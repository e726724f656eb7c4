"""An image and its signed document from a local path or a USB drive, into the image folder.

The same trust as a download: what the provisioned keys signed, for this component, not over, not older than
what ran; and exactly those bytes, hashed as they lie on the gateway's own disk. The agent asks all of it
again before it flashes. Nothing is removed to make room: which kept images matter, the agent knows alone.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from edge_agent.errors import NoRoom
from edge_agent.safe_files import make_folder, sync_folder
from shared.release import FirmwareSpec
from shared.since_310 import file_digest
from shared.trust.document import WrongImage

CHUNK_BYTES = 256 * 1024
URL = "file:local"
"""Stands where a command has the image's address: it was brought by hand and can't be fetched."""


def free_bytes(folder: Path) -> int:
    """Bytes that this process may still write where `folder` is."""
    return shutil.disk_usage(folder).free


def place_image(
    source: BinaryIO,
    spec: FirmwareSpec,
    folder: Path,
    *,
    most_stored_bytes: int,
    margin_bytes: int,
    free: Callable[[Path], int] = free_bytes,
) -> Path:
    """Copy the image of `spec` to where a download would have left it; on the disk when this returns.

    Blocks. Raises NoRoom, WrongImage (nothing is left behind), OSError.
    """
    make_folder(folder)
    whole = folder / f"{spec.sha256}.bin"
    if _is(whole, spec):
        os.utime(whole)
        return whole
    _check_room(spec.length, folder, most_stored_bytes, margin_bytes, free)
    # A name of its own: the agent may be fetching the same image into the .part meanwhile.
    fresh = folder / f"{spec.sha256}.local.part"
    fresh.unlink(missing_ok=True)
    try:
        _copy(source, fresh, spec.length)
        if not _is(fresh, spec):
            raise WrongImage(  # noqa: TRY301
                f"the image is not the one that was signed (SHA-256 {spec.sha256})"
            )
        fresh.replace(whole)
        sync_folder(folder)
    except BaseException:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise
    return whole


def _copy(source: BinaryIO, fresh: Path, length: int) -> None:
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        done = 0
        while chunk := source.read(CHUNK_BYTES):
            done += len(chunk)
            if done > length:
                raise WrongImage(f"the image is longer than the {length} bytes that were signed")
            file.write(chunk)
        if done < length:
            raise WrongImage(f"the image has {done} bytes, {length} were signed")
        file.flush()
        os.fsync(file.fileno())


def _check_room(
    length: int, folder: Path, most_stored: int, margin: int, free: Callable[[Path], int]
) -> None:
    used = 0
    for path in folder.iterdir():
        with suppress(FileNotFoundError):
            used += path.stat().st_size
    if used + length > most_stored:
        raise NoRoom(
            f"images may take {most_stored} bytes and take {used}; this one has {length}",
            advice="Remove images in the data folder that no job needs, or raise downloads.most_stored_mib.",
        )
    if free(folder) < length + margin:
        raise NoRoom(f"{length} bytes are needed in {folder} beside {margin} that stay free")


def _is(path: Path, spec: FirmwareSpec) -> bool:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size != spec.length:
                return False
            return file_digest(file, "sha256").hexdigest() == spec.sha256
    except FileNotFoundError:
        return False
