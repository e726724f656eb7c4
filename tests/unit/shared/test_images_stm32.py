"""The raw STM32 judge: whatever it lets pass can start, and each fault is named with its place."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.images.stm32 import BadImageLayout, Stm32Layout, judge
from shared.images.stm32_families import FAMILIES

LAYOUT = Stm32Layout(slot_start=0x0801_0000, slot_end=0x0808_0000, ram_start=0x2000_0000, ram_end=0x2002_0000)
SIZE = 4096


def image(sp: int = LAYOUT.ram_end, reset: int = LAYOUT.slot_start + 0x201, size: int = SIZE) -> bytes:
    return struct.pack("<II", sp, reset).ljust(size, b"\xbf")[:size]


def test_a_good_image_passes() -> None:
    table = judge(image(), LAYOUT)
    assert (table.initial_sp, table.reset_vector) == (0x2002_0000, 0x0801_0201)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "no code"),
        (image(size=4), "no code"),
        (image(size=8), "no code"),
        (image(size=448 * 1024 + 1), "the slot holds 458752"),
        (image(sp=0), "outside RAM"),
        (image(sp=0xFFFF_FFFF), "outside RAM"),
        (image(sp=LAYOUT.ram_start), "outside RAM"),
        (image(sp=LAYOUT.ram_end + 8), "outside RAM"),
        (image(sp=LAYOUT.ram_end - 4), "multiple of 8"),
        (image(sp=LAYOUT.ram_end - 1), "multiple of 8"),
        (image(reset=LAYOUT.slot_start + 0x200), "even"),
        (image(reset=0), "even"),
        (image(reset=0xFFFF_FFFF), "outside the slot"),
        (image(reset=0x0800_0201), "outside the slot"),
        (image(reset=LAYOUT.slot_end + 1), "outside the slot"),
        (image(reset=LAYOUT.slot_start + 1), "no code"),
        (image(reset=LAYOUT.slot_start + 5), "no code"),
        (image(reset=LAYOUT.slot_start + SIZE + 1), "no code"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_fault_is_named(raw: bytes, said: str) -> None:
    with pytest.raises(BadImageLayout, match=said):
        judge(raw, LAYOUT)


def test_the_edges_pass() -> None:
    judge(image(sp=LAYOUT.ram_start + 8), LAYOUT)
    judge(image(reset=LAYOUT.slot_start + 8 + 1), LAYOUT)
    judge(image(reset=LAYOUT.slot_start + SIZE - 2 + 1), LAYOUT)
    judge(image(size=448 * 1024), LAYOUT)


@pytest.mark.parametrize(
    "values",
    [(0, 0, 1, 2), (2, 1, 1, 2), (0, 1, 2, 2), (-1, 1, 1, 2), (0, 2**32 + 1, 1, 2)],
)
def test_a_layout_that_is_none_is_refused(values: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="not a range"):
        Stm32Layout(slot_start=values[0], slot_end=values[1], ram_start=values[2], ram_end=values[3])


@pytest.mark.parametrize(
    ("family", "sp", "good"),
    [
        ("stm32f40x", 0x2002_0000, True),
        ("stm32f40x", 0x1001_0000, True),  # CCM
        ("stm32f40x", 0x1000_0000, False),
        ("stm32f40x", 0x2002_0008, False),
        ("stm32f412", 0x1001_0000, False),
        ("stm32f412", 0x2004_0000, True),
        ("stm32h743", 0x2002_0000, True),  # DTCM
        ("stm32h743", 0x2408_0000, True),  # AXI SRAM
        ("stm32h743", 0x3004_8000, True),
        ("stm32h743", 0x3801_0000, True),
        ("stm32h743", 0x2408_0008, False),
        ("stm32h743", 0x0000_4000, False),
        ("stm32l47x", 0x1000_8000, True),  # SRAM2
    ],
)
def test_a_stack_lies_in_any_ram_of_the_family(family: str, sp: int, good: bool) -> None:
    part = FAMILIES[family]
    start, end = part.sector_starts[1], part.sector_starts[2]
    layout = Stm32Layout.of_family(part, slot_start=start, slot_end=end)
    raw = image(sp=sp, reset=start + 0x201, size=2048)
    if good:
        judge(raw, layout)
    else:
        with pytest.raises(BadImageLayout, match=f"stack pointer {sp:#010x} is outside RAM"):
            judge(raw, layout)


@pytest.mark.parametrize(
    ("start", "end"), [(0x0800_0200, 0x0800_4000), (0x0800_0000, 0x0800_4001), (0x0810_0000, 0x0814_0000)]
)
def test_a_slot_is_made_of_whole_sectors_of_the_family(start: int, end: int) -> None:
    with pytest.raises(ValueError, match="not made of whole sectors of stm32f40x"):
        Stm32Layout.of_family(FAMILIES["stm32f40x"], slot_start=start, slot_end=end)


def test_a_file_for_another_address_is_refused() -> None:
    judge(image(), LAYOUT, base=LAYOUT.slot_start)
    with pytest.raises(BadImageLayout, match="the image is for 0x08000000, the slot begins at 0x08010000"):
        judge(image(), LAYOUT, base=0x0800_0000)


@given(st.binary(max_size=64))
def test_what_passes_can_start(raw: bytes) -> None:
    try:
        table = judge(raw, LAYOUT)
    except BadImageLayout:
        return
    entry = table.reset_vector - 1
    assert table.reset_vector % 2 == 1
    assert table.initial_sp % 8 == 0
    assert LAYOUT.ram_start < table.initial_sp <= LAYOUT.ram_end
    assert LAYOUT.slot_start + 8 <= entry <= LAYOUT.slot_start + len(raw) - 2


@given(
    sp=st.integers(LAYOUT.ram_start, LAYOUT.ram_end + 64),
    reset=st.integers(LAYOUT.slot_start - 8, LAYOUT.slot_start + SIZE + 8),
)
def test_near_the_edges_only_what_can_start_passes(sp: int, reset: int) -> None:
    good = (
        LAYOUT.ram_start < sp <= LAYOUT.ram_end
        and sp % 8 == 0
        and reset % 2 == 1
        and LAYOUT.slot_start + 8 <= reset - 1 <= LAYOUT.slot_start + SIZE - 2
    )
    try:
        judge(image(sp=sp, reset=reset), LAYOUT)
    except BadImageLayout:
        assert not good
    else:
        assert good
