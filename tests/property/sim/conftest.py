"""A part's flash with the old firmware, copied for every example, and the requests that bring the new one."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest

from shared.release import FirmwareSpec
from shared.trust.document import make_document
from shared.trust.keys import load_signer, new_key
from sim.mcu.assembly import McuSettings, Part, assemble
from sim.mcu.boot import Installed
from sim.mcu.faults import Faults, FaultState
from sim.mcu.flash import Flash
from sim.mcu.images import build_image
from sim.mcu.profile import EcuIdentity
from sim.mcu.security import key_of
from sim.mcu.server import factory
from sim.mcu.stm32_uds import Stm32Uds
from sim.mcu.uds_server import Surroundings

SECRET = bytes(32)
SLOT = 0x0801_0000
DOCUMENT = 0x0800_8000
IMAGE_BYTES = 9000


@dataclass(frozen=True, kw_only=True)
class Firmware:
    image: bytes
    document: bytes
    sha256: str

    @property
    def parts(self) -> dict[int, bytes]:
        """What goes where, in whole words."""
        packed = len(self.document).to_bytes(4, "little") + self.document
        return {SLOT: self.image, DOCUMENT: packed + b"\xff" * (-len(packed) % 4)}


def area(start: int, size: int) -> bytes:
    return b"\x44" + start.to_bytes(4, "big") + size.to_bytes(4, "big")


class Bench:
    """One part. A request is bytes, or a function of the answer before it."""

    def __init__(self, settings: McuSettings, flash: Flash) -> None:
        self._settings = settings
        self.flash = flash
        self.part: Part[Stm32Uds]
        self.power_on()

    def power_on(self) -> None:
        self.part = assemble(
            self._settings,
            self.flash,
            Surroundings(
                faults=FaultState(Faults()), clock=lambda: 0.0, wait=lambda _: None, restart=lambda: None
            ),
        )

    def ask(self, request: bytes) -> bytes:
        answers: list[bytes] = []
        self.part.uds.handle(request, functional=False, reply=answers.append)
        return answers[-1]

    def enter(self) -> None:
        self.ask(b"\x10\x03")
        self.ask(b"\x10\x02")
        seed = self.ask(b"\x27\x01")[2:]
        self.ask(b"\x27\x02" + key_of(SECRET, seed))
        self.ask(b"\x2e\xf1\x5adesk")

    def installed(self) -> Installed:
        return self.part.uds.installed()

    def content_sha256(self) -> str:
        return hashlib.sha256(self.flash.read(SLOT, IMAGE_BYTES)).hexdigest()


@dataclass(frozen=True, kw_only=True)
class World:
    old: Firmware
    new: Firmware
    bench: Callable[[], AbstractContextManager[Bench]]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Two signed firmwares, and benches whose part holds the old one."""
    folder = tmp_path_factory.mktemp("mcu")
    private, public = new_key()

    def signed(version: str, counter: int) -> Firmware:
        image = build_image(version, IMAGE_BYTES, SLOT)
        sha256 = hashlib.sha256(image).hexdigest()
        spec = FirmwareSpec(
            kind="k",
            hardware=("h",),
            version=version,
            release_counter=counter,
            length=IMAGE_BYTES,
            sha256=sha256,
        )
        expires_at = datetime(2030, 1, 1, tzinfo=UTC)
        return Firmware(
            image=image, document=make_document(spec, load_signer(private), expires_at), sha256=sha256
        )

    old, new = signed("1.0.0", 1), signed("1.1.0", 2)
    factory(folder / "factory.bin", old.image, old.document)
    settings = McuSettings(
        flash_file=folder / "flash.bin",
        identity=EcuIdentity(kind="k", hardware="h"),
        public_keys=(public,),
        security_secret=SECRET,
    )

    @contextmanager
    def bench() -> Iterator[Bench]:
        shutil.copyfile(folder / "factory.bin", settings.flash_file)
        with Flash(settings.flash_file) as flash:
            yield Bench(settings, flash)

    return World(old=old, new=new, bench=bench)
