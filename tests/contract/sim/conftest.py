"""Simulated ECUs on python-can's in-process bus, for testers that know nothing of this project."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import can
import pytest

from shared.release import FirmwareSpec
from shared.trust.document import make_document
from shared.trust.keys import load_signer, new_key
from sim.mcu.assembly import McuSettings
from sim.mcu.esp32_mcu import Esp32Mcu, Esp32Settings, esp32_factory
from sim.mcu.esp_images import build_esp_image
from sim.mcu.images import build_image
from sim.mcu.profile import EcuIdentity
from sim.mcu.server import Stm32Mcu, factory

SECRET = bytes(range(32))
SLOT = 0x0801_0000
_channels = itertools.count()


@dataclass(frozen=True, kw_only=True)
class Signed:
    image: bytes
    document: bytes

    @property
    def packed(self) -> bytes:
        """The document as its area holds it, in whole words."""
        data = len(self.document).to_bytes(4, "little") + self.document
        return data + b"\xff" * (-len(data) % 4)


@dataclass(frozen=True, kw_only=True)
class Works:
    """Makes firmware and parts; `open_bus` gives a tester a bus to the part made last."""

    sign: Callable[[str, bytes], Signed]
    stm32: Callable[..., Stm32Mcu]
    esp32: Callable[..., Esp32Mcu]
    channel: str
    open_bus: Callable[[], can.BusABC]
    build_stm32: Callable[[str, int], bytes]
    build_esp32: Callable[..., bytes]


@pytest.fixture(scope="session")
def keys() -> tuple[bytes, bytes]:
    return new_key()


@pytest.fixture
def works(tmp_path: Path, keys: tuple[bytes, bytes]) -> Iterator[Works]:
    channel = f"contract-{next(_channels)}"
    identity = EcuIdentity(kind="brake-controller", hardware="rev-b")

    def sign(version: str, image: bytes) -> Signed:
        spec = FirmwareSpec(
            kind="brake-controller",
            hardware=("rev-b",),
            version=version,
            release_counter=1,
            length=len(image),
            sha256=hashlib.sha256(image).hexdigest(),
        )
        document = make_document(spec, load_signer(keys[0]), datetime(2035, 1, 1, tzinfo=UTC))
        return Signed(image=image, document=document)

    with ExitStack() as stack:

        def open_bus() -> can.BusABC:
            return stack.enter_context(can.Bus(channel, interface="virtual", ignore_config=True))

        def words(more: dict[str, Any]) -> dict[str, Any]:
            access = {} if "security_ca" in more else {"security_secret": SECRET}
            common = {"flash_file": tmp_path / "flash.bin", "identity": identity, "public_keys": (keys[1],)}
            return {**common, **access, **more}

        def stm32(*, holds: Signed | None = None, **more: Any) -> Stm32Mcu:
            settings = McuSettings(**words(more))
            if holds:
                factory(settings.flash_file, holds.image, holds.document, memory=settings.memory)
            return stack.enter_context(Stm32Mcu(settings, open_bus()))

        def esp32(*, holds: Signed, **more: Any) -> Esp32Mcu:
            settings = Esp32Settings(**words(more))
            esp32_factory(settings.flash_file, holds.image, holds.document)
            return stack.enter_context(Esp32Mcu(settings, open_bus()))

        yield Works(
            sign=sign,
            stm32=stm32,
            esp32=esp32,
            channel=channel,
            open_bus=open_bus,
            build_stm32=lambda version, nbytes: build_image(version, nbytes, SLOT),
            build_esp32=build_esp_image,
        )
