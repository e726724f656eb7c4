"""What every firmware store promises, be it a folder or S3.

A file is named by the SHA-256 of its bytes and never changes. `put` returns when it is durable. A
URL opens one file for a while, for whoever holds it.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

from control_plane.errors import OfficeError, Unavailable

MOST_URL_LIFE_S = 7 * 24 * 3600.0
"""The longest life of a signed URL (S3's own bound for presigned ones)."""


class StoreUnavailable(Unavailable):
    """The firmware store can't be read or written at the moment."""

    code = "store_unavailable"
    advice = "Look at the space and the rights of the firmware folder, then try again."


class WrongBytes(OfficeError):
    """The bytes are not the ones that their name says."""

    status = 422
    code = "wrong_bytes"
    advice = "Send the file again."


class FirmwareFiles(Protocol):
    """A store of firmware images."""

    async def put(self, sha256: str, source: Path) -> None:
        """Store a copy of `source`, durably; at once done when the store has these bytes already.

        Raises WrongBytes when its SHA-256 is another, or StoreUnavailable. Nothing half-written is
        ever seen under the name.
        """
        ...

    async def exists(self, sha256: str) -> bool:
        """Whether there is a file of that name. Raises StoreUnavailable."""
        ...

    def reading(self, sha256: str) -> AbstractAsyncContextManager[Path]:
        """A file of this machine that holds the bytes while one is inside; it is not to be changed.

        Raises NotFound (`gone`) or StoreUnavailable.
        """
        ...

    def url(self, sha256: str, *, for_s: float) -> str:
        """An absolute URL that gives the file for so many seconds (at most MOST_URL_LIFE_S), no longer."""
        ...

    async def remove(self, sha256: str) -> None:
        """Take a file out; nothing happens when there is none. Raises StoreUnavailable."""
        ...
