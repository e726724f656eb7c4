"""Wrong answers of ROM loaders, bxCAN and FDCAN: a named error in time, or the right image."""

from __future__ import annotations

import asyncio
import hashlib
import random
import struct
import threading
from contextlib import ExitStack
from math import inf
from pathlib import Path
from typing import Any

import pytest

from firmware_flashers.base import FirmwareImage, FlashError
from firmware_flashers.can_link import open_link
from firmware_flashers.rom_profile import RomProfile
from firmware_flashers.stm32_rom_flash import RomFlasher
from shared.release import FirmwareSpec
from sim.can_model import ModelBus
from sim.mcu.faults import FaultState
from sim.mcu.flash import Flash
from sim.mcu.rom_loader import mark_of
from sim.mcu.rom_mcu import RomMcu
from sim.mcu.rom_settings import RomSettings
from tests.chaos.firmware_flashers.liars import ROM_LIES, Liar

KIND, HARDWARE = "brake-controller", "rev-b"
START = 0x0800_0000
FAMILIES = {"stm32-rom": "stm32f105", "stm32-rom-fd": "stm32l552"}
RATES: dict[str, dict[str, int]] = {
    "stm32-rom": {"bitrate": 125_000},
    "stm32-rom-fd": {"bitrate": 250_000, "data_bitrate": 1_000_000},
}
SEEDS_OF_EACH = 2
LONG_SEEDS_OF_EACH = 30
MOST_FRAMES = {"stm32-rom": 500, "stm32-rom-fd": 100}
BOUND_S = 1800.0


def image(version: str) -> FirmwareImage:
    """Vectors and a little code."""
    data = struct.pack("<II", 0x2000_1800, START + 0x101) + hashlib.shake_256(version.encode()).digest(1016)
    spec = FirmwareSpec(
        kind=KIND,
        hardware=(HARDWARE,),
        version=version,
        release_counter=1,
        length=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )
    return FirmwareImage(spec=spec, data=data, document=b"")


OLD, NEW = image("1.0.0"), image("1.1.0")


class LyingMcu(RomMcu):
    """A part in its ROM loader that may lie; a reset makes no honest part of it."""

    def __init__(self, protocol: str, folder: Path, bus: Any, kind: str, seed: int) -> None:
        self.rng = random.Random(f"{protocol} {kind} {seed}")
        self.lie = ROM_LIES[kind]()
        self.fd = protocol == "stm32-rom-fd"
        most = MOST_FRAMES[protocol]
        self.turn = self.rng.randrange(1, most // 3 if self.lie.is_rare else most)
        self.left = self.rng.choice([40, inf] if self.lie.is_rare else [1, 3, 20, inf])
        self.liar: Any = None
        settings = RomSettings(flash_file=folder / "flash.bin", family=FAMILIES[protocol], speed_s=0.05)
        super().__init__(settings, bus)

    def _new_device(self, flash: Flash, faults: FaultState) -> Any:
        former = self.liar
        self.liar = Liar(
            inner=super()._new_device(flash, faults),
            lie=self.lie,
            rng=self.rng,
            answer_id=0x031,
            fd=self.fd,
            turn=former.turn if former else self.turn,
            left=former.left if former else self.left,
        )
        return self.liar


class Rig:
    def __init__(self, protocol: str, folder: Path, stack: ExitStack, kind: str, seed: int) -> None:
        self.protocol = protocol
        self.staged = False
        self.fd = protocol == "stm32-rom-fd"
        self.model = stack.enter_context(ModelBus(name=f"lies-{folder.name}", **RATES[protocol]))
        bus = self.model.endpoint(fd=self.fd, driver=False)
        stack.callback(bus.shutdown)
        self.mcu = LyingMcu(protocol, folder, bus, kind, seed)
        self.mcu.fill(OLD.data)
        stack.enter_context(self.mcu)

    async def flash(self) -> None:
        settings: dict[str, Any] = {"interface": "quarry-model", "channel": self.model.name, "fd": self.fd}
        settings |= RATES[self.protocol]
        async with (
            open_link(**settings) as link,
            RomFlasher(
                component="brakes",
                kind=KIND,
                hardware=HARDWARE,
                profile=RomProfile(protocol=self.protocol, family=FAMILIES[self.protocol]),
                link=link,
            ) as flasher,
        ):
            self.staged = False
            await flasher.stage(NEW)
            self.staged = True
            await flasher.activate()
            await flasher.verify(NEW)

    def holds(self, what: FirmwareImage) -> bool:
        return self.mcu.content(START, len(what.data)) == what.data

    def would_run(self) -> bytes | None:
        return self.mcu.boots()


async def judge(protocol: str, folder: Path, kind: str, seed: int) -> None:
    """Flash while it lies, then honestly."""
    with ExitStack() as stack:
        rig = Rig(protocol, folder, stack, kind, seed)
        begun = rig.model.now()
        failure = None
        try:
            await rig.flash()
        except FlashError as error:
            failure = error
        if failure is None:
            assert rig.holds(NEW), "done was reported of another content"
        else:
            assert failure.code != "internal", failure.message
            assert failure.message
            assert failure.advice
            assert rig.staged or failure.touched or rig.holds(OLD)
        # Old, new, or nothing: never torn code.
        assert rig.would_run() in {None, mark_of(OLD.data), mark_of(NEW.data)}
        assert rig.model.now() - begun < BOUND_S
        assert not [one.name for one in threading.enumerate() if one.name.startswith("flasher-")]
        assert sum(not one.closed for one in rig.model.wire.ports) == 1
        rig.mcu.liar.reform()
        await asyncio.to_thread(rig.mcu.enter_loader)
        rig.mcu.liar.reform()
        await rig.flash()
        assert rig.holds(NEW)
        assert rig.mcu.running == mark_of(NEW.data)


@pytest.mark.parametrize("seed", range(SEEDS_OF_EACH))
@pytest.mark.parametrize("kind", ROM_LIES)
@pytest.mark.parametrize("protocol", FAMILIES)
async def test_a_wrong_answer_is_a_named_error_or_harmless(
    tmp_path: Path, protocol: str, kind: str, seed: int
) -> None:
    await judge(protocol, tmp_path, kind, seed)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(SEEDS_OF_EACH, LONG_SEEDS_OF_EACH))
@pytest.mark.parametrize("kind", ROM_LIES)
@pytest.mark.parametrize("protocol", FAMILIES)
async def test_many_more_of_them(tmp_path: Path, protocol: str, kind: str, seed: int) -> None:
    await judge(protocol, tmp_path, kind, seed)
