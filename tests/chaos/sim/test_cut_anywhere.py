"""The real flasher against the simulated MCU, one of them gone at a CAN frame: never torn."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import can
import pytest

from firmware_flashers.base import FirmwareImage, FlashError
from firmware_flashers.registry import EcuSettings, open_flasher
from firmware_flashers.uds_profile import UdsProfile, UdsTiming
from shared.release import FirmwareSpec
from shared.trust.document import make_document
from shared.trust.keys import load_signer, new_key
from sim.can_bus import HubServer, hub_in_thread
from sim.mcu.assembly import McuSettings
from sim.mcu.boot import Verdict
from sim.mcu.faults import Faults
from sim.mcu.images import build_image
from sim.mcu.profile import EcuIdentity
from sim.mcu.server import Stm32Mcu, factory

REQUEST_ID = 0x7E0
IMAGE_BYTES = 8192
HASTY = UdsTiming(
    margin_s=0.3, flow_control_s=0.4, consecutive_s=0.4, silent_tries=1, download_tries=1, boot_s=5.0
)


@dataclass(kw_only=True)
class Bench:
    hub: HubServer
    mcu: Stm32Mcu
    settings: EcuSettings
    old: FirmwareImage
    new: FirmwareImage

    async def flash(self) -> None:
        """The whole way of the new image."""
        async with open_flasher(self.settings) as flasher:
            await flasher.stage(self.new)
            await flasher.activate()
            await flasher.verify(self.new)

    def check_boot(self) -> Verdict:
        """After a power cycle: one of the two images whole, or the bootloader."""
        self.mcu.power_cycle()
        installed = self.mcu.boots()
        if installed.spec is not None:
            assert installed.spec in (self.old.spec, self.new.spec)
            content = self.mcu.content(IMAGE_BYTES)
            assert hashlib.sha256(content).hexdigest() == installed.spec.sha256
        return installed.verdict


@contextmanager
def make_bench(folder: Path) -> Iterator[Bench]:
    private, public = new_key()

    def signed(version: str) -> FirmwareImage:
        data = build_image(version, IMAGE_BYTES, 0x0801_0000)
        spec = FirmwareSpec(
            kind="brake-controller",
            hardware=("rev-b",),
            version=version,
            release_counter=1,
            length=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
        )
        document = make_document(spec, load_signer(private), datetime(2035, 1, 1, tzinfo=UTC))
        return FirmwareImage(spec=spec, data=data, document=document)

    old, new = signed("1.0.0"), signed("1.1.0")
    secret = folder / "secret"
    secret.write_bytes(bytes(range(32)))
    secret.chmod(0o600)
    factory(folder / "flash.bin", old.data, old.document)
    channel = str(folder / "can.sock")
    mcu_settings = McuSettings(
        flash_file=folder / "flash.bin",
        identity=EcuIdentity(kind="brake-controller", hardware="rev-b"),
        public_keys=(public,),
        security_secret=bytes(range(32)),
    )
    ecu_settings = EcuSettings(
        component="brake",
        flasher="stm32-uds",
        interface="quarry-hub",
        channel=channel,
        tx_id=REQUEST_ID,
        rx_id=0x7E8,
        kind="brake-controller",
        hardware="rev-b",
        security_secret_file=secret,
        profile=UdsProfile(timing=HASTY),
    )
    with (
        hub_in_thread(channel) as hub,
        can.Bus(channel, interface="quarry-hub", ignore_config=True) as bus,
        Stm32Mcu(mcu_settings, bus) as mcu,
    ):
        yield Bench(hub=hub, mcu=mcu, settings=ecu_settings, old=old, new=new)


async def fails(bench: Bench) -> None:
    """The flasher finds out by itself and says so."""
    with pytest.raises(FlashError):
        await bench.flash()


SAMPLE = [1, 12, 24, 300, 1250, 1313]
"""Identification, session, erase of the document, image, document, last check: of 1324 frames in all."""
EVERY = [pytest.param(n, marks=pytest.mark.long) for n in range(2, 1316, 37)]


@pytest.mark.parametrize("frame", [*SAMPLE, *EVERY])
async def test_the_tester_vanishes_at_a_frame(tmp_path: Path, frame: int) -> None:
    with make_bench(tmp_path) as bench:
        bench.hub.freeze_after(frame, arbitration_id=REQUEST_ID)
        await fails(bench)
        await asyncio.to_thread(bench.check_boot)
        await bench.flash()
        assert await asyncio.to_thread(bench.check_boot) is Verdict.BOOTABLE
        assert bench.mcu.content(IMAGE_BYTES) == bench.new.data


@pytest.mark.parametrize("frame", [*SAMPLE, *EVERY])
async def test_the_mcu_loses_its_power_at_a_frame(tmp_path: Path, frame: int) -> None:
    with make_bench(tmp_path) as bench:
        bench.mcu.order(Faults(power_cut_at_frame=frame))
        await fails(bench)
        assert await asyncio.to_thread(bench.mcu.wait_dark, 10)
        await asyncio.to_thread(bench.check_boot)
        await bench.flash()
        assert await asyncio.to_thread(bench.check_boot) is Verdict.BOOTABLE
        assert bench.mcu.content(IMAGE_BYTES) == bench.new.data


@pytest.mark.parametrize(
    "faults",
    [Faults(power_cut_at_erase=1), Faults(power_cut_at_byte=5000)],
    ids=["erase", "write"],
)
async def test_the_power_goes_inside_the_flash(tmp_path: Path, faults: Faults) -> None:
    with make_bench(tmp_path) as bench:
        bench.mcu.order(faults)
        await fails(bench)
        assert await asyncio.to_thread(bench.check_boot) is not Verdict.BOOTABLE
        await bench.flash()
        assert bench.mcu.content(IMAGE_BYTES) == bench.new.data
