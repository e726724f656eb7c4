"""Where things are in the MCU's memory: STM32F4 sectors, bootloader, document, state, slot."""

from __future__ import annotations

from dataclasses import dataclass, field

KIB = 1024
WORD = 4
"""Bytes of a flash word: the smallest unit that is programmed."""
F4_SECTORS = (16 * KIB,) * 4 + (64 * KIB,) + (128 * KIB,) * 3
"""Sectors of a 512 KiB STM32F4 (RM0090, table 5)."""


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
class MemoryMap:
    """The map of one part and its bootloader; the defaults are those of the "stm32-uds" profile."""

    sectors: tuple[int, ...] = F4_SECTORS
    flash_start: int = 0x0800_0000
    bootloader: Area = field(default=Area(start=0x0800_0000, end=0x0800_8000))
    document: Area = field(default=Area(start=0x0800_8000, end=0x0800_C000))
    state: Area = field(default=Area(start=0x0800_C000, end=0x0801_0000))
    slot: Area = field(default=Area(start=0x0801_0000, end=0x0808_0000))
    ram: Area = field(default=Area(start=0x2000_0000, end=0x2002_0000))

    @property
    def flash(self) -> Area:
        return Area(start=self.flash_start, end=self.flash_start + sum(self.sectors))

    def sector_areas(self) -> tuple[Area, ...]:
        """Every sector, in order."""
        areas: list[Area] = []
        start = self.flash_start
        for size in self.sectors:
            areas.append(Area(start=start, end=start + size))
            start += size
        return tuple(areas)

    def sectors_of(self, start: int, size: int) -> tuple[int, ...]:
        """Numbers of the sectors that these bytes touch."""
        return tuple(
            number
            for number, area in enumerate(self.sector_areas())
            if area.start < start + size and start < area.end
        )

    def is_aligned(self, start: int, size: int) -> bool:
        """Whether these bytes are whole sectors."""
        areas = self.sector_areas()
        return any(a.start == start for a in areas) and any(a.end == start + size for a in areas)


DEFAULT_MAP = MemoryMap()
