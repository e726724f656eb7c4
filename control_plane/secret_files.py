"""Secrets in files that only their owner can read: made once, whole or not at all, never overwritten.

A file is written under another name, synced, and then given its own name by link(2), which fails when
that name is taken. So a crash leaves no half secret, and of two processes one wins.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path

from shared.errors import ConfigError

MOST_SECRET_BYTES = 4096


def read_secret(path: Path) -> bytes | None:
    """The file's bytes; None when there is no file.

    Raises ConfigError when it is no plain file, too large, or open to others than its owner: such a
    secret may be known already.
    """
    try:
        # O_NONBLOCK: a FIFO in the file's place is refused, not waited for.
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}") from error
    try:
        facts = os.fstat(handle)
        if not stat.S_ISREG(facts.st_mode):
            raise ConfigError(f"{path} is no plain file")
        if facts.st_mode & 0o077:
            raise ConfigError(
                f"{path} can be read by others than its owner (mode {facts.st_mode & 0o777:04o})",
                advice="Delete it so that a new secret is made; or, if nobody saw it, chmod it to 0600.",
            )
        raw = os.read(handle, MOST_SECRET_BYTES + 1)
    finally:
        os.close(handle)
    if len(raw) > MOST_SECRET_BYTES:
        raise ConfigError(f"{path} has more than {MOST_SECRET_BYTES} bytes: that is no secret of ours")
    return raw


def create_secret(path: Path, secret: bytes, *, replace: bool = False) -> bool:
    """Make the file (0600) with `secret`, synced; False when there is one and `replace` is not set."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(secret)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            part.replace(path)
        else:
            os.link(part, path)
    except FileExistsError:
        return False
    finally:
        part.unlink(missing_ok=True)
    sync_folder(path.parent)
    return True


def read_or_create_secret(path: Path, make: Callable[[], bytes]) -> bytes:
    """The file's secret, made first when there is none. Raises ConfigError as `read_secret` does."""
    found = read_secret(path)
    if found is None:
        create_secret(path, make())
        found = read_secret(path)
        if found is None:
            raise ConfigError(f"{path} was taken away while it was made")
    return found


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable (fsync(2): a file's own sync does not cover its name)."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
