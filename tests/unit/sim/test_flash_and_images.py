"""Flash as a real part has it, images that a real part could run, and faults as a person orders them."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest

from shared.errors import ConfigError
from shared.images.stm32 import Stm32Layout, judge
from sim.mcu.faults import Faults, parse_faults
from sim.mcu.flash import Flash, FlashFileError, NotErased, PowerCut, WriteProtected
from sim.mcu.images import BadImageRequest, build_image
from sim.mcu.memory import DEFAULT_MAP, FlashMap, MemoryMap
from sim.mcu.server import factory

SLOT = DEFAULT_MAP.slot.start
SLOT_SECTOR = 4


def test_what_is_written_survives_the_process(tmp_path: Path) -> None:
    with Flash(tmp_path / "f") as flash:
        flash.write(SLOT, b"abcd")
    with Flash(tmp_path / "f") as flash:
        assert flash.read(SLOT, 8) == b"abcd\xff\xff\xff\xff"
        flash.erase(SLOT_SECTOR)
    with Flash(tmp_path / "f") as flash:
        assert flash.read(SLOT, 8) == b"\xff" * 8


def test_only_erased_bytes_are_written(tmp_path: Path) -> None:
    with Flash(tmp_path / "f") as flash:
        flash.write(SLOT, b"abcd")
        with pytest.raises(NotErased):
            flash.write(SLOT - 4, bytes(12))
        assert flash.read(SLOT - 4, 12) == b"\xff\xff\xff\xffabcd\xff\xff\xff\xff"
        with pytest.raises(ValueError, match="whole words"):
            flash.write(SLOT + 8, b"abc")
        with pytest.raises(ValueError, match="not in flash"):
            flash.write(DEFAULT_MAP.flash.end - 4, bytes(8))


def test_a_cut_erase_leaves_garbage_that_must_be_erased_again(tmp_path: Path) -> None:
    with Flash(tmp_path / "f") as flash:
        flash.write(SLOT, bytes(4096))
        flash.cut_at_erase = 1
        with pytest.raises(PowerCut):
            flash.erase(SLOT_SECTOR)
    with Flash(tmp_path / "f") as flash:
        half = flash.read(SLOT, 4096)
        assert half not in (bytes(4096), b"\xff" * 4096)
        assert flash.read(SLOT + 4096, 16) == b"\xff" * 16, "reads as erased, and is not to be trusted"
        with pytest.raises(NotErased):
            flash.write(SLOT + 4096, b"abcd")
        flash.erase(SLOT_SECTOR)
        flash.write(SLOT + 4096, b"abcd")


@pytest.mark.parametrize("at", [1, 2, 4, 5, 11, 12])
def test_a_cut_write_keeps_what_came_before(tmp_path: Path, at: int) -> None:
    data = bytes(range(1, 13))
    with Flash(tmp_path / "f") as flash:
        flash.cut_at_byte = at + 4
        flash.write(SLOT + 0x100, b"4444")
        with pytest.raises(PowerCut):
            flash.write(SLOT, data)
    with Flash(tmp_path / "f") as flash:
        whole = (at - 1) // 4 * 4
        assert flash.read(SLOT, whole + 1)[:whole] == data[:whole]
        assert flash.read(SLOT + whole, 4) != data[whole : whole + 4]
        assert flash.read(SLOT + whole + 4, 12 - whole) == b"\xff" * (12 - whole)
        assert flash.is_torn(SLOT_SECTOR)


def test_one_flash_has_one_user(tmp_path: Path) -> None:
    with Flash(tmp_path / "f"), pytest.raises(FlashFileError, match="another MCU"):
        Flash(tmp_path / "f").__enter__()


def test_a_file_that_is_no_flash_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter").write_bytes(b"dear")
    with pytest.raises(FlashFileError, match="has 4 bytes"):
        Flash(tmp_path / "letter").__enter__()
    assert (tmp_path / "letter").read_bytes() == b"dear"
    with pytest.raises(FlashFileError, match="No such file"):
        Flash(tmp_path / "nowhere" / "f").__enter__()


def test_the_factory_refuses_what_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="image of 458756 bytes"):
        factory(tmp_path / "f", bytes(448 * 1024 + 4), b"{}")
    with pytest.raises(ConfigError, match="document of 0 bytes"):
        factory(tmp_path / "f", bytes(1024), b"")


# --- other parts --------------------------------------------------------------------------------

START = 0x0800_0000


@pytest.mark.parametrize("word_bytes", [4, 8, 16, 32])
def test_flash_words_of_every_size(tmp_path: Path, word_bytes: int) -> None:
    memory = FlashMap(sectors=(1024, 2048), word_bytes=word_bytes)
    data = bytes(range(1, 2 * word_bytes + 1))
    with Flash(tmp_path / "f", memory=memory) as flash:
        for start, size in ((START + word_bytes // 2, word_bytes), (START, word_bytes // 2)):
            with pytest.raises(ValueError, match="whole words"):
                flash.write(start, bytes(size))
        flash.cut_at_byte = word_bytes + 1
        with pytest.raises(PowerCut):
            flash.write(START, data)
        assert flash.read(START, word_bytes) == data[:word_bytes]
        assert flash.read(START + word_bytes, word_bytes) != data[word_bytes:]
        assert flash.is_torn(0)
        assert not flash.is_torn(1)
        flash.erase(0)
        flash.write(START, data)


def test_flashes_that_can_not_be() -> None:
    for options in ({"word_bytes": 5}, {"sectors": ()}, {"sectors": (1024, 20), "word_bytes": 8}):
        with pytest.raises(ValueError, match="a flash"):
            FlashMap(**options)


@pytest.mark.parametrize(
    ("start", "size", "sectors", "aligned"),
    [
        (0, 1, (0,), False),
        (0, 4096, (0,), True),
        (4095, 2, (0, 1), False),
        (4096, 8192, (1, 2), True),
        (4096, 8191, (1, 2), False),
        (12288, 1, (), False),
        (-4, 4, (), False),
        (-4, 8, (0,), False),
        (0, 0, (), False),
        (0, 99999, (0, 1, 2), False),
    ],
)
def test_which_sectors_bytes_are_in(start: int, size: int, sectors: tuple[int, ...], aligned: bool) -> None:
    memory = FlashMap(sectors=(4096,) * 3, flash_start=0x1_0000)
    assert memory.sectors_of(0x1_0000 + start, size) == sectors
    assert memory.is_aligned(0x1_0000 + start, size) == aligned


def test_protected_sectors_keep_what_they_hold(tmp_path: Path) -> None:
    memory = FlashMap(sectors=(1024,) * 3)
    with Flash(tmp_path / "f", memory=memory) as flash:
        flash.write(START, b"boot")
        flash.write_protect([0, 2])
    with Flash(tmp_path / "f", memory=memory) as flash:
        assert [flash.is_write_protected(one) for one in range(3)] == [True, False, True]
        with pytest.raises(WriteProtected):
            flash.erase(0)
        with pytest.raises(WriteProtected):
            flash.write(START + 4, b"more")
        with pytest.raises(WriteProtected):
            flash.write(START + 2040, bytes(16))
        assert flash.read(START, 8) == b"boot\xff\xff\xff\xff"
        assert flash.read(START + 2040, 16) == b"\xff" * 16, "nothing of it, not half"
        flash.write(START + 1024, b"free")
        flash.write_unprotect()
        flash.erase(0)


def secret(flash: Flash) -> bool:
    return flash.is_readout_protected


def test_reading_is_allowed_again_only_when_nothing_is_left_to_read(tmp_path: Path) -> None:
    memory = FlashMap(sectors=(1024,) * 3)
    with Flash(tmp_path / "f", memory=memory) as flash:
        assert not secret(flash)
        flash.write(START, b"mine")
        flash.write(START + 2048, b"mine")
        flash.write_protect([2])
        flash.readout_protect()
        flash.cut_at_erase = 2
        with pytest.raises(PowerCut):
            flash.readout_unprotect()
    with Flash(tmp_path / "f", memory=memory) as flash:
        assert secret(flash)
        assert flash.read(START + 2048, 4) == b"mine"
        flash.readout_unprotect()
        assert not secret(flash)
        assert flash.read(START, 3072) == b"\xff" * 3072
        flash.write(START + 2048, b"next")


def test_a_file_from_before_there_was_protection_is_taken(tmp_path: Path) -> None:
    size = DEFAULT_MAP.flash.size
    marks = bytearray(b"\xff" * len(DEFAULT_MAP.sectors))
    marks[SLOT_SECTOR] = 0
    (tmp_path / "f").write_bytes(b"\x12" * size + marks)
    with Flash(tmp_path / "f") as flash:
        assert flash.read(SLOT, 4) == b"\x12" * 4
        assert [flash.is_torn(one) for one in (SLOT_SECTOR - 1, SLOT_SECTOR)] == [False, True]
        assert not flash.is_write_protected(SLOT_SECTOR)
        assert not flash.is_readout_protected


def test_a_part_with_long_words_leaves_the_factory(tmp_path: Path) -> None:
    memory = MemoryMap(word_bytes=32)
    factory(tmp_path / "f", bytes(1020), b"{}", memory=memory)
    with Flash(tmp_path / "f", memory=memory) as flash:
        assert flash.read(memory.document.start, 8) == b"\x02\0\0\0{}\xff\xff"


# --- images -------------------------------------------------------------------------------------


@pytest.mark.parametrize("nbytes", [1024, 4096, 96 * 1024, 448 * 1024])
def test_an_image_could_run_and_says_its_version(nbytes: int) -> None:
    image = build_image("1.2.3-rc.1", nbytes, SLOT)
    assert len(image) == nbytes
    layout = Stm32Layout(
        slot_start=SLOT, slot_end=DEFAULT_MAP.slot.end, ram_start=0x2000_0000, ram_end=0x2002_0000
    )
    table = judge(image, layout)
    assert table.initial_sp == 0x2002_0000
    assert table.reset_vector == SLOT + 0x101
    assert image[0x100:0x102] == b"\x03\x48", "ldr r0, [pc, #12]"
    assert b"QUARRYFW1.2.3-rc.1\0" in image


def test_images_are_reproducible_and_differ_by_version() -> None:
    image = build_image("1.0.0", 65536, SLOT)
    assert image == build_image("1.0.0", 65536, SLOT)
    other = build_image("1.0.1", 65536, SLOT)
    assert sum(a != b for a, b in zip(image, other, strict=True)) > 60_000
    assert len(zlib.compress(image, 9)) > 64_000


@pytest.mark.parametrize(
    ("version", "nbytes", "base"),
    [
        ("", 4096, SLOT),
        ("1" * 65, 4096, SLOT),
        ("б", 4096, SLOT),
        ("1", 1020, SLOT),
        ("1", 4097, SLOT),
        ("1", 4096, 4),
    ],
    ids=["no version", "long version", "not ASCII", "too small", "no whole words", "unaligned"],
)
def test_no_image_of_impossible_values(version: str, nbytes: int, base: int) -> None:
    with pytest.raises(BadImageRequest):
        build_image(version, nbytes, base)


# --- orders -------------------------------------------------------------------------------------


def test_faults_are_read_from_words() -> None:
    assert parse_faults(["busy=3", "pending_s=2.5", "moving=1"]) == Faults(busy=3, pending_s=2.5, moving=True)
    assert parse_faults([]) == Faults()
    assert parse_faults(["delay_frame=3", "delay_s=0.5"]) == Faults(delay_frame=3, delay_s=0.5)


@pytest.mark.parametrize(
    "word", ["fire=1", "busy", "busy=", "busy=-1", "busy=1.5", "busy=yes", "moving=2", "pending_s=nan", "=1"]
)
def test_a_fault_that_can_not_be_is_named(word: str) -> None:
    with pytest.raises(ConfigError, match=f"fault '{word.partition('=')[0]}"):
        parse_faults([word])
