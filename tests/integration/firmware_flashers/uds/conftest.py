"""Simulated ECUs on the model bus, where a minute of the wire passes in a second, and what flashes them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from firmware_flashers.base import BenchFlasher, FirmwareImage, FlashError
from firmware_flashers.registry import EcuSettings, open_flasher
from firmware_flashers.uds_profile import PROFILES, UdsProfile, UdsTiming
from shared.release import FirmwareSpec
from shared.trust.document import make_document
from shared.trust.keys import load_signer, new_key
from sim.can_model import ModelBus
from sim.mcu.assembly import McuSettings
from sim.mcu.esp32_mcu import Esp32Mcu, Esp32Settings, esp32_factory
from sim.mcu.esp_images import build_esp_image
from sim.mcu.images import build_image
from sim.mcu.memory import DEFAULT_MAP
from sim.mcu.profile import EcuIdentity, Timing
from sim.mcu.server import Stm32Mcu, factory

KIND, HARDWARE = "brake-controller", "B2"
SECRET = bytes(range(32))
PRIVATE, PUBLIC = new_key()
LOG_FRAMES = 5000
STM32, ESP32 = "stm32-uds", "esp32-uds"

HASTY = UdsTiming(
    margin_s=0.1,
    flow_control_s=0.2,
    consecutive_s=0.2,
    request_s=2.0,
    session_s=2.0,
    boot_s=2.0,
    silent_tries=1,
    download_tries=1,
)
"""Of a tester that is going to fail anyway."""


def sign(data: bytes, version: str, *, stolen_key: bool = False) -> FirmwareImage:
    spec = FirmwareSpec(
        kind=KIND,
        hardware=(HARDWARE,),
        version=version,
        release_counter=1,
        length=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )
    private = new_key()[0] if stolen_key else PRIVATE
    expires = datetime.now(UTC) + timedelta(days=30)
    return FirmwareImage(spec=spec, data=data, document=make_document(spec, load_signer(private), expires))


def make_image(word: str, version: str, nbytes: int, **more: Any) -> FirmwareImage:
    stolen_key = more.pop("stolen_key", False)
    data = (
        build_esp_image(version=version, nbytes=nbytes, **more)
        if word == ESP32
        else build_image(version, nbytes, DEFAULT_MAP.slot.start)
    )
    return sign(data, version, stolen_key=stolen_key)


@dataclass
class Ecu:
    """One ECU on a model bus. `mcu` is Stm32Mcu or Esp32Mcu."""

    word: str
    model: ModelBus
    mcu: Any
    folder: Path
    old: FirmwareImage
    new: FirmwareImage
    fd: bool
    ids: dict[str, int]
    secret_file: Path
    profile: UdsProfile

    def flasher(
        self, *, hasty: bool = False, settings: dict[str, Any] | None = None, **profile: Any
    ) -> AbstractAsyncContextManager[BenchFlasher]:
        changed = replace(self.profile, **profile)
        if hasty:
            changed = replace(changed, timing=HASTY)
        values: dict[str, Any] = {
            "component": "brakes",
            "flasher": self.word,
            "interface": "quarry-model",
            "channel": self.model.name,
            "fd": self.fd,
            "kind": KIND,
            "hardware": HARDWARE,
            "security_secret_file": self.secret_file,
            "profile": changed,
        }
        return open_flasher(EcuSettings(**(values | self.ids | (settings or {}))))

    async def flash(self, image: FirmwareImage | None = None, **how: Any) -> None:
        """All that brings an image onto the ECU for good."""
        image = image or self.new
        async with self.flasher(**how) as ecu:
            await ecu.stage(image)
            await ecu.activate()
            await ecu.verify(image)
            await ecu.confirm()

    async def settle(self, seconds: float = 0.05) -> None:
        """Let time pass: what a tester said last, nobody waited for."""

        def attend() -> None:
            endpoint = self.model.endpoint(fd=self.fd)
            try:
                with endpoint.quarry_clock.attending():
                    endpoint.quarry_clock.sleep(seconds)
            finally:
                endpoint.shutdown()

        await asyncio.to_thread(attend)

    def image(self, version: str, nbytes: int, **more: Any) -> FirmwareImage:
        return make_image(self.word, version, nbytes, **more)

    @staticmethod
    def sign(data: bytes, version: str) -> FirmwareImage:
        return sign(data, version)

    def runs(self) -> FirmwareSpec | None:
        """What runs now; None when the ECU waits in its bootloader or is mute. Never torn code."""
        if self.word == STM32:
            installed = self.mcu.boots()
            if installed.spec is None or self.mcu.uds.in_bootloader:
                return None
            content = self.mcu.content(installed.spec.length)
            assert hashlib.sha256(content).hexdigest() == installed.spec.sha256
            return installed.spec  # type: ignore[no-any-return]
        if self.mcu.uds.running is None:
            return None
        slot, spec = self.mcu.uds.running
        assert hashlib.sha256(self.mcu.content(slot, spec.length)).hexdigest() == spec.sha256
        return spec  # type: ignore[no-any-return]

    def image_state(self) -> int:
        """Of the ESP32's running image."""
        slot, _ = self.mcu.uds.running
        return self.mcu.uds._bootloader.otadata.state_of(slot) & 0xFF  # type: ignore[no-any-return]


