"""An STM32 flashed by UDS through a kernel's CAN: the simulated part on one socket, we on another."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import can
import pytest

from cli.can_kernel import netlink
from firmware_flashers.base import FirmwareImage, FlashError, Progress
from firmware_flashers.registry import EcuSettings, open_flasher
from firmware_flashers.uds_profile import UdsProfile, UdsTiming
from shared.release import FirmwareSpec
from shared.trust.document import make_document
from shared.trust.keys import load_signer, new_key
from sim.mcu.assembly import McuSettings
from sim.mcu.boot import Verdict
from sim.mcu.images import build_image
from sim.mcu.isotp import Transport
from sim.mcu.memory import DEFAULT_MAP
from sim.mcu.profile import EcuIdentity, Timing
from sim.mcu.server import Stm32Mcu, factory

pytestmark = pytest.mark.socketcan
OpenCan = Callable[..., can.BusABC]

KIND, HARDWARE = "brake-controller", "B2"
SECRET = bytes(range(32))
PRIVATE, PUBLIC = new_key()


@dataclass(kw_only=True)
class Rig:
    """A part that runs `old` on an interface."""

    channel: str
    mcu: Stm32Mcu
    secret_file: Path
    old: FirmwareImage
    new: FirmwareImage

    def settings(self, isotp: Any) -> EcuSettings:
        return EcuSettings(
            component="brakes",
            flasher="stm32-uds",
            interface="socketcan",
            channel=self.channel,
            tx_id=0x7E0,
            rx_id=0x7E8,
            kind=KIND,
            hardware=HARDWARE,
            security_secret_file=self.secret_file,
            isotp=isotp,
            profile=UdsProfile(
                # A guest needs a second for a block of 4 KiB in Python.
                timing=UdsTiming(margin_s=3.0, flow_control_s=3.0, request_s=10.0, boot_s=10.0)
            ),
        )

    def holds(self, image: FirmwareImage) -> bool:
        content: bytes = self.mcu.content(len(image.data))
        return bool(self.mcu.boots().spec == image.spec) and content == image.data


def image(version: str, nbytes: int) -> FirmwareImage:
    data = build_image(version, nbytes, DEFAULT_MAP.slot.start)
    spec = FirmwareSpec(
        kind=KIND,
        hardware=(HARDWARE,),
        version=version,
        release_counter=1,
        length=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )
    until = datetime.now(UTC) + timedelta(days=30)
    return FirmwareImage(spec=spec, data=data, document=make_document(spec, load_signer(PRIVATE), until))


def rig_on(channel: str, open_can: OpenCan, folder: Path, *, block_size: int = 0) -> Iterator[Rig]:
    old, new = image("1.0.0", 1024), image("1.1.0", 6 * 1024)
    secret_file = folder / "family.secret"
    secret_file.write_bytes(SECRET)
    secret_file.chmod(0o600)
    flash_file = folder / "flash.bin"
    factory(flash_file, old.data, old.document)
    settings = McuSettings(
        flash_file=flash_file,
        identity=EcuIdentity(kind=KIND, hardware=HARDWARE),
        public_keys=(PUBLIC,),
        security_secret=SECRET,
        transport=Transport(block_size=block_size),
        timing=Timing(reset_s=0.02, pending_every_s=0.1, security_delay_s=30.0),
    )
    with ExitStack() as stack:
        mcu = stack.enter_context(Stm32Mcu(settings, open_can(channel, fd=False)))
        yield Rig(channel=channel, mcu=mcu, secret_file=secret_file, old=old, new=new)


@pytest.fixture
def rig(vcan0: str, open_can: OpenCan, tmp_path: Path) -> Iterator[Rig]:
    yield from rig_on(vcan0, open_can, tmp_path)


@pytest.fixture
def rig_alone(own_vcan: str, open_can: OpenCan, tmp_path: Path) -> Iterator[Rig]:
    """On an interface that the test may take down."""
    yield from rig_on(own_vcan, open_can, tmp_path)


@pytest.fixture
def rig_of_few_frames(
    small_receive_buffer: int, vcan0: str, open_can: OpenCan, tmp_path: Path
) -> Iterator[Rig]:
    """All sockets with the receive buffer that a kernel gives by itself, which a block overflows: some 270
    frames. So the part says after how many frames it wants to be asked, as parts with a FIFO do.
    """
    yield from rig_on(vcan0, open_can, tmp_path, block_size=32)


@pytest.fixture(params=["python", "kernel"])
def isotp(request: pytest.FixtureRequest) -> str:
    if request.param == "kernel":
        request.getfixturevalue("kernel_isotp")
    return str(request.param)


async def flash(rig: Rig, isotp: str) -> None:
    async with open_flasher(rig.settings(isotp)) as ecu:
        await ecu.stage(rig.new)
        await ecu.activate()
        await ecu.verify(rig.new)


async def test_it_is_flashed_and_proved(rig: Rig, isotp: str) -> None:
    await flash(rig, isotp)
    assert rig.holds(rig.new)


async def test_it_is_flashed_with_the_receive_buffers_that_a_machine_has(
    rig_of_few_frames: Rig, isotp: str
) -> None:
    await flash(rig_of_few_frames, isotp)
    assert rig_of_few_frames.holds(rig_of_few_frames.new)


async def test_an_interface_that_goes_down_on_the_way_ends_named_and_nothing_torn_boots(
    rig_alone: Rig, isotp: str
) -> None:
    rig = rig_alone
    async with open_flasher(rig.settings(isotp)) as ecu:

        def at(progress: Progress) -> None:
            if progress.step == "writing":
                netlink.set_link(rig.channel, up=False)

        with pytest.raises(FlashError) as caught:
            await ecu.stage(rig.new, progress=at)
    assert (caught.value.retryable, caught.value.touched) == (True, True)
    assert rig.mcu.boots().verdict is not Verdict.BOOTABLE
