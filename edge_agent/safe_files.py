"""Small files of the data folder: replaced whole and safe on the disk, by the folder's own user.

A program that root starts (sudo quarry-agent ...) must not leave files behind that the agent, which is
another user, can't open: `act_as_owner` gives root's rights up for good, before the first of them is made.
"""

from __future__ import annotations

import os
from pathlib import Path

from shared.errors import ConfigError


def write_whole(path: Path, raw: bytes, *, mode: int = 0o600) -> None:
    """Replace a file in one step; when this returns, a power cut leaves the new one. Blocks. OSError."""
    fresh = path.with_name(f".{path.name}.part")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    sync_folder(path.parent)


def make_folder(folder: Path) -> None:
    """A private folder that is there, its own name safe on the disk, when this returns. Blocks. OSError."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Also when it was there: a start that was cut may have made it and not come this far.
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Names that were given or taken in a folder are safe when this returns. Blocks. OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_bounded(path: Path, most_bytes: int) -> bytes:
    """A file's content, which must be that small. Blocks. OSError; ValueError when it is larger."""
    with path.open("rb") as file:
        raw = file.read(most_bytes + 1)
    if len(raw) > most_bytes:
        raise ValueError(f"{path.name} is over {most_bytes} bytes")
    return raw


def act_as_owner(folder: Path) -> None:
    """Where root works on another user's data folder, become that user. Raises ConfigError."""
    if os.geteuid() != 0:
        return
    try:
        owner = folder.stat()
    except OSError:
        return
    if owner.st_uid == 0:
        return
    try:
        os.setgroups([owner.st_gid])
        os.setgid(owner.st_gid)
        os.setuid(owner.st_uid)
    except OSError as error:
        raise ConfigError(
            f"{folder} belongs to user {owner.st_uid}, and nobody else can work in it: {error.strerror}",
            advice="Run it as that user.",
        ) from error
