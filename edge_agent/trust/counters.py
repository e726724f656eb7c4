"""The highest release counter that each component ran, so that an old signed firmware stays out.

A small file of its own, outside the journal database: a journal that is damaged and begun anew must
not make old releases good again. Written whole, synced and renamed. A file that can't be read
refuses every new flash (CountersUnknown); an ECU whose flash has begun is finished all the same.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from edge_agent.errors import CountersUnknown, StoreFailed
from edge_agent.safe_files import read_bounded, write_whole
from shared.logs import get_log

log = get_log("edge_agent.counters")

MOST_FILE_BYTES = 64 * 1024


class Counters:
    """Open it with `await Counters.open(path)`; a missing file is a new truck."""

    def __init__(self, path: Path, highest: dict[str, int] | None) -> None:
        self._path = path
        self._highest = highest

    @classmethod
    async def open(cls, path: Path) -> Counters:
        """Read the file. Never raises: a damaged one makes every answer CountersUnknown."""
        try:
            raw = await asyncio.to_thread(read_bounded, path, MOST_FILE_BYTES)
            return cls(path, msgspec.json.decode(raw, type=dict[str, int]))
        except FileNotFoundError:
            return cls(path, {})
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, ValueError):
            log.exception("counters.unreadable", path=str(path))
            return cls(path, None)

    @property
    def known(self) -> dict[str, int]:
        """Every component's. Raises CountersUnknown."""
        if self._highest is None:
            raise CountersUnknown(f"{self._path.name} is damaged")
        return dict(self._highest)

    def highest(self, component: str) -> int:
        """The highest counter that the component ran, 0 when none is known. Raises CountersUnknown."""
        return self.known.get(component, 0)

    async def raise_to(self, component: str, counter: int) -> None:
        """Remember that the component ran a firmware of this counter; on the disk when it returns.

        Lower counters change nothing, and neither does anything while the file is damaged. Raises
        StoreFailed.
        """
        if self._highest is None or counter <= self._highest.get(component, 0):
            return
        grown = {**self._highest, component: counter}
        try:
            await asyncio.to_thread(write_whole, self._path, msgspec.json.encode(grown))
        except OSError as error:
            raise StoreFailed(f"{self._path.name} can't be written: {error}") from error
        self._highest = grown
