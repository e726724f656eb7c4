"""Reads files that hold secrets: only regular ones that nobody but their owner can open, and bounded."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from shared.errors import ConfigError

MOST_BYTES = 16 * 1024


def read_private(key: str, path: Path) -> bytes:
    """The content, up to MOST_BYTES of it. Raises ConfigError naming `key`, never the content."""
    where = f"{key} {path}"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise ConfigError(f"{where} can't be read: {error.strerror or error}") from error
    try:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise ConfigError(f"{where} is no regular file")
        if about.st_mode & 0o077:
            raise ConfigError(
                f"{where} can be opened by others (mode {stat.S_IMODE(about.st_mode):04o})",
                advice=f"Give it to its owner alone: chmod 600 {path}",
            )
        return os.read(descriptor, MOST_BYTES)
    finally:
        os.close(descriptor)
