"""A folder for files that are still on their way in; whatever a crash left there is swept at start."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from control_plane.storage.base import StoreUnavailable
from shared.logs import get_log

log = get_log("control_plane.storage")


class Incoming:
    """Hands out names of temporary files; each is gone when its user is done with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def prepare(self) -> None:
        """Make the folder (0700) and sweep it. Nothing may be on its way in yet."""
        swept = await asyncio.to_thread(self._sweep)
        if swept:
            log.warning("storage.orphans_swept", files=swept)

    def _sweep(self) -> int:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        swept = 0
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.is_file(follow_symlinks=False):
                    Path(entry.path).unlink(missing_ok=True)
                    swept += 1
        return swept

    @asynccontextmanager
    async def file(self) -> AsyncIterator[Path]:
        """The name of an empty file (0600) of the caller's own; deleted at the end if still there."""
        path = self.folder / f"{secrets.token_hex(16)}.part"
        try:
            await asyncio.to_thread(path.touch, 0o600, exist_ok=False)
        except OSError as error:
            raise StoreUnavailable(f"no file can be made in the firmware folder: {error.strerror}") from error
        try:
            yield path
        finally:
            # Unlinking is quick and must also happen while the task is being cancelled.
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
