"""A simulated part in its ROM loader and what flashes it, on the model bus (virtual time) or another one."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import can
import pytest

from firmware_flashers.base import FirmwareImage, Identity, MemoryRange
from firmware_flashers.can_link import open_link
from firmware_flashers.rom_profile import RomProfile, RomTiming
from firmware_flashers.stm32_rom_flash import RomFlasher
from shared.release import FirmwareSpec
from sim.can_hub import hub_in_thread
from sim.can_model import ModelBus
from sim.mcu.images import build_image
from sim.mcu.rom_loader import mark_of
from sim.mcu.rom_mcu import RomMcu
from sim.mcu.rom_settings import RomSettings

KIND, HARDWARE = "brake-controller", "rev-b"
START = 0x0800_0000
PAGE = 2048
STACK = 0x2000_1800
FAMILIES = {"stm32-rom": "stm32f105", "stm32-rom-fd": "stm32l552"}
"""Parts with pages of 2 KiB: an image over two of them needs few frames."""
RATES: dict[str, dict[str, int]] = {
    "stm32-rom": {"bitrate": 125_000},
    "stm32-rom-fd": {"bitrate": 250_000, "data_bitrate": 1_000_000},
}
HASTY = RomTiming(
    quiet_s=0.05,
    ack_s=0.2,
    sync_s=1.0,
    probe_s=0.02,
    erase_s=1.0,
    mass_erase_s=2.0,
    program_s=0.5,
    reset_s=1.0,
    boot_s=0.1,
    enter_s=5.0,
)
"""For virtual time, where nobody is ever late."""


def signed(version: str, data: bytes, *, hardware: str = HARDWARE) -> FirmwareImage:
    """What the flasher is given; ROM loaders look at no document."""
    return FirmwareImage(
        spec=FirmwareSpec(
            kind=KIND,
            hardware=(hardware,),
            version=version,
            release_counter=1,
            length=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
        ),
        data=data,
        document=b"",
    )


def small_image(version: str, *, start: int = START) -> FirmwareImage:
    """Vectors and a little code in one page, a little more in the next, erased bytes between them."""
    data = bytearray(b"\xff" * (PAGE + 64))
    data[:8] = struct.pack("<II", STACK, start + 0x101)
    data[0x100:0x140] = hashlib.sha512(version.encode()).digest()
    data[PAGE:] = hashlib.sha512(b"second page of " + version.encode()).digest()
    return signed(version, bytes(data))


def dense_image(version: str, nbytes: int, *, start: int = START) -> FirmwareImage:
    """No erased byte to skip; its stack lies where every family has RAM."""
    return signed(version, struct.pack("<I", STACK) + build_image(version, nbytes, start)[4:])


@dataclass
class RomBench:
    """One part on one bus. `flasher()` opens what flashes it, with changes of the profile as arguments."""

    protocol: str
    family: str
    mcu: RomMcu
    model: ModelBus | None
    link: dict[str, Any]
    bus: can.BusABC
    timing: RomTiming
    slot: MemoryRange | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def profile(self, **changes: Any) -> RomProfile:
        values: dict[str, Any] = {
            "protocol": self.protocol,
            "family": self.family,
            "timing": self.timing,
            "slot": self.slot,
        }
        return RomProfile(**(values | self.extra | changes))

    @asynccontextmanager
    async def flasher(self, *, enter: tuple[str, ...] = (), **changes: Any) -> AsyncIterator[RomFlasher]:
        async with (
            open_link(**self.link) as link,
            RomFlasher(
                component="brakes",
                kind=KIND,
                hardware=HARDWARE,
                profile=self.profile(**changes),
                link=link,
                enter=enter,
            ) as flasher,
        ):
            yield flasher

    async def flash(self, image: FirmwareImage, **changes: Any) -> Identity:
        """The whole way."""
        async with self.flasher(**changes) as flasher:
            await flasher.stage(image)
            await flasher.activate()
            return await flasher.verify(image)

    def frames(self) -> int:
        assert self.model is not None
        return self.model.frames

    @property
    def start(self) -> int:
        return START if self.slot is None else self.slot.start

    def holds(self, image: FirmwareImage) -> bool:
        return self.mcu.content(self.start, len(image.data)) == image.data

    def runs(self, image: FirmwareImage) -> bool:
        return self.mcu.running == mark_of(image.data)


@dataclass(frozen=True)
class Images:
    small: Callable[..., FirmwareImage]
    dense: Callable[..., FirmwareImage]
    signed: Callable[..., FirmwareImage]


MakeBench = Callable[..., RomBench]


@contextmanager
def benches(tmp_path: Path) -> Iterator[MakeBench]:
    """Makes benches: protocol, kind of bus, old image, changes of RomSettings and of the profile."""
    with ExitStack() as stack:
        number = 0

        def make(
            protocol: str = "stm32-rom",
            *,
            on: str = "model",
            family: str | None = None,
            old: FirmwareImage | None = None,
            slot: MemoryRange | None = None,
            part: dict[str, Any] | None = None,
            prepare: Callable[[RomMcu], None] = lambda _: None,
            rates: dict[str, int] | None = None,
            **profile: Any,
        ) -> RomBench:
            nonlocal number
            number += 1
            family = family or FAMILIES[protocol]
            settings = RomSettings(
                flash_file=tmp_path / f"flash-{number}.bin",
                family=family,
                boot_start=None if slot is None else slot.start,
                **({"speed_s": 0.05} | (part or {})),
            )
            fd = protocol == "stm32-rom-fd"
            model, link, bus = open_bus(
                stack, on, f"{tmp_path.name}-{number}", tmp_path, fd=fd, rates=rates or RATES[protocol]
            )
            mcu = RomMcu(settings, bus)
            if old is not None:
                mcu.fill(old.data)
            prepare(mcu)
            stack.enter_context(mcu)
            # On a real clock the machine may be busy with something else.
            timing = HASTY if model else dataclasses.replace(HASTY, ack_s=2.0, probe_s=0.2, sync_s=4.0)
            return RomBench(
                protocol=protocol,
                family=family,
                mcu=mcu,
                model=model,
                link=link,
                bus=bus,
                timing=timing,
                slot=slot,
                extra=profile,
            )

        yield make


@pytest.fixture
def make_bench(tmp_path: Path) -> Iterator[MakeBench]:
    """Benches for one test."""
    with benches(tmp_path) as make:
        yield make


@pytest.fixture
def open_benches() -> Callable[[Path], AbstractContextManager[MakeBench]]:
    """The same for tests that need many after each other."""
    return benches


def open_bus(
    stack: ExitStack, on: str, name: str, folder: Path, *, fd: bool, rates: dict[str, int]
) -> tuple[ModelBus | None, dict[str, Any], can.BusABC]:
    """The part's end of a bus, and how the tester reaches it."""
    match on:
        case "model":
            model = stack.enter_context(ModelBus(name=name, log_frames=4000, **rates))
            bus: can.BusABC = stack.enter_context(model.endpoint(fd=fd, driver=False))
            return model, {"interface": "quarry-model", "channel": name, "fd": fd, **rates}, bus
        case "virtual":
            bus = stack.enter_context(can.Bus(name, interface="virtual", ignore_config=True))
            return None, {"interface": "virtual", "channel": name, "fd": fd}, bus
        case _:
            channel = str(folder / f"{name[-8:]}.sock")
            stack.enter_context(hub_in_thread(channel))
            bus = stack.enter_context(can.Bus(channel, interface="quarry-hub", ignore_config=True, fd=fd))
            return None, {"interface": "quarry-hub", "channel": channel, "fd": fd}, bus


@pytest.fixture
def images() -> Images:
    """How images are made."""
    return Images(small=small_image, dense=dense_image, signed=signed)


@pytest.fixture(params=["stm32-rom", "stm32-rom-fd"])
def protocol(request: pytest.FixtureRequest) -> str:
    """Both loaders."""
    return str(request.param)
