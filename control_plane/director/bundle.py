"""The published folder of an image repository as a tar: received in bounded memory, opened with suspicion.

A name is looked up in the tar as the repository serves it (`timestamp.json`, `3.targets.json`,
`targets/FOLDER/HASH.FILE`); nothing is ever unpacked under a name that the tar chose.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Self

from control_plane.errors import Invalid

MOST_BUNDLE_BYTES = 1024 * 1024 * 1024
MOST_MEMBERS = 20_000
MOST_HEADER_BYTES = 64 * 1024
PLAIN_TYPES = frozenset({tarfile.REGTYPE, tarfile.AREGTYPE})
CHUNK_BYTES = 256 * 1024


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """An opened tar. Its members are regular files by their served names."""

    tar: tarfile.TarFile
    members: dict[str, tarfile.TarInfo]

    def read(self, name: str, most: int) -> bytes | None:
        """A member's first `most` bytes and one more, which shows that there was more; None without it."""
        member = self.members.get(name)
        if member is None:
            return None
        with self._open(member) as file:
            return file.read(most + 1)

    def size(self, name: str) -> int | None:
        """A member's bytes; None when it is not there."""
        member = self.members.get(name)
        return None if member is None else member.size

    def extract(self, name: str, target: Path) -> str:
        """Copy a member's bytes to `target`; returns their SHA-256 in hex. The name must be there."""
        digest = hashlib.sha256()
        with self._open(self.members[name]) as file, target.open("wb") as writer:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
                writer.write(chunk)
        return digest.hexdigest()

    @contextmanager
    def _open(self, member: tarfile.TarInfo) -> Iterator[IO[bytes]]:
        try:
            file = self.tar.extractfile(member)
            assert file is not None
            with file:
                yield file
        except (tarfile.TarError, EOFError) as error:
            raise Invalid(f"the tar can't be read: {error}") from error


class _Member(tarfile.TarInfo):
    """Refuses headers with long content, which the library would read whole into memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        found = super().frombuf(buf, encoding, errors)
        if found.type not in PLAIN_TYPES and found.size > MOST_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {found.size} bytes, at most {MOST_HEADER_BYTES} are read")
        return found


@contextmanager
def opened(path: Path) -> Iterator[Bundle]:
    """Open an uncompressed tar. Raises Invalid for anything but plain files with plain names.

    Names may begin with `./`; a folder that holds them all (`public/`) is taken off.
    """
    try:
        with path.open("rb") as raw, tarfile.open(fileobj=raw, mode="r:", tarinfo=_Member) as tar:
            yield Bundle(tar=tar, members=_members(tar))
    except (tarfile.TarError, EOFError, UnicodeError) as error:
        raise Invalid(
            f"the bundle is no tar: {error}", advice="Pack the published folder: tar -C FOLDER/public -cf - ."
        ) from error


def _members(tar: tarfile.TarFile) -> dict[str, tarfile.TarInfo]:
    found: dict[str, tarfile.TarInfo] = {}
    for count, member in enumerate(tar, start=1):
        if count > MOST_MEMBERS:
            raise Invalid(f"the bundle has more than {MOST_MEMBERS} members")
        if member.isdir():
            continue
        path = PurePosixPath(member.name)
        if not member.isreg() or member.sparse is not None or path.is_absolute() or ".." in path.parts:
            raise Invalid(f"{member.name[:200]!r} in the bundle is no plain file with a plain name")
        if str(path) in found:
            raise Invalid(f"{member.name[:200]!r} is in the bundle twice")
        found[str(path)] = member
    if "timestamp.json" not in found and "public/timestamp.json" in found:
        return {
            name.removeprefix("public/"): one for name, one in found.items() if name.startswith("public/")
        }
    return found
