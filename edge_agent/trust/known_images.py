"""Which firmware an image is, by its hash: an ECU says a hash, a manifest wants length and release counter.

`DATA/trust/known.json`, the newest 256 images that verified. Where it is damaged it begins anew: an image
that nobody knows has no release counter, and meets no release's requirement.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from pathlib import Path

import msgspec

from edge_agent.errors import StoreFailed
from edge_agent.safe_files import make_folder, write_whole
from edge_agent.threads import finish_in_thread
from edge_agent.trust.trust_store import read_sealed, sealed
from shared.logs import get_log
from shared.release import FirmwareSpec
from shared.trust.uptane.errors import StoreUnreadable

log = get_log("edge_agent.known_images")

MOST_KNOWN = 256
MOST_KNOWN_BYTES = 1024 * 1024


class KnownImages:
    """Open it with `await KnownImages.open(folder)`."""

    def __init__(self, path: Path, known: dict[str, FirmwareSpec]) -> None:
        self._path = path
        self._one = asyncio.Lock()
        self._known = known

    @classmethod
    async def open(cls, folder: Path) -> KnownImages:
        """Read the file in the trust folder. Never raises."""
        path = folder / "known.json"
        try:
            specs = await finish_in_thread(read_sealed, path, _decode, MOST_KNOWN_BYTES)
        except FileNotFoundError:
            specs = []
        except StoreUnreadable as error:
            log.warning("trust.known_images_lost", why=error.message)
            specs = []
        return cls(path, {one.sha256: one for one in specs})

    def spec_of(self, sha256: str | None) -> FirmwareSpec | None:
        """The firmware of this image, None when nobody knows it."""
        return None if sha256 is None else self._known.get(sha256)

    async def learn(self, specs: Collection[FirmwareSpec]) -> None:
        """These verified. Raises StoreFailed."""
        async with self._one:
            if all(self._known.get(one.sha256) == one for one in specs):
                return
            new = {one.sha256: one for one in specs}
            grown = [*(one for one in self._known.values() if one.sha256 not in new), *new.values()]
            grown = grown[-MOST_KNOWN:]
            try:
                await finish_in_thread(_write, self._path, sealed(msgspec.json.encode(grown)))
            except OSError as error:
                raise StoreFailed(f"{self._path} can't be written: {error}") from error
            self._known = {one.sha256: one for one in grown}


def _decode(raw: bytes) -> list[FirmwareSpec]:
    return msgspec.json.decode(raw, type=list[FirmwareSpec])


def _write(path: Path, raw: bytes) -> None:
    make_folder(path.parent)
    write_whole(path, raw)
