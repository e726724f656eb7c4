"""Judges a raw STM32 (Cortex-M) image against the place that it is for, before a byte is sent.

Two words decide whether a part can start at all (ARMv7-M Architecture Reference Manual, B1.5.3 "The
vector table"): word 0 is the initial stack pointer, word 1 the address of the reset handler with
bit 0 set, since Cortex-M executes Thumb code only. A wrong one is a part that hangs after its next
reset, so the release tool, the office's upload and the flashers all ask here first.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from shared.errors import OtaError
from shared.images.stm32_families import Family, MemorySpan

WORD_BYTES = 4
VECTORS = struct.Struct("<II")
STACK_ALIGNMENT = 8  # AAPCS, 6.2.1.2: the stack pointer is double-word aligned at an interface


class BadImageLayout(OtaError):
    """The image can't start where it is to be put."""

    code = "bad_image"
    advice = "Link the image for this part's slot and RAM, and give the raw binary (objcopy -O binary)."


@dataclass(frozen=True, kw_only=True)
class Stm32Layout:
    """Where an image runs: addresses up to, not including, each `end`.

    `more_ram` is what a part has beside its main RAM: CCM, AXI SRAM, SRAM2 and the like.
    """

    slot_start: int
    slot_end: int
    ram_start: int
    ram_end: int
    more_ram: tuple[MemorySpan, ...] = ()

    @classmethod
    def of_family(cls, family: Family, *, slot_start: int, slot_end: int) -> Stm32Layout:
        """The slot in a part of `family`, with all the RAM that it has.

        Raises ValueError for a slot that is not made of whole sectors of the family's flash.
        """
        edges = family.sector_starts
        if slot_start not in edges or slot_end not in edges:
            raise ValueError(
                f"slot {slot_start:#010x}..{slot_end:#010x} is not made of whole sectors of {family.name}, "
                f"{edges[0]:#010x}..{edges[-1]:#010x}"
            )
        main, *more = family.ram
        return cls(
            slot_start=slot_start,
            slot_end=slot_end,
            ram_start=main.start,
            ram_end=main.end,
            more_ram=tuple(more),
        )

    def __post_init__(self) -> None:
        """Raises ValueError for a layout that no part has."""
        for name, start, end in (
            ("slot", self.slot_start, self.slot_end),
            ("ram", self.ram_start, self.ram_end),
        ):
            if not 0 <= start < end <= 2**32:
                raise ValueError(f"{name} {start:#010x}..{end:#010x} is not a range of 32-bit addresses")

    @property
    def ram(self) -> tuple[MemorySpan, ...]:
        """Every RAM that a stack can lie in."""
        return (MemorySpan(start=self.ram_start, end=self.ram_end), *self.more_ram)


@dataclass(frozen=True, kw_only=True)
class VectorTable:
    """The two words that a part starts by."""

    initial_sp: int
    reset_vector: int


def judge(image: bytes, layout: Stm32Layout, *, base: int | None = None) -> VectorTable:
    """Return the image's vector table when it can start at `layout.slot_start`.

    `base` is the address that the file itself gives (`formats.FlatImage.base`), None where it gives none.
    Raises BadImageLayout that says what is wrong and where.
    """
    if base is not None and base != layout.slot_start:
        raise BadImageLayout(f"the image is for {base:#010x}, the slot begins at {layout.slot_start:#010x}")
    slot_bytes = layout.slot_end - layout.slot_start
    if len(image) > slot_bytes:
        raise BadImageLayout(f"the image has {len(image)} bytes, the slot holds {slot_bytes}")
    if len(image) <= VECTORS.size:
        raise BadImageLayout(f"the image has {len(image)} bytes: no code behind a vector table")
    initial_sp, reset_vector = VECTORS.unpack_from(image)
    # The stack grows downwards from one past its last byte, so the end of RAM itself is right.
    if not any(span.start < initial_sp <= span.end for span in layout.ram):
        ram = ", ".join(f"({span.start:#010x}, {span.end:#010x}]" for span in layout.ram)
        raise BadImageLayout(
            f"word 0 at {layout.slot_start:#010x}: initial stack pointer {initial_sp:#010x} is outside RAM "
            f"{ram}"
        )
    if initial_sp % STACK_ALIGNMENT:
        raise BadImageLayout(
            f"word 0 at {layout.slot_start:#010x}: initial stack pointer {initial_sp:#010x} "
            f"is not a multiple of {STACK_ALIGNMENT}"
        )
    where = f"word 1 at {layout.slot_start + WORD_BYTES:#010x}"
    if not reset_vector & 1:
        raise BadImageLayout(f"{where}: reset vector {reset_vector:#010x} is even, not Thumb code")
    entry = reset_vector & ~1
    if not layout.slot_start <= entry < layout.slot_end:
        raise BadImageLayout(
            f"{where}: reset vector {reset_vector:#010x} is outside the slot "
            f"{layout.slot_start:#010x}..{layout.slot_end:#010x}; linked for another address?"
        )
    # The handler stands behind the table's two words and its first instruction is within the image.
    if not VECTORS.size <= entry - layout.slot_start <= len(image) - 2:
        raise BadImageLayout(
            f"{where}: reset vector {reset_vector:#010x} points to no code of the image, which ends at "
            f"{layout.slot_start + len(image):#010x}"
        )
    return VectorTable(initial_sp=initial_sp, reset_vector=reset_vector)
