"""What of an image has to go over the bus: pure arithmetic on bytes and sectors.

Flash that is erased reads 0xFF, so long stretches of it need not be sent; each further RequestDownload
costs about ten frames and two turnarounds of the ECU. What is left may be compressed.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass

from firmware_flashers.base import MemoryRange

ERASED = 0xFF
WINDOW_BITS = 12
"""Raw deflate (RFC 1951) in a window of 4 KiB, which a small part can keep in RAM."""
LEVEL, MEMORY_LEVEL = 9, 9
_NOT_ERASED = re.compile(rb"[^\xff]")


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Consecutive sectors that are erased and written together; `data` begins at the first one's start.

    `data` may end before the last sector does.
    """

    sectors: tuple[MemoryRange, ...]
    data: bytes

    @property
    def start(self) -> int:
        """The address of the first byte."""
        return self.sectors[0].start

    def rest(self, done_bytes: int) -> Stretch:
        """What is left when `done_bytes` surely arrived: from the sector on that holds the next one."""
        for number, sector in enumerate(self.sectors):
            if done_bytes < sector.end - self.start:
                return Stretch(sectors=self.sectors[number:], data=self.data[sector.start - self.start :])
        return Stretch(sectors=self.sectors[-1:], data=self.data[self.sectors[-1].start - self.start :])


@dataclass(frozen=True, kw_only=True)
class Run:
    """Bytes of one download: `offset` into a stretch's data."""

    offset: int
    data: bytes


def stretches(sectors: list[MemoryRange], wanted: list[MemoryRange], data: bytes) -> list[Stretch]:
    """The `wanted` of all `sectors` (in ascending order), neighbours put together.

    `data` begins at the first sector's start and goes up to somewhere in the last one.
    """
    if not sectors:
        return []
    base = sectors[0].start
    groups: list[list[MemoryRange]] = []
    for one in wanted:
        if groups and groups[-1][-1].end == one.start:
            groups[-1].append(one)
        else:
            groups.append([one])
    return [
        Stretch(sectors=tuple(group), data=data[group[0].start - base : group[-1].end - base])
        for group in groups
    ]


def together(sectors: tuple[MemoryRange, ...], most_bytes: int) -> list[MemoryRange]:
    """Neighbouring sectors as ranges of up to `most_bytes`, or of one sector that is larger."""
    found: list[MemoryRange] = []
    for one in sectors:
        if found and found[-1].end == one.start and one.end - found[-1].start <= most_bytes:
            found[-1] = MemoryRange(start=found[-1].start, end=one.end)
        else:
            found.append(one)
    return found


def runs(data: bytes, *, word_bytes: int, erased_run_bytes: int) -> list[Run]:
    """What must be sent of erased flash's new content: whole words, long stretches of 0xFF left out.

    `data` has whole words. `erased_run_bytes` 0 sends all.
    """
    if not erased_run_bytes:
        return [Run(offset=0, data=data)] if data else []
    found: list[Run] = []
    gap = bytes([ERASED]) * max(erased_run_bytes, word_bytes)
    at = seen = 0
    while (start := data.find(gap, seen)) >= 0:
        other = _NOT_ERASED.search(data, start + len(gap))
        seen = len(data) if other is None else other.start()
        end, after = -(-start // word_bytes) * word_bytes, seen // word_bytes * word_bytes
        if after <= end:
            continue
        if end > at:
            found.append(Run(offset=at, data=data[at:end]))
        at = after
    if at < len(data):
        found.append(Run(offset=at, data=data[at:]))
    return found


def deflated(data: bytes) -> bytes | None:
    """The data compressed, or None when that makes it no smaller."""
    packer = zlib.compressobj(LEVEL, zlib.DEFLATED, -WINDOW_BITS, MEMORY_LEVEL)
    packed = packer.compress(data) + packer.flush()
    return packed if len(packed) < len(data) else None
