"""The real flasher flashes a part in virtual time: exact bus load, and cuts at any frame within seconds."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from firmware_flashers.base import FirmwareImage, FlashError
from firmware_flashers.registry import EcuSettings, open_flasher
from shared.release import FirmwareSpec
from shared.trust.document import make_document
from shared.trust.keys import load_signer, new_key
from sim.can_bits import classic_bits
from sim.can_model import ModelBus
from sim.mcu.assembly import McuSettings
from sim.mcu.boot import Verdict
from sim.mcu.faults import Faults
from sim.mcu.images import build_image
from sim.mcu.profile import EcuIdentity, Timing
from sim.mcu.server import Stm32Mcu, factory

IMAGE_BYTES = 8192
REQUEST = 0x7E0
PRIVATE, PUBLIC = new_key()


def signed(version: str, nbytes: int) -> FirmwareImage:
    data = build_image(version, nbytes, 0x0801_0000)
    spec = FirmwareSpec(
        kind="brake-controller",
        hardware=("rev-b",),
        version=version,
        release_counter=1,
        length=nbytes,
        sha256=hashlib.sha256(data).hexdigest(),
    )
    document = make_document(spec, load_signer(PRIVATE), datetime(2035, 1, 1, tzinfo=UTC))
    return FirmwareImage(spec=spec, data=data, document=document)


@dataclass(kw_only=True)
class Bench:
    model: ModelBus
    mcu: Stm32Mcu
    settings: EcuSettings

    async def flash(self, image: FirmwareImage) -> None:
        async with open_flasher(self.settings) as flasher:
            await flasher.stage(image)
            await flasher.activate()
            await flasher.verify(image)

    async def check_boot(self) -> Verdict:
        await asyncio.to_thread(self.mcu.power_cycle)
        return self.mcu.boots().verdict


@contextmanager
def make_bench(folder: Path, old: FirmwareImage, *, erase_s: float = 0.0) -> Iterator[Bench]:
    secret = folder / "secret"
    secret.write_bytes(bytes(32))
    secret.chmod(0o600)
    factory(folder / "flash.bin", old.data, old.document)
    mcu_settings = McuSettings(
        flash_file=folder / "flash.bin",
        identity=EcuIdentity(kind="brake-controller", hardware="rev-b"),
        public_keys=(PUBLIC,),
        security_secret=bytes(32),
        timing=Timing(erase_s=erase_s),
    )
    with (
        ModelBus(bitrate=500_000, log_frames=10_000) as model,
        model.endpoint(driver=False) as bus,
        Stm32Mcu(mcu_settings, bus) as mcu,
    ):
        settings = EcuSettings(
            component="brake",
            flasher="stm32-uds",
            interface="quarry-model",
            channel=model.name,
            tx_id=REQUEST,
            rx_id=0x7E8,
            kind="brake-controller",
            hardware="rev-b",
            security_secret_file=secret,
        )
        yield Bench(model=model, mcu=mcu, settings=settings)


async def test_a_minute_of_the_wire_is_exact(tmp_path: Path) -> None:
    """Erasing takes most of it here; what goes over the wire is charged bit by bit."""
    old, new = signed("1.0.0", IMAGE_BYTES), signed("1.1.0", 48 * 1024)
    with make_bench(tmp_path, old, erase_s=25.0) as bench:
        await bench.flash(new)
        assert bench.mcu.content(len(new.data)) == new.data
        frames = bench.model.log
        assert len(frames) == bench.model.frames
        bits = sum(classic_bits(can_id, False, data) for _, can_id, data in frames)
        assert bench.model.bus_s == pytest.approx(bits / 500_000)
        # Document area and one sector of the slot.
        assert 50.0 < bench.model.now() < 51.0 + 1.3 * bench.model.bus_s


@pytest.mark.parametrize("frame", [1, 30, 500, 1200])
async def test_a_part_that_loses_its_power_at_a_frame(tmp_path: Path, frame: int) -> None:
    old, new = signed("1.0.0", IMAGE_BYTES), signed("1.1.0", IMAGE_BYTES)
    with make_bench(tmp_path, old) as bench:
        bench.mcu.order(Faults(power_cut_at_frame=frame))
        with pytest.raises(FlashError):
            await bench.flash(new)
        assert await asyncio.to_thread(bench.mcu.wait_dark, 10)
        await bench.check_boot()
        await bench.flash(new)
        assert await bench.check_boot() is Verdict.BOOTABLE
        assert bench.mcu.content(IMAGE_BYTES) == new.data


@pytest.mark.parametrize("frame", [1, 30, 500, 1200])
async def test_a_tester_that_vanishes_at_a_frame(tmp_path: Path, frame: int) -> None:
    old, new = signed("1.0.0", IMAGE_BYTES), signed("1.1.0", IMAGE_BYTES)
    with make_bench(tmp_path, old) as bench:
        bench.model.freeze_after(frame, arbitration_id=REQUEST)
        with pytest.raises(FlashError):
            await bench.flash(new)
        await bench.flash(new)
        assert await bench.check_boot() is Verdict.BOOTABLE
        assert bench.mcu.content(IMAGE_BYTES) == new.data


@pytest.mark.parametrize("frame", [1, 31, 501, 1300])
async def test_a_wire_that_is_cut_at_a_frame(tmp_path: Path, frame: int) -> None:
    old, new = signed("1.0.0", IMAGE_BYTES), signed("1.1.0", IMAGE_BYTES)
    with make_bench(tmp_path, old) as bench:
        bench.model.cut_after(frame)
        with pytest.raises(FlashError):
            await bench.flash(new)
        bench.model.mend()
        await bench.flash(new)
        assert await bench.check_boot() is Verdict.BOOTABLE
        assert bench.mcu.content(IMAGE_BYTES) == new.data
