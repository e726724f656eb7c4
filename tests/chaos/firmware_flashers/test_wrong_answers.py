"""A hundred ECUs' worth of wrong answers: each ends in a named error within its bound, or in the right image.

In virtual time, so that the longest patience of a profile costs little. Afterwards the same part, honest
again, is flashed: whatever the lies have left behind.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import threading
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, ExitStack
from datetime import UTC, datetime, timedelta
from math import inf
from pathlib import Path
from typing import Any

import pytest

from firmware_flashers.base import BenchFlasher, FirmwareImage, FlashError
from firmware_flashers.registry import EcuSettings, open_flasher
from firmware_flashers.uds_profile import PROFILES
from shared.release import FirmwareSpec
from shared.trust.document import make_document
from shared.trust.keys import load_signer, new_key
from sim.can_model import ModelBus
from sim.mcu.assembly import McuSettings, assemble, bootloader_of
from sim.mcu.faults import FaultState
from sim.mcu.flash import Flash
from sim.mcu.images import build_image
from sim.mcu.memory import DEFAULT_MAP
from sim.mcu.profile import EcuIdentity
from sim.mcu.server import Mcu, factory
from sim.mcu.uds_device import UdsDevice
from tests.chaos.firmware_flashers.liars import UDS_LIES, Liar

KIND, HARDWARE = "brake-controller", "B2"
SECRET = bytes(range(32))
PRIVATE, PUBLIC = new_key()
SEEDS_OF_EACH = 6
LONG_SEEDS_OF_EACH = 60
MOST_FRAMES = 60
"""An ECU sends about so many in an honest flash of NEW."""
BOUND_S = 900.0
"""Virtual seconds: a profile's bounds for one region's erase, blocks and checks, with their repeats."""


def sign(version: str, nbytes: int) -> FirmwareImage:
    data = build_image(version, nbytes, DEFAULT_MAP.slot.start)
    spec = FirmwareSpec(
        kind=KIND,
        hardware=(HARDWARE,),
        version=version,
        release_counter=1,
        length=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )
    document = make_document(spec, load_signer(PRIVATE), datetime.now(UTC) + timedelta(days=30))
    return FirmwareImage(spec=spec, data=data, document=document)


OLD, NEW = sign("1.0.0", 1024), sign("1.1.0", 9000)


class Rig:
    """One part that may lie, on a bus of its own."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.model = stack.enter_context(ModelBus(bitrate=500_000, name=f"lies-{folder.name}"))
        self.secret_file = folder / "family.secret"
        self.secret_file.write_bytes(SECRET)
        self.secret_file.chmod(0o600)
        self.settings = McuSettings(
            flash_file=folder / "flash.bin",
            identity=EcuIdentity(kind=KIND, hardware=HARDWARE),
            public_keys=(PUBLIC,),
            security_secret=SECRET,
        )
        factory(self.settings.flash_file, OLD.data, OLD.document)
        self.stack = stack
        self.staged = False
        self.mcu: Mcu[Liar]

    def lies(self, kind: str, seed: int) -> None:
        """Put a part on the bus that tells these lies."""
        rng = random.Random(f"{kind} {seed}")
        lie = UDS_LIES[kind]()
        # What can only be said of few frames is said of all that come.
        turn = rng.randrange(1, MOST_FRAMES // 3 if lie.is_rare else MOST_FRAMES)
        left = rng.choice([40, inf] if lie.is_rare else [1, 3, 20, inf])
        settings = self.settings

        def make(flash: Flash, state: FaultState) -> Liar:
            device = UdsDevice(settings, state, lambda around: assemble(settings, flash, around))
            former = getattr(self, "liar", None)
            # A reset makes no honest part of it.
            self.liar = Liar(
                inner=device,
                lie=lie,
                rng=rng,
                answer_id=settings.response_id,
                fd=False,
                turn=former.turn if former else turn,
                left=former.left if former else left,
            )
            return self.liar

        bus = self.model.endpoint(driver=False)
        self.stack.callback(bus.shutdown)
        self.mcu = self.stack.enter_context(
            Mcu(make, bus, flash_file=settings.flash_file, memory=settings.memory)
        )

    def runs(self, image: FirmwareImage) -> bool:
        installed = bootloader_of(self.settings, self.mcu._flash).judge()
        content = self.mcu.content(self.settings.memory.slot.start, len(image.data))
        return installed.spec == image.spec and content == image.data

    def flasher(self) -> AbstractAsyncContextManager[BenchFlasher]:
        return open_flasher(
            EcuSettings(
                component="brakes",
                flasher="stm32-uds",
                interface="quarry-model",
                channel=self.model.name,
                tx_id=self.settings.request_id,
                rx_id=self.settings.response_id,
                functional_id=self.settings.functional_id,
                kind=KIND,
                hardware=HARDWARE,
                security_secret_file=self.secret_file,
                profile=PROFILES["stm32-uds"],
            )
        )

    async def flash(self) -> None:
        async with self.flasher() as flasher:
            self.staged = False
            await flasher.stage(NEW)
            self.staged = True
            await flasher.activate()
            await flasher.verify(NEW)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with ExitStack() as stack:
        yield Rig(tmp_path, stack)


def flasher_threads() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name.startswith("flasher-")]


