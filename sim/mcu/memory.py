"""Where things are in an MCU's memory: sectors of the flash; bootloader, document, state and slot in them."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from functools import cached_property

KIB = 1024
F4_SECTORS = (16 * KIB,) * 4 + (64 * KIB,) + (128 * KIB,) * 3
"""Sectors of a 512 KiB STM32F4 (RM0090, table 5)."""
WORD_SIZES = (4, 8, 16, 32)


@dataclass(frozen=True, kw_only=True)
class Area:
    """Addresses from `start` up to, not including, `end`."""

    start: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.start

    def holds(self, start: int, size: int) -> bool:
        """Whether `size` (at least 1) bytes at `start` lie inside."""
        return size > 0 and self.start <= start and start + size <= self.end


@dataclass(frozen=True, kw_only=True)
class FlashMap:
    """Any flash: its sectors in order, and the bytes of a word, the smallest unit that is programmed.

    Words have 4, 8, 16 or 32 bytes and every sector has whole ones, else ValueError.
    """

    sectors: tuple[int, ...] = F4_SECTORS
    flash_start: int = 0x0800_0000
    word_bytes: int = 4

    def __post_init__(self) -> None:
        if self.word_bytes not in WORD_SIZES:
            raise ValueError(f"a flash word has 4, 8, 16 or 32 bytes, not {self.word_bytes}")
        if not self.sectors or any(size <= 0 or size % self.word_bytes for size in self.sectors):
            raise ValueError("a flash has sectors of whole words")

    @property
    def flash(self) -> Area:
        return Area(start=self.flash_start, end=self.flash_start + sum(self.sectors))

    @cached_property
    def _areas(self) -> tuple[Area, ...]:
        areas: list[Area] = []
        start = self.flash_start
        for size in self.sectors:
            areas.append(Area(start=start, end=start + size))
            start += size
        return tuple(areas)

    @cached_property
    def _starts(self) -> tuple[int, ...]:
        return tuple(area.start for area in self._areas)

    def sector_areas(self) -> tuple[Area, ...]:
        """Every sector, in order."""
        return self._areas

    def sectors_of(self, start: int, size: int) -> tuple[int, ...]:
        """Numbers of the sectors that these bytes touch."""
        first = max(0, bisect_right(self._starts, start) - 1)
        last = bisect_right(self._starts, start + size - 1)
        return tuple(number for number in range(first, last) if size > 0 and start < self._areas[number].end)

    def is_aligned(self, start: int, size: int) -> bool:
        """Whether these bytes are whole sectors."""
        touched = [self._areas[number] for number in self.sectors_of(start, size)]
        return bool(touched) and touched[0].start == start and touched[-1].end == start + size


@dataclass(frozen=True, kw_only=True)
class MemoryMap(FlashMap):
    """The map of one part and its bootloader; the defaults are those of the "stm32-uds" profile."""

    bootloader: Area = field(default=Area(start=0x0800_0000, end=0x0800_8000))
    document: Area = field(default=Area(start=0x0800_8000, end=0x0800_C000))
    state: Area = field(default=Area(start=0x0800_C000, end=0x0801_0000))
    slot: Area = field(default=Area(start=0x0801_0000, end=0x0808_0000))
    ram: Area = field(default=Area(start=0x2000_0000, end=0x2002_0000))


DEFAULT_MAP = MemoryMap()
