"""Flash as a real part has it, images that a real part could run, and faults as a person orders them."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest

from shared.errors import ConfigError
from shared.images.stm32 import Stm32Layout, judge
from sim.mcu.faults import Faults, parse_faults
from sim.mcu.flash import Flash, FlashFileError, NotErased, PowerCut
from sim.mcu.images import BadImageRequest, build_image
from sim.mcu.memory import DEFAULT_MAP
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


@pytest.mark.parametrize(
    "word", ["fire=1", "busy", "busy=", "busy=-1", "busy=1.5", "busy=yes", "moving=2", "pending_s=nan", "=1"]
)
def test_a_fault_that_can_not_be_is_named(word: str) -> None:
    with pytest.raises(ConfigError, match=f"fault '{word.partition('=')[0]}"):
        parse_faults([word])
