"""The flasher against the simulated STM32, on `virtual` and across processes' hub."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import can
import pytest

from firmware_flashers.base import FirmwareImage, Flasher
from firmware_flashers.registry import EcuSettings, open_flasher
from firmware_flashers.uds_profile import UdsProfile, UdsTiming
from shared.release import FirmwareSpec
from shared.trust.document import make_document
from shared.trust.keys import load_signer, new_key
from sim.can_hub import HubServer, hub_in_thread
from sim.mcu.assembly import McuSettings
from sim.mcu.images import build_image
from sim.mcu.memory import DEFAULT_MAP
from sim.mcu.profile import EcuIdentity, Timing
from sim.mcu.server import Stm32Mcu, factory

KIND, HARDWARE = "brake-controller", "B2"
SECRET = bytes(range(32))
PRIVATE, PUBLIC = new_key()
OTHER_PRIVATE, _ = new_key()

PATIENT = UdsTiming(
    margin_s=0.8, request_s=5.0, boot_s=5.0, reset_pause_s=0.02, busy_wait_s=0.01, security_delay_s=0.2
)
HASTY = UdsTiming(
    margin_s=0.1,
    flow_control_s=0.2,
    request_s=1.0,
    boot_s=0.5,
    session_s=1.0,
    silent_tries=1,
    download_tries=1,
)


@dataclass
class Truck:
    """A simulated part on a bus and what flashes it."""

    interface: str
    channel: str
    mcu: Stm32Mcu
    hub: HubServer | None
    old: FirmwareImage
    new: FirmwareImage
    secret_file: Path
    public_file: Path
    folder: Path
    refill: Callable[[], None]

    def flasher(self, *, hasty: bool = False, **changes: object) -> AbstractAsyncContextManager[Flasher]:
        values: dict[str, object] = {
            "component": "brakes",
            "flasher": "stm32-uds",
            "interface": self.interface,
            "channel": self.channel,
            "tx_id": 0x7E0,
            "rx_id": 0x7E8,
            "kind": KIND,
            "hardware": HARDWARE,
            "security_secret_file": self.secret_file,
            "profile": UdsProfile(timing=HASTY if hasty else PATIENT),
        }
        return open_flasher(EcuSettings(**(values | changes)))  # type: ignore[arg-type]

    @staticmethod
    def image(
        version: str, nbytes: int, *, stolen_key: bool = False, hardware: str = HARDWARE
    ) -> FirmwareImage:
        return make_image(version, nbytes, stolen_key=stolen_key, hardware=hardware)


def make_image(
    version: str, nbytes: int, *, stolen_key: bool = False, hardware: str = HARDWARE
) -> FirmwareImage:
    data = build_image(version, nbytes, DEFAULT_MAP.slot.start)
    spec = FirmwareSpec(
        kind=KIND,
        hardware=(hardware,),
        version=version,
        release_counter=1,
        length=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )
    signer = load_signer(OTHER_PRIVATE if stolen_key else PRIVATE)
    return FirmwareImage(
        spec=spec, data=data, document=make_document(spec, signer, datetime.now(UTC) + timedelta(days=30))
    )


OLD = make_image("1.0.0", 1024)
NEW = make_image("1.1.0", 1028)


@pytest.fixture(params=["virtual", "quarry-hub"])
def truck(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Truck]:
    """A truck whose MCU runs 1.0.0; on both kinds of bus."""
    yield from _truck(request.param, tmp_path)


@pytest.fixture
def hub_truck(tmp_path: Path) -> Iterator[Truck]:
    """The same on the hub alone, which can freeze an endpoint."""
    yield from _truck("quarry-hub", tmp_path)


def _truck(interface: str, folder: Path) -> Iterator[Truck]:
    secret_file = folder / "family.secret"
    secret_file.write_bytes(SECRET)
    secret_file.chmod(0o600)
    public_file = folder / "firmware.pub"
    public_file.write_bytes(PUBLIC)
    flash_file = folder / "flash.bin"
    factory(flash_file, OLD.data, OLD.document)
    settings = McuSettings(
        flash_file=flash_file,
        identity=EcuIdentity(kind=KIND, hardware=HARDWARE),
        public_keys=(PUBLIC,),
        security_secret=SECRET,
        timing=Timing(reset_s=0.005, pending_every_s=0.02, security_delay_s=30.0),
    )
    with ExitStack() as stack:
        hub = None
        channel = f"truck-{os.getpid()}-{folder.name}"
        if interface == "quarry-hub":
            channel = str(folder / "hub.sock")
            hub = stack.enter_context(hub_in_thread(channel))
        bus = can.Bus(channel, interface=interface, ignore_config=True)
        stack.callback(bus.shutdown)
        power = stack.enter_context(ExitStack())

        def fill() -> Stm32Mcu:
            return power.enter_context(Stm32Mcu(settings, bus))

        made = Truck(
            interface=interface,
            channel=channel,
            mcu=fill(),
            hub=hub,
            old=OLD,
            new=NEW,
            secret_file=secret_file,
            public_file=public_file,
            folder=folder,
            refill=lambda: None,
        )

        def refill() -> None:
            power.close()
            factory(flash_file, OLD.data, OLD.document)
            made.mcu = fill()

        made.refill = refill
        yield made
