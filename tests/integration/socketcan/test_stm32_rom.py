"""An STM32 flashed by its ROM loader through a kernel's CAN, classic and FD."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from pathlib import Path

import can
import pytest

from firmware_flashers.base import FirmwareImage
from firmware_flashers.can_link import BitrateFixed
from firmware_flashers.registry import EcuSettings, open_flasher
from firmware_flashers.rom_profile import RomProfile, RomTiming
from firmware_flashers.rom_words import BusNotIsolated
from shared.release import FirmwareSpec
from sim.mcu.rom_loader import mark_of
from sim.mcu.rom_mcu import RomMcu
from sim.mcu.rom_settings import RomSettings

pytestmark = pytest.mark.socketcan
OpenCan = Callable[..., can.BusABC]

KIND, HARDWARE = "brake-controller", "B2"
FAMILIES = {"stm32-rom": "stm32f105", "stm32-rom-fd": "stm32l552"}
# In a guest a frame takes half a millisecond.
TIMING = RomTiming(ack_s=3.0, sync_s=10.0, probe_s=0.5, program_s=5.0)


def image(version: str) -> FirmwareImage:
    data = struct.pack("<II", 0x2000_1800, 0x0800_0101).ljust(0x100, b"\xff")
    data += hashlib.shake_256(version.encode()).digest(2048)
    spec = FirmwareSpec(
        kind=KIND,
        hardware=(HARDWARE,),
        version=version,
        release_counter=1,
        length=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )
    return FirmwareImage(spec=spec, data=data, document=b"")


def settings(protocol: str, channel: str, *, speed: int | None = None) -> EcuSettings:
    return EcuSettings(
        component="brakes",
        flasher=protocol,
        interface="socketcan",
        channel=channel,
        fd=protocol == "stm32-rom-fd",
        kind=KIND,
        hardware=HARDWARE,
        profile=RomProfile(protocol=protocol, family=FAMILIES[protocol], timing=TIMING, speed=speed),
    )


@pytest.mark.parametrize("protocol", FAMILIES)
async def test_the_whole_way(vcan0: str, open_can: OpenCan, tmp_path: Path, protocol: str) -> None:
    part = RomSettings(flash_file=tmp_path / "flash.bin", family=FAMILIES[protocol])
    old, new = image("1.0.0"), image("1.1.0")
    mcu = RomMcu(part, open_can(vcan0, fd=protocol == "stm32-rom-fd"))
    mcu.fill(old.data)
    with mcu:
        async with open_flasher(settings(protocol, vcan0)) as flasher:
            assert (await flasher.verify(old)).version == "1.0.0"
            await flasher.stage(new)
            await flasher.activate()
            assert (await flasher.verify(new)).sha256 == new.spec.sha256
        assert mcu.running == mark_of(new.data)
        async with open_flasher(settings(protocol, vcan0)) as flasher:
            with pytest.raises(BusNotIsolated):
                await flasher.stage(old)


async def test_the_rate_is_the_systems(vcan0: str, open_can: OpenCan, tmp_path: Path) -> None:
    """Seen before the part is asked to change its own, and nothing is lost."""
    part = RomSettings(flash_file=tmp_path / "flash.bin", family=FAMILIES["stm32-rom"])
    with RomMcu(part, open_can(vcan0, fd=False)):
        async with open_flasher(settings("stm32-rom", vcan0, speed=1_000_000)) as flasher:
            with pytest.raises(BitrateFixed) as caught:
                await flasher.stage(image("1.0.0"))
        assert not caught.value.touched
        async with open_flasher(settings("stm32-rom", vcan0)) as flasher:
            await flasher.stage(image("1.0.0"))
