"""A published folder as a stream: an uncompressed tar (POSIX.1-2001 pax), made while it is sent.

Nothing is packed into a file first, and its size is known beforehand.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cli.release_files import FileTrouble

CHUNK_BYTES = 256 * 1024


@dataclass(frozen=True, kw_only=True)
class Member:
    """A file by its name in the tar; `size` is in bytes."""

    name: str
    path: Path
    size: int

    def header(self) -> bytes:
        """What stands before its bytes; names of two hashes are too long for a plain header."""
        info = tarfile.TarInfo(self.name)
        info.size = self.size
        info.mode = 0o644
        return info.tobuf(format=tarfile.PAX_FORMAT)


def members_of(folder: Path, names: Sequence[str]) -> list[Member]:
    """The files of these names below a folder. Raises FileTrouble."""
    try:
        return [Member(name=one, path=folder / one, size=(folder / one).stat().st_size) for one in names]
    except OSError as error:
        raise FileTrouble(f"{error.filename} can't be read: {error.strerror}") from error


def size_of(members: Sequence[Member]) -> int:
    """The size of the tar in bytes."""
    whole = sum(len(one.header()) + one.size + _padding(one.size) for one in members)
    return whole + 2 * tarfile.BLOCKSIZE


def stream(members: Sequence[Member]) -> Iterator[bytes]:
    """The tar in pieces. Raises FileTrouble, also for a file whose size has changed meanwhile."""
    for one in members:
        yield one.header()
        sent = 0
        try:
            with one.path.open("rb") as file:
                while chunk := file.read(min(CHUNK_BYTES, one.size - sent) or 1):
                    sent += len(chunk)
                    if sent > one.size:
                        break
                    yield chunk
        except OSError as error:
            raise FileTrouble(f"{one.path} can't be read: {error.strerror}") from error
        if sent != one.size:
            raise FileTrouble(f"{one.path} changed while it was sent", advice="Upload it again.")
        yield bytes(_padding(one.size))
    yield bytes(2 * tarfile.BLOCKSIZE)


def _padding(size: int) -> int:
    return -size % tarfile.BLOCKSIZE
