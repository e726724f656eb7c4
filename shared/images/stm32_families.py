"""Flash, RAM and protected areas of the STM32 families that can sit on a truck's CAN bus.

Sources, per column:
- product ids, what the ROM loader speaks, the RAM that it keeps for itself and the system memory: ST AN2606
  "STM32 microcontroller system memory boot mode", tables 3 (embedded bootloaders) and 226 (device-dependent
  parameters). `rom` is what those tables list, which is less than is often said: the loaders of F04x, F07x,
  F09x (USART, I2C, USB) and of all G4 (USART, I2C, SPI, USB) have no CAN; of the G0Bx only G0B1/G0C1 have.
- sectors: the reference manuals RM0008, RM0033, RM0090, RM0351, RM0385, RM0386, RM0390, RM0394, RM0402,
  RM0410, RM0430, RM0431, RM0432, RM0433, RM0438, RM0440, RM0444, RM0455, RM0456, RM0468, RM0481, RM0492;
  page and flash sizes, flash words and OTP agree with OpenOCD's stm32l4x.c, stm32h7x.c and stm32f2x.c.
- RAM: the same manuals; sizes agree with libopencm3's ld/devices.data where it has the part.
- option bytes: stm32flash's dev_table.c, stm32loader's devices.py. H7, H5, L5, U5 keep theirs in registers.

A family is given as its largest part: a smaller one has the first of these sectors (with two banks, the first
of each; its manual says where), so a profile's slot bounds what is used. RAM is what a stack can
lie in from reset on; ITCM and backup RAM are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Literal, NamedTuple

RomKind = Literal["bxcan", "fdcan"]
KIB = 1024
FLASH_START = 0x0800_0000


@dataclass(frozen=True, kw_only=True)
class MemorySpan:
    """Addresses from `start` up to, not including, `end`."""

    start: int
    end: int

    def __post_init__(self) -> None:
        """Raises ValueError for what is no range of 32-bit addresses."""
        if not 0 <= self.start < self.end <= 2**32:
            raise ValueError(f"{self.start:#010x}..{self.end:#010x} is not a range of 32-bit addresses")

    @property
    def size(self) -> int:
        """Bytes in the span."""
        return self.end - self.start

    def __contains__(self, address: object) -> bool:
        return isinstance(address, int) and self.start <= address < self.end

    def overlaps(self, start: int, end: int) -> bool:
        """Whether start..end (end not included) has a byte in common with the span."""
        return start < self.end and self.start < end


@dataclass(frozen=True, kw_only=True)
class Family:
    """One row of the table; `parts` is what it is called on the chips.

    `sectors` are sizes in bytes in the order of their numbers, from `flash_start` on without gaps.
    `word_bytes` is the least that is programmed at once and what a write is aligned and padded to
    (F0 and F1 program half-words, but their loader takes multiples of 4: AN3154, 3.6).
    `rom_ram_reserved` is RAM that the ROM loader refuses to read, write or start from: it lives there.
    `never_erased` are system memory, OTP and option bytes.
    """

    name: str
    parts: str
    product_id: int
    rom: RomKind | None
    flash_start: int
    sectors: tuple[int, ...]
    word_bytes: int
    ram: tuple[MemorySpan, ...]
    rom_ram_reserved: tuple[MemorySpan, ...]
    never_erased: tuple[MemorySpan, ...]

    @cached_property
    def sector_starts(self) -> tuple[int, ...]:
        """Address of each sector, and as the last item the end of the flash."""
        return tuple(accumulate(self.sectors, initial=self.flash_start))

    @property
    def flash(self) -> MemorySpan:
        """The main flash."""
        return MemorySpan(start=self.flash_start, end=self.sector_starts[-1])

    def sectors_covering(self, start: int, end: int) -> range:
        """Numbers of the sectors with a byte in start..end. Raises ValueError outside the flash."""
        if not self.flash_start <= start < end <= self.sector_starts[-1]:
            raise ValueError(
                f"{start:#010x}..{end:#010x} is not within the flash of {self.name}, "
                f"{self.flash_start:#010x}..{self.sector_starts[-1]:#010x}"
            )
        edges = self.sector_starts
        first = next(number for number in range(len(self.sectors)) if start < edges[number + 1])
        last = next(number for number in range(first, len(self.sectors)) if end <= edges[number + 1])
        return range(first, last + 1)


class _Series(NamedTuple):
    """What neighbours share. Spans in hexadecimal: "start-end", end not included, or "start+KiB"."""

    rom: RomKind | None
    word_bytes: int
    loader_ram: str
    never_erased: str


# System memory, one-time-programmable bytes, option bytes.
_F0_OPTIONS = "1FFFF800-1FFFF810"
_F4_KEPT = "1FFF0000-1FFF7800 1FFF7800-1FFF7A10 1FFFC000-1FFFC010"
_F7_KEPT = "1FF00000-1FF0EDC0 1FF0F000-1FF0F420 1FFF0000-1FFF0020"
_L4_KEPT = "1FFF0000-1FFF7000 1FFF7000-1FFF7400 1FFF7800-1FFF7810"
_L4_BANK_2_KEPT = "1FFF8000-1FFFF000 1FFFF800-1FFFF810"
_G0_KEPT = "1FFF0000-1FFF7000 1FFF7000-1FFF7400 1FFF7800-1FFF7880 1FFF8000-1FFFF000"
_G4_KEPT = "1FFF0000-1FFF7000 1FFF7000-1FFF7400 1FFF7800-1FFF7830"
_G4_BANK_2_KEPT = "1FFF8000-1FFFF000 1FFFF800-1FFFF830"
_H5_KEPT = "0BF97000-0BFA0000 08FFF000-08FFF800"

_F04 = _Series(None, 4, "", f"1FFFC400-1FFFF800 {_F0_OPTIONS}")
_F07 = _Series(None, 4, "20000000+6", f"1FFFC800-1FFFF800 {_F0_OPTIONS}")
_F09 = _Series(None, 4, "20000000+6", f"1FFFD800-1FFFF800 {_F0_OPTIONS}")
_F105 = _Series("bxcan", 4, "20000000+4", f"1FFFB000-1FFFF800 {_F0_OPTIONS}")
_F2 = _Series("bxcan", 4, "20000000+8", _F4_KEPT)
_F4 = _Series("bxcan", 4, "20000000+12", _F4_KEPT)
_F4_TWO_BANKS = _Series("bxcan", 4, "20000000+12", f"{_F4_KEPT} 1FFEC000-1FFEC010")
_F7 = _Series("bxcan", 4, "20000000+16", _F7_KEPT)
_L4 = _Series("bxcan", 8, "20000000+12.25", _L4_KEPT)
_L4_TWO_BANKS = _Series("bxcan", 8, "20000000+12.25", f"{_L4_KEPT} {_L4_BANK_2_KEPT}")
_L4R = _Series("bxcan", 8, "20000000+12.5", f"{_L4_KEPT} {_L4_BANK_2_KEPT}")
_L4P = _Series("bxcan", 8, "20000000+16", f"{_L4_KEPT} {_L4_BANK_2_KEPT}")
_L5 = _Series("fdcan", 8, "20000000+16", "0BF90000-0BF98000 0BFA0000-0BFA0200")
_G0B1 = _Series("fdcan", 8, "20000000+16", _G0_KEPT)
_G4 = _Series(None, 8, "20000000+16", _G4_KEPT)
_G4_TWO_BANKS = _Series(None, 8, "20000000+16", f"{_G4_KEPT} {_G4_BANK_2_KEPT}")
_H72 = _Series("fdcan", 32, "20000000+16.25 24000000+16", "1FF00000-1FF20000")
_H74 = _Series("fdcan", 32, "20000000+16.25 24000000+20", "1FF00000-1FF20000 1FF40000-1FF60000")
_H7A = _Series("fdcan", 16, "20000000+16.25 24000000+208", "1FF00000-1FF14000 08FFF000-08FFF400")
_H503 = _Series("fdcan", 16, "20000000+16", "0BF87000-0BF90000 08FFF000-08FFF800")
_H523 = _Series("fdcan", 16, "20000000+16", _H5_KEPT)
_H563 = _Series("fdcan", 16, "", _H5_KEPT)
_U5 = _Series("fdcan", 16, "20000000+16", "0BF90000-0BFA0000 0BFA0000-0BFA0200")

_F4_BANKS = "4x16 1x64 7x128 4x16 1x64 7x128"
# Name, parts, product id, series, sectors (how many x KiB), RAM (address + KiB). Where an option bit chooses
# between one bank and two, the row is as delivered: one for F76x (nDBANK), two for L4+, L5 and G47x (DBANK).
_ROWS: tuple[tuple[str, str, int, _Series, str, str], ...] = (
    ("stm32f04x", "STM32F042, F070x6", 0x445, _F04, "32x1", "20000000+6"),
    ("stm32f07x", "STM32F071/F072, F070xB", 0x448, _F07, "64x2", "20000000+16"),
    ("stm32f09x", "STM32F091/F098, F030xC", 0x442, _F09, "128x2", "20000000+32"),
    ("stm32f105", "STM32F105/F107", 0x418, _F105, "128x2", "20000000+64"),
    # Loaders before bootloader id 0x33 (V3.x) have no CAN: AN2606, table 3.
    ("stm32f2", "STM32F205/F207/F215/F217", 0x411, _F2, "4x16 1x64 7x128", "20000000+128"),
    ("stm32f40x", "STM32F405/F407/F415/F417", 0x413, _F4, "4x16 1x64 7x128", "20000000+128 10000000+64"),
    ("stm32f412", "STM32F412", 0x441, _F4, "4x16 1x64 7x128", "20000000+256"),
    ("stm32f413", "STM32F413/F423", 0x463, _F4, "4x16 1x64 11x128", "20000000+320"),
    ("stm32f42x", "STM32F427/F429/F437/F439", 0x419, _F4_TWO_BANKS, _F4_BANKS, "20000000+192 10000000+64"),
    ("stm32f446", "STM32F446", 0x421, _F4, "4x16 1x64 3x128", "20000000+128"),
    ("stm32f469", "STM32F469/F479", 0x434, _F4_TWO_BANKS, _F4_BANKS, "20000000+320 10000000+64"),
    # The RAM of F7 at 0x20000000 is DTCM followed by SRAM1 and SRAM2, without a gap.
    ("stm32f72x", "STM32F722/F723/F732/F733", 0x452, _F7, "4x16 1x64 3x128", "20000000+256"),
    ("stm32f74x", "STM32F745/F746/F756", 0x449, _F7, "4x32 1x128 3x256", "20000000+320"),
    ("stm32f76x", "STM32F765/F767/F769/F777/F779, one bank", 0x451, _F7, "4x32 1x128 7x256", "20000000+512"),
    ("stm32f76x-dual", "STM32F765/F767/F769/F777/F779, two banks", 0x451, _F7, _F4_BANKS, "20000000+512"),
    # L4: SRAM2 lies at 0x10000000; L43x, L45x, L496 and L4+ show it behind SRAM1 as well.
    ("stm32l43x", "STM32L431/L432/L433/L442/L443", 0x435, _L4, "128x2", "20000000+64 10000000+16"),
    ("stm32l45x", "STM32L451/L452/L462", 0x462, _L4, "256x2", "20000000+160 10000000+32"),
    # Loaders with bootloader id 0xA3 (V10.x) have no CAN: AN2606, table 3.
    ("stm32l47x", "STM32L471/L475/L476/L485/L486", 0x415, _L4_TWO_BANKS, "512x2", "20000000+96 10000000+32"),
    ("stm32l496", "STM32L496/L4A6", 0x461, _L4_TWO_BANKS, "512x2", "20000000+320 10000000+64"),
    ("stm32l4r", "STM32L4R5/R7/R9/S5/S7/S9", 0x470, _L4R, "512x4", "20000000+640 10000000+64"),
    ("stm32l4p", "STM32L4P5/L4Q5", 0x471, _L4P, "256x4", "20000000+320 10000000+64"),
    ("stm32l552", "STM32L552/L562", 0x472, _L5, "256x2", "20000000+256"),
    # 144 KiB without parity check, 128 with. G0B0 has the same product id, but no FDCAN in its loader.
    ("stm32g0b1", "STM32G0B1/G0C1", 0x467, _G0B1, "256x2", "20000000+144"),
    # G4: CCM lies at 0x10000000 and is seen behind SRAM2 as well.
    ("stm32g431", "STM32G431/G441 (cat. 2)", 0x468, _G4, "64x2", "20000000+32 10000000+10"),
    (
        "stm32g47x",
        "STM32G471/G473/G474/G483/G484 (cat. 3)",
        0x469,
        _G4_TWO_BANKS,
        "256x2",
        "20000000+128 10000000+32",
    ),
    ("stm32g491", "STM32G491/G4A1 (cat. 4)", 0x479, _G4, "256x2", "20000000+112 10000000+16"),
    # H7: DTCM, AXI SRAM (on H72x with what ITCM leaves of it), SRAM1 to 3, SRAM4.
    (
        "stm32h723",
        "STM32H723/H725/H730/H733/H735",
        0x483,
        _H72,
        "8x128",
        "20000000+128 24000000+320 30000000+32 38000000+16",
    ),
    (
        "stm32h743",
        "STM32H742/H743/H745/H747/H750/H753/H755/H757",
        0x450,
        _H74,
        "16x128",
        "20000000+128 24000000+512 30000000+288 38000000+64",
    ),
    (
        "stm32h7a3",
        "STM32H7A3/H7B0/H7B3",
        0x480,
        _H7A,
        "256x8",
        "20000000+128 24000000+1024 30000000+128 38000000+32",
    ),
    ("stm32h503", "STM32H503", 0x474, _H503, "16x8", "20000000+32"),
    ("stm32h523", "STM32H523/H533", 0x478, _H523, "64x8", "20000000+272"),
    ("stm32h563", "STM32H562/H563/H573", 0x484, _H563, "256x8", "20000000+640"),
    ("stm32u535", "STM32U535/U545", 0x455, _U5, "64x8", "20000000+256 28000000+16"),
    ("stm32u575", "STM32U575/U585", 0x482, _U5, "256x8", "20000000+768 28000000+16"),
    ("stm32u595", "STM32U595/U599/U5A5/U5A9", 0x481, _U5, "512x8", "20000000+2496 28000000+16"),
    ("stm32u5f", "STM32U5F7/U5F9/U5G7/U5G9", 0x476, _U5, "512x8", "20000000+3008 28000000+16"),
)


def _spans(text: str) -> tuple[MemorySpan, ...]:
    spans = []
    for span in text.split():
        start, _, end = span.partition("-")
        if end:
            spans.append(MemorySpan(start=int(start, 16), end=int(end, 16)))
        else:
            address, _, kib = span.partition("+")
            base = int(address, 16)
            spans.append(MemorySpan(start=base, end=base + int(float(kib) * KIB)))
    return tuple(spans)


def _sizes(text: str) -> tuple[int, ...]:
    runs = (run.split("x") for run in text.split())
    return tuple(int(kib) * KIB for count, kib in runs for _ in range(int(count)))


FAMILIES: dict[str, Family] = {
    name: Family(
        name=name,
        parts=parts,
        product_id=product_id,
        rom=series.rom,
        flash_start=FLASH_START,
        sectors=_sizes(sectors),
        word_bytes=series.word_bytes,
        ram=_spans(ram),
        rom_ram_reserved=_spans(series.loader_ram),
        never_erased=_spans(series.never_erased),
    )
    for name, parts, product_id, series, sectors, ram in _ROWS
}


def by_product_id(pid: int) -> tuple[Family, ...]:
    """Families whose ROM loader answers Get ID with `pid` (12 bits): none, one, or layouts of one part."""
    return tuple(family for family in FAMILIES.values() if family.product_id == pid)
