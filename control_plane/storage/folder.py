"""`FirmwareFiles` in a folder: `DIR/<sha256>.bin`, synced before it gets its name.

Used by one office process. The bytes are hashed again while they are copied, so that a name never
stands over other bytes than its own, and a file that was damaged since is replaced by the next put.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from control_plane.errors import NotFound
from control_plane.secret_files import sync_folder
from control_plane.storage.base import StoreUnavailable, WrongBytes
from control_plane.storage.incoming import Incoming
from control_plane.storage.urls import UrlSigner

CHUNK_BYTES = 256 * 1024


class FolderFiles:
    """A folder of images, fetched by the URLs of `signer`."""

    def __init__(self, folder: Path, signer: UrlSigner) -> None:
        self._folder = folder
        self._signer = signer
        self.incoming = Incoming(folder / "incoming")

    async def prepare(self) -> None:
        """Make the folder, and sweep what an earlier process left half-done. Call it once, at start."""
        try:
            await asyncio.to_thread(self._folder.mkdir, 0o700, parents=True, exist_ok=True)
            await self.incoming.prepare()
        except OSError as error:
            raise StoreUnavailable(f"{self._folder} can't be used: {error.strerror}") from error

    def path(self, sha256: str) -> Path:
        """Where the image is, if it is here."""
        return self._folder / f"{sha256}.bin"

    async def put(self, sha256: str, source: Path) -> None:
        """Store a copy of `source`. Raises WrongBytes or StoreUnavailable."""
        if await self._holds(sha256):
            return
        async with self.incoming.file() as part:
            try:
                await asyncio.to_thread(_copy_synced, source, part, sha256)
                await asyncio.to_thread(self._name, part, sha256)
            except OSError as error:
                raise StoreUnavailable(f"the image can't be stored: {error.strerror}") from error

    async def exists(self, sha256: str) -> bool:
        """Whether there is a file of that name."""
        return self.path(sha256).is_file()

    @asynccontextmanager
    async def reading(self, sha256: str) -> AsyncIterator[Path]:
        """The file itself. Raises NotFound."""
        if not await self.exists(sha256):
            raise NotFound(f"the image {sha256[:80]} is not here", code="gone")
        yield self.path(sha256)

    def url(self, sha256: str, *, for_s: float) -> str:
        """A signed URL of this office's own `/files`."""
        return self._signer.url(sha256, for_s=for_s)

    async def remove(self, sha256: str) -> None:
        """Take a file out; whoever reads it at the moment reads on to its end."""

        def act() -> None:
            self.path(sha256).unlink(missing_ok=True)
            sync_folder(self._folder)

        try:
            await asyncio.to_thread(act)
        except OSError as error:
            raise StoreUnavailable(f"the image can't be removed: {error.strerror}") from error

    async def _holds(self, sha256: str) -> bool:
        try:
            return await asyncio.to_thread(_sha256_of, self.path(sha256)) == sha256
        except FileNotFoundError:
            return False
        except OSError as error:
            raise StoreUnavailable(f"the firmware folder can't be read: {error.strerror}") from error

    def _name(self, part: Path, sha256: str) -> None:
        part.replace(self.path(sha256))
        sync_folder(self._folder)


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _copy_synced(source: Path, target: Path, sha256: str) -> None:
    digest = hashlib.sha256()
    with source.open("rb") as reader, target.open("wb") as writer:
        while chunk := reader.read(CHUNK_BYTES):
            digest.update(chunk)
            writer.write(chunk)
        if digest.hexdigest() != sha256:
            raise WrongBytes(f"the file's SHA-256 is {digest.hexdigest()}, not {sha256}")
        writer.flush()
        os.fsync(writer.fileno())
