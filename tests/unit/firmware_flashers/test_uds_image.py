"""What is judged of an image before the ECU is asked anything, by the profile's kind of image."""

from __future__ import annotations

from dataclasses import replace

import pytest

from firmware_flashers.base import BadImage, FirmwareImage, WrongEcu
from firmware_flashers.uds_image import judge_image
from firmware_flashers.uds_profile import MCUBOOT, PROFILES, RAW, STM32
from sim.mcu.images import build_image
from sim.mcu.mcuboot_images import build_mcuboot_image

PLAIN = PROFILES["uds"]
START = PLAIN.memory.slot.start


def unsigned(data: bytes) -> FirmwareImage:
    return FirmwareImage.unsigned(data, kind="a", hardware="b", version="1.2.3")


def judged(data: bytes, kind: str) -> None:
    judge_image(unsigned(data), replace(PLAIN, image=kind), kind="a", hardware="b")


def test_each_kind_takes_its_own() -> None:
    judged(build_image("1.2.3", 2048, START), STM32)
    judged(build_mcuboot_image(version="1.2.3", nbytes=2048, slot_base=START), MCUBOOT)
    judged(b"anything", RAW)


def test_one_kind_is_not_another() -> None:
    with pytest.raises(BadImage, match="stack pointer"):
        judged(build_mcuboot_image(version="1.2.3", nbytes=2048, slot_base=START), STM32)
    with pytest.raises(BadImage, match="magic"):
        judged(build_image("1.2.3", 2048, START), MCUBOOT)


def test_a_flipped_byte_of_an_mcuboot_image_is_found() -> None:
    data = bytearray(build_mcuboot_image(version="1.2.3", nbytes=2048, slot_base=START))
    data[1000] ^= 1
    with pytest.raises(BadImage, match="sha256"):
        judged(bytes(data), MCUBOOT)


def test_an_mcuboot_image_must_leave_room_for_the_trailer() -> None:
    slot = PLAIN.memory.slot
    with pytest.raises(BadImage):
        judged(
            build_mcuboot_image(version="1.2.3", nbytes=slot.end - slot.start - 1024, slot_base=START),
            MCUBOOT,
        )


def test_another_component_is_wrong_whatever_the_bytes() -> None:
    with pytest.raises(WrongEcu):
        judge_image(unsigned(b"x"), replace(PLAIN, image=RAW), kind="other", hardware="b")
