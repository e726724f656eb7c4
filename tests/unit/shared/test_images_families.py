"""The family table: consistent in itself, and what independent tables say of the same parts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.images.stm32_families import FAMILIES, Family, MemorySpan, by_product_id

KIB = 1024
ROWS = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())

# OpenOCD, src/flash/nor/stm32l4x.c and stm32h7x.c: product id, largest flash in KiB, flash word in bytes.
OPENOCD = {
    0x415: (1024, 8),
    0x435: (256, 8),
    0x461: (1024, 8),
    0x462: (512, 8),
    0x467: (512, 8),
    0x468: (128, 8),
    0x469: (512, 8),
    0x470: (2048, 8),
    0x471: (1024, 8),
    0x472: (512, 8),
    0x479: (512, 8),
    0x455: (512, 16),
    0x482: (2048, 16),
    0x481: (4096, 16),
    0x476: (4096, 16),
    0x450: (2048, 32),
    0x480: (2048, 16),
    0x483: (1024, 32),
}
# libopencm3, ld/devices.data: largest flash, RAM at 0x20000000 (DTCM of an F7 with it), CCM or SRAM2, in KiB.
LIBOPENCM3 = {
    "stm32f04x": (32, 6, 0),
    "stm32f07x": (128, 16, 0),
    "stm32f09x": (256, 32, 0),
    "stm32f105": (256, 64, 0),
    "stm32f2": (1024, 128, 0),
    "stm32f40x": (1024, 128, 64),
    "stm32f412": (1024, 256, 0),
    "stm32f42x": (2048, 192, 64),
    "stm32f446": (512, 128, 0),
    "stm32f469": (2048, 320, 64),
    "stm32f72x": (512, 192 + 64, 0),
    "stm32f74x": (1024, 256 + 64, 0),
    "stm32f76x": (2048, 384 + 128, 0),
    "stm32l43x": (256, 48 + 16, 16),
    "stm32l45x": (512, 128 + 32, 32),
    "stm32l47x": (1024, 96, 32),
    "stm32l496": (1024, 256 + 64, 64),
    "stm32g431": (128, 22 + 10, 10),
    "stm32g47x": (512, 96 + 32, 32),
    "stm32g491": (512, 96 + 16, 16),
}
# stlink, chipid.c: product id, smallest sector.
STLINK_PAGES = {0x445: 1 * KIB, 0x448: 2 * KIB, 0x442: 2 * KIB, 0x441: 16 * KIB, 0x463: 16 * KIB}
STLINK_PAGES |= {0x415: 2 * KIB, 0x470: 4 * KIB, 0x471: 4 * KIB, 0x435: 2 * KIB, 0x461: 2 * KIB}
STLINK_PAGES |= {0x450: 128 * KIB, 0x480: 8 * KIB, 0x483: 128 * KIB}


@ROWS
def test_a_row_is_consistent(family: Family) -> None:
    assert family.flash.start == 0x0800_0000
    assert family.flash.size == sum(family.sectors)
    assert all(size % family.word_bytes == 0 for size in family.sectors)
    assert len(family.sector_starts) == len(family.sectors) + 1
    for kept in family.never_erased:
        assert not kept.overlaps(family.flash.start, family.flash.end)
        assert not any(kept.overlaps(ram.start, ram.end) for ram in family.ram)
    for reserved in family.rom_ram_reserved:
        assert any(ram.start <= reserved.start and reserved.end < ram.end for ram in family.ram)
    assert all(
        not one.overlaps(two.start, two.end) for one in family.ram for two in family.ram if one is not two
    )


def test_what_openocd_says() -> None:
    for pid, (kib, word) in OPENOCD.items():
        found = by_product_id(pid)
        assert found, hex(pid)
        assert {(row.flash.size // KIB, row.word_bytes) for row in found} == {(kib, word)}, hex(pid)


def test_what_libopencm3_says() -> None:
    for name, (flash, ram, ccm) in LIBOPENCM3.items():
        row = FAMILIES[name]
        spans = {span.start: span.size // KIB for span in row.ram}
        assert row.flash.size // KIB == flash, name
        assert spans[0x2000_0000] == ram, name
        assert spans.get(0x1000_0000, 0) == ccm, name


def test_what_stlink_says() -> None:
    for pid, smallest in STLINK_PAGES.items():
        assert {min(row.sectors) for row in by_product_id(pid)} == {smallest}, hex(pid)


def test_only_loaders_that_speak_can_are_said_to() -> None:
    """AN2606, table 3: no CAN in F0 and G4; bxCAN in F1 to F7 and L4, FDCAN in G0 H5 H7 L5 U5."""
    for name, row in FAMILIES.items():
        series = name.removeprefix("stm32")[:2]
        expected = {"f0": None, "g4": None, "f1": "bxcan", "f2": "bxcan", "f4": "bxcan", "f7": "bxcan"}
        expected |= {"l4": "bxcan", "g0": "fdcan", "h5": "fdcan", "h7": "fdcan", "l5": "fdcan", "u5": "fdcan"}
        assert row.rom == expected[series], name


def test_a_product_id_gives_its_layouts() -> None:
    assert [row.name for row in by_product_id(0x413)] == ["stm32f40x"]
    assert [row.name for row in by_product_id(0x451)] == ["stm32f76x", "stm32f76x-dual"]
    assert by_product_id(0x999) == ()


@pytest.mark.parametrize(
    ("start", "end", "numbers"),
    [
        (0x0800_0000, 0x0800_0001, range(1)),
        (0x0800_0000, 0x0800_4000, range(1)),
        (0x0800_3FFF, 0x0800_4001, range(2)),
        (0x0801_0000, 0x0802_0001, range(4, 6)),
        (0x080E_0000, 0x0810_0000, range(11, 12)),
        (0x0800_0000, 0x0810_0000, range(12)),
    ],
)
def test_sectors_of_a_range(start: int, end: int, numbers: range) -> None:
    assert FAMILIES["stm32f40x"].sectors_covering(start, end) == numbers


@pytest.mark.parametrize(
    ("start", "end"), [(0x07FF_FFFF, 0x0800_0001), (0x0810_0000, 0x0810_0001), (0x0800_0001, 0x0800_0001)]
)
def test_a_range_outside_has_no_sectors(start: int, end: int) -> None:
    with pytest.raises(ValueError, match="not within the flash"):
        FAMILIES["stm32f40x"].sectors_covering(start, end)


@given(st.sampled_from(sorted(FAMILIES)), st.data())
def test_the_sectors_of_a_range_cover_it_and_no_more(name: str, data: st.DataObject) -> None:
    family = FAMILIES[name]
    start = data.draw(st.integers(family.flash.start, family.flash.end - 1))
    end = data.draw(st.integers(start + 1, family.flash.end))
    numbers = family.sectors_covering(start, end)
    edges = family.sector_starts
    assert edges[numbers.start] <= start < edges[numbers.start + 1]
    assert edges[numbers.stop - 1] < end <= edges[numbers.stop]


@pytest.mark.parametrize(("start", "end"), [(1, 1), (2, 1), (-1, 1), (0, 2**32 + 1)])
def test_a_span_that_is_none_is_refused(start: int, end: int) -> None:
    with pytest.raises(ValueError, match="not a range"):
        MemorySpan(start=start, end=end)


def test_a_span_knows_its_addresses() -> None:
    span = MemorySpan(start=0x10, end=0x20)
    assert 0x10 in span
    assert 0x1F in span
    assert 0x20 not in span
    assert "0x10" not in span
    assert span.overlaps(0x1F, 0x30)
    assert not span.overlaps(0x20, 0x30)