async def judge(rig: Rig, kind: str, seed: int) -> None:
    """Flash while it lies, then honestly."""
    rig.lies(kind, seed)
    begun = rig.model.now()
    failure = None
    try:
        await rig.flash()
    except FlashError as error:
        failure = error
    if failure is None:
        assert rig.runs(NEW), "done was reported of another content"
    else:
        assert failure.code != "internal", failure.message
        assert failure.message
        assert failure.advice
        assert rig.staged or failure.touched or rig.runs(OLD)
    assert rig.model.now() - begun < BOUND_S
    assert not flasher_threads()
    # Of a closed one the wire may still carry a last word, once time moves again.
    assert sum(not one.closed for one in rig.model.wire.ports) == 1
    rig.liar.reform()
    await asyncio.to_thread(rig.mcu.power_cycle)
    rig.liar.reform()
    await rig.flash()
    assert rig.runs(NEW)


@pytest.mark.parametrize("seed", range(SEEDS_OF_EACH))
@pytest.mark.parametrize("kind", UDS_LIES)
async def test_a_wrong_answer_is_a_named_error_or_harmless(rig: Rig, kind: str, seed: int) -> None:
    await judge(rig, kind, seed)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(SEEDS_OF_EACH, LONG_SEEDS_OF_EACH))
@pytest.mark.parametrize("kind", UDS_LIES)
async def test_many_more_of_them(rig: Rig, kind: str, seed: int) -> None:
    await judge(rig, kind, seed)


ENDS: dict[str, set[str]] = {
    "silence": {"no_answer"},
    "deaf": {"no_answer"},
    "pending for ever": {"no_answer"},
    "busy for ever": {"ecu_busy"},
    "overflow": {"ecu_overflow"},
}


@pytest.mark.parametrize("kind", ENDS)
async def test_what_it_does_for_ever_has_its_name(rig: Rig, kind: str) -> None:
    rig.lies(kind, 0)
    rig.liar.turn, rig.liar.left = 1, inf
    with pytest.raises(FlashError) as caught:
        await rig.flash()
    assert caught.value.code in ENDS[kind]
    assert rig.runs(OLD)


async def test_an_ecu_that_says_yes_to_everything_and_does_nothing_is_not_done(rig: Rig) -> None:
    rig.lies("yes to nothing", 0)
    rig.liar.turn, rig.liar.left = 1, inf
    with pytest.raises(FlashError) as caught:
        await rig.flash()
    assert caught.value.code in {"not_proved", "not_booted"}
    assert rig.runs(OLD)


async def test_an_honest_one_needs_no_more_frames_than_the_lies_are_spread_over(rig: Rig) -> None:
    rig.lies("silence", 0)
    rig.liar.turn = 10_000
    await rig.flash()
    said = 10_000 - rig.liar.turn
    assert MOST_FRAMES * 0.8 <= said <= MOST_FRAMES * 1.3


def test_there_are_a_hundred() -> None:
    assert len(UDS_LIES) * SEEDS_OF_EACH >= 100
    unused: Any = set(ENDS) - set(UDS_LIES)
    assert not unused
