"""Where things are in an ECU's memory, as its bootloader addresses them. Values only, all checked."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

from firmware_flashers.base import MemoryRange
from shared.errors import ConfigError
from shared.images.stm32 import Stm32Layout

KIB = 1024
MOST_SECTORS = 65_536
WORDS = frozenset({1, 2, 4, 8, 16, 32})

_BOOTLOADER = MemoryRange(start=0x0800_0000, end=0x0800_8000)
_DOCUMENT = MemoryRange(start=0x0800_8000, end=0x0800_C000)
_SLOT = MemoryRange(start=0x0801_0000, end=0x0808_0000)
_RAM = MemoryRange(start=0x2000_0000, end=0x2002_0000)


@dataclass(frozen=True, kw_only=True)
class MemoryMap:
    """Flash as the bootloader sees it. Ranges end one past their last byte.

    `sectors` are the sizes of the erasable sectors from `flash_start` on. `document` is where the
    signed document lies that the bootloader checks before every boot (None: it knows of none), `slot`
    the application. Where an ECU has two slots and names the passive one itself, `slot` is the range
    that both and their documents lie in, and `document` is None. `bootloader` is what is never
    erased (None: the ECU's memory holds nothing of the kind).
    """

    flash_start: int = 0x0800_0000
    sectors: tuple[int, ...] = (*[16 * KIB] * 4, 64 * KIB, *[128 * KIB] * 3)
    bootloader: MemoryRange | None = _BOOTLOADER
    document: MemoryRange | None = _DOCUMENT
    slot: MemoryRange = _SLOT
    ram: MemoryRange = _RAM
    word_bytes: int = 4

    def __post_init__(self) -> None:
        """Raises ConfigError that names the key."""
        if self.word_bytes not in WORDS:
            raise ConfigError(f"profile.memory.word_bytes is {self.word_bytes!r}, not one of 1 to 32")
        sizes = self.sectors
        if (
            not isinstance(sizes, tuple)
            or not 0 < len(sizes) <= MOST_SECTORS
            or any(not isinstance(s, int) or s <= 0 for s in sizes)
        ):
            raise ConfigError("profile.memory.sectors is not a list of sizes in bytes")
        if not isinstance(self.flash_start, int) or not 0 <= self.flash_start < 2**32:
            raise ConfigError(f"profile.memory.flash_start is {self.flash_start!r}, not an address")
        for name in ("bootloader", "document", "slot", "ram"):
            one = getattr(self, name)
            if not isinstance(one, MemoryRange) and not (one is None and name in {"bootloader", "document"}):
                raise ConfigError(f"profile.memory.{name} is not [start, end]")
        named = {
            name: one
            for name in ("bootloader", "document", "slot")
            if (one := getattr(self, name)) is not None
        }
        for name, one in named.items():
            if one.start >= one.end or not {one.start, one.end} <= set(self._edges):
                raise ConfigError(
                    f"profile.memory.{name} {one.start:#010x}..{one.end:#010x} is not made of whole sectors"
                )
        if not 0 <= self.ram.start < self.ram.end <= 2**32:
            raise ConfigError("profile.memory.ram is not a range")
        for first, second in (("bootloader", "document"), ("bootloader", "slot"), ("document", "slot")):
            if first in named and second in named and overlaps(named[first], named[second]):
                raise ConfigError(f"profile.memory.{second} overlaps profile.memory.{first}")

    @cached_property
    def _edges(self) -> tuple[int, ...]:
        return tuple(accumulate((self.flash_start, *self.sectors)))

    @cached_property
    def _whole(self) -> tuple[MemoryRange, ...]:
        return tuple(MemoryRange(start=a, end=b) for a, b in pairwise(self._edges))

    def sectors_of(self, area: MemoryRange, length: int) -> list[MemoryRange]:
        """The sectors that the first `length` bytes of `area` lie in, in ascending order."""
        end = min(area.start + length, area.end)
        first = bisect_right(self._edges, area.start) - 1
        found = []
        for one in self._whole[max(0, first) :]:
            if one.start >= end:
                break
            if one.start >= area.start:
                found.append(one)
        return found

    def is_whole_sectors(self, area: MemoryRange) -> bool:
        """Whether `area` begins and ends at sectors' edges."""
        return area.start < area.end and {area.start, area.end} <= set(self._edges)

    @property
    def layout(self) -> Stm32Layout:
        """What the judge of STM32 images needs."""
        return Stm32Layout(
            slot_start=self.slot.start,
            slot_end=self.slot.end,
            ram_start=self.ram.start,
            ram_end=self.ram.end,
        )


def overlaps(a: MemoryRange, b: MemoryRange) -> bool:
    """Whether two ranges share a byte."""
    return a.start < b.end and b.start < a.end


def holds(outer: MemoryRange, inner: MemoryRange) -> bool:
    """Whether `inner` lies in `outer`."""
    return outer.start <= inner.start < inner.end <= outer.end
