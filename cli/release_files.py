"""Files at the release desk: read within bounds, never overwritten."""

from __future__ import annotations

import os
from pathlib import Path

from shared.errors import OtaError

KEY_SECRET_VARIABLE = "QUARRY_KEY_PASSPHRASE"  # noqa: S105 -- the name of a variable


class FileTrouble(OtaError):
    """A file can't be read, or must not be written."""

    code = "file"
    advice = "Give another path."


def read_file(path: Path, most_bytes: int) -> bytes:
    """The whole of a file of at most so many bytes. Raises FileTrouble."""
    try:
        if path.stat().st_size > most_bytes:
            raise FileTrouble(f"{path} has {path.stat().st_size} bytes, at most {most_bytes} are taken")
        return path.read_bytes()
    except OSError as error:
        raise FileTrouble(f"{path} can't be read: {error.strerror}") from error


def write_new(path: Path, data: bytes, *, mode: int) -> None:
    """Write a file that must not be there yet. Raises FileTrouble."""
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(data)
    except FileExistsError as error:
        raise FileTrouble(f"{path} is there already and is not overwritten") from error
    except OSError as error:
        raise FileTrouble(f"{path} can't be written: {error.strerror}") from error