@dataclass
class Lab:
    """Makes buses and ECUs that end with the test."""

    folder: Path
    stack: ExitStack
    secret_file: Path
    made: int = field(default=0)

    def bus(self, **how: Any) -> ModelBus:
        self.made += 1
        return self.stack.enter_context(ModelBus(**how))

    def ecu(
        self,
        word: str = STM32,
        *,
        model: ModelBus | None = None,
        fd: bool = False,
        extended: bool = False,
        number: int = 0,
        old: FirmwareImage | None = None,
        new: FirmwareImage | None = None,
        faults: Any = None,
        timing: Timing | None = None,
        **settings: Any,
    ) -> Ecu:
        """A part that runs `old`, and its `new` image; both are small."""
        if model is None:
            model = self.bus(bitrate=500_000, data_bitrate=2_000_000 if fd else None, log_frames=LOG_FRAMES)
        nbytes = 1024
        old = old or make_image(word, "1.0.0", nbytes)
        new = new or make_image(word, "1.1.0", nbytes)
        self.made += 1
        flash_file = self.folder / f"flash-{self.made}.bin"
        memory = {"memory": settings["memory"]} if "memory" in settings else {}
        (esp32_factory if word == ESP32 else factory)(flash_file, old.data, old.document, **memory)
        ids = (
            {
                "tx_id": 0x18DA00F1 | (0x10 + number) << 8,
                "rx_id": 0x18DAF110 + number,
                "functional_id": 0x18DB33F1,
            }
            if extended
            else {"tx_id": 0x7E0 + number, "rx_id": 0x7E8 + number, "functional_id": 0x7DF}
        )
        if "security_ca" not in settings:
            settings["security_secret"] = SECRET
        made = (Esp32Settings if word == ESP32 else McuSettings)(
            flash_file=flash_file,
            identity=EcuIdentity(kind=KIND, hardware=HARDWARE),
            public_keys=(PUBLIC,),
            request_id=ids["tx_id"],
            response_id=ids["rx_id"],
            functional_id=ids["functional_id"],
            fd=fd,
            timing=timing or Timing(),
            **settings,
        )
        bus = model.endpoint(fd=fd, driver=False)
        self.stack.callback(bus.shutdown)
        kind: Any = Esp32Mcu if word == ESP32 else Stm32Mcu
        mcu = self.stack.enter_context(kind(made, bus, faults=faults))
        return Ecu(
            word=word,
            model=model,
            mcu=mcu,
            folder=self.folder,
            old=old,
            new=new,
            fd=fd,
            ids=ids,
            secret_file=self.secret_file,
            profile=PROFILES[word],
        )


@contextmanager
def make_lab(folder: Path) -> Iterator[Lab]:
    secret_file = folder / "family.secret"
    secret_file.write_bytes(SECRET)
    secret_file.chmod(0o600)
    with ExitStack() as stack:
        yield Lab(folder=folder, stack=stack, secret_file=secret_file)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """An empty one."""
    with make_lab(tmp_path) as made:
        yield made


@pytest.fixture(scope="session")
def new_lab() -> Callable[[Path], Any]:
    """As many as a walk over all frames needs."""
    return make_lab


@pytest.fixture(scope="session")
def fails() -> Callable[..., Any]:
    """Runs what is expected to fail by a FlashError; returns it, or None when it went well."""

    async def run(act: Any) -> FlashError | None:
        try:
            await act
        except FlashError as error:
            return error
        return None

    return run


@pytest.fixture(scope="session")
def in_thread() -> Callable[..., Any]:
    """Blocking acts on a part, off the loop."""
    return asyncio.to_thread
