"""A simulated ECU without a bus, on a clock that only the test moves, and a tester that follows the rules."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from shared.release import FirmwareSpec
from shared.trust.document import make_document
from shared.trust.keys import load_signer, new_key
from sim.mcu.assembly import McuSettings, Part, assemble
from sim.mcu.esp32_mcu import Esp32Settings, assemble_esp32, esp32_factory
from sim.mcu.esp32_uds import Esp32Uds
from sim.mcu.esp_images import build_esp_image
from sim.mcu.faults import Faults, FaultState
from sim.mcu.flash import Flash
from sim.mcu.images import build_image
from sim.mcu.memory import DEFAULT_MAP
from sim.mcu.profile import EcuIdentity, Timing
from sim.mcu.security import key_of
from sim.mcu.server import factory
from sim.mcu.stm32_uds import Stm32Uds
from sim.mcu.uds_server import Surroundings

SECRET = bytes(range(32))
DOCUMENT = (0x0800_8000, 0x4000)
SLOT = 0x0801_0000


@dataclass(frozen=True, kw_only=True)
class Signed:
    image: bytes
    document: bytes
    spec: FirmwareSpec


@dataclass(kw_only=True)
class Signer:
    """Signs images for the ECU, or for something near to it."""

    private: bytes
    public: bytes

    def sign(
        self,
        version: str = "1.0.0",
        *,
        image: bytes | None = None,
        kind: str = "brake-controller",
        hardware: str = "rev-b",
    ) -> Signed:
        image = image or build_image(version, 4096, SLOT)
        spec = FirmwareSpec(
            kind=kind,
            hardware=(hardware,),
            version=version,
            release_counter=1,
            length=len(image),
            sha256=hashlib.sha256(image).hexdigest(),
        )
        expires_at = datetime(2030, 1, 1, tzinfo=UTC) + timedelta(days=1)
        return Signed(
            image=image, document=make_document(spec, load_signer(self.private), expires_at), spec=spec
        )


def area(start: int, size: int) -> bytes:
    return b"\x44" + start.to_bytes(4, "big") + size.to_bytes(4, "big")


@dataclass(kw_only=True)
class Ecu:
    """One part on a flash; `now` is its clock in seconds."""

    settings: McuSettings
    flash: Flash
    now: float = 1000.0
    resets: int = 0
    part: Part[Stm32Uds] = field(init=False)

    def power_on(self, faults: Faults | None = None) -> None:
        self.part = assemble(
            self.settings,
            self.flash,
            Surroundings(
                faults=FaultState(faults or Faults()),
                clock=lambda: self.now,
                wait=self.wait,
                restart=self._reset,
            ),
        )

    def _reset(self) -> None:
        self.resets += 1

    def wait(self, seconds: float) -> None:
        self.now += seconds

    def all_answers(self, request: bytes | str, *, functional: bool = False) -> list[bytes]:
        raw = bytes.fromhex(request) if isinstance(request, str) else request
        answers: list[bytes] = []
        self.part.uds.tick()
        self.part.uds.handle(raw, functional=functional, reply=answers.append)
        return answers

    def ask(self, request: bytes | str) -> str:
        """The final answer in hex; empty when there is none."""
        answers = self.all_answers(request)
        assert all(one[2] == 0x78 for one in answers[:-1])
        return answers[-1].hex() if answers else ""

    # --- a tester that follows the rules ---------------------------------------------------------

    def unlock(self) -> None:
        assert self.ask("1003") == "5003003201f4"
        assert self.ask("1002") == "5002003201f4"
        seed = bytes.fromhex(self.ask("2701"))[2:]
        assert self.ask(b"\x27\x02" + key_of(SECRET, seed)) == "6702"

    def prepare(self) -> None:
        self.unlock()
        assert self.ask(b"\x2e\xf1\x5aworkshop 7") == "6ef15a"

    def erase(self, start: int, size: int) -> None:
        assert self.ask(b"\x31\x01\xff\x00" + area(start, size)) == "7101ff0000"

    def download(self, start: int, data: bytes, *, block: int = 4093) -> None:
        data += b"\xff" * (-len(data) % 4)
        assert self.ask(b"\x34\x00" + area(start, len(data))) == "74200fff"
        counter = 0
        for at in range(0, len(data), block):
            counter = (counter + 1) & 0xFF
            assert self.ask(bytes([0x36, counter]) + data[at : at + block]) == f"76{counter:02x}"
        assert self.ask("37") == "77"
        checked = self.ask(b"\x31\x01\x02\x02" + area(start, len(data)) + hashlib.sha256(data).digest())
        assert checked == "7101020200"

    def program(self, signed: Signed) -> None:
        """The whole sequence, from session to reset."""
        self.prepare()
        self.erase(*DOCUMENT)
        self.erase(SLOT, 0x1_0000)
        self.download(SLOT, signed.image)
        self.download(DOCUMENT[0], len(signed.document).to_bytes(4, "little") + signed.document)
        assert self.ask("3101ff01") == "7101ff0100"
        assert self.ask("1101") == "5101"


def slot_area(slot: int) -> tuple[int, int]:
    """Where an ESP32's image and document lie."""
    return 0x1_0000 + slot * 0x10_0000, 0x21_0000 + slot * 0x4000


@dataclass(kw_only=True)
class Esp:
    """An ESP32 on a flash, on a clock that only the test moves; `part` as it runs now."""

    settings: Esp32Settings
    flash: Flash
    now: float = 1000.0
    resets: int = 0
    part: Part[Esp32Uds] = field(init=False)

    def power_on(self, faults: Faults | None = None) -> None:
        around = Surroundings(
            faults=FaultState(faults or Faults()),
            clock=lambda: self.now,
            wait=self.wait,
            restart=self._reset,
        )
        self.part = assemble_esp32(self.settings, self.flash, around)

    def _reset(self) -> None:
        self.resets += 1

    def wait(self, seconds: float) -> None:
        self.now += seconds

    def ask(self, request: bytes | str) -> str:
        """The final answer in hex; empty when there is none."""
        raw = bytes.fromhex(request) if isinstance(request, str) else request
        answers: list[bytes] = []
        self.part.uds.tick()
        self.part.uds.handle(raw, functional=False, reply=answers.append)
        return answers[-1].hex() if answers else ""

    @property
    def state(self) -> tuple[str, int, int, int]:
        """Version, slot, state of the image, secure version of the eFuse; ("", ...) when nothing runs."""
        version = bytes.fromhex(self.ask("22f189"))[3:].decode()
        if not version:
            return "", -1, -1, self.flash.counter
        words = [bytes.fromhex(self.ask(f"22fd0{did}"))[3:] for did in (2, 3, 4)]
        return version, words[0][0], words[1][0], int.from_bytes(words[2], "big")

    def unlock(self, session: str = "03") -> None:
        assert self.ask("1003") == "5003003201f4"
        if session == "02":
            assert self.ask("1002") == "5002003201f4"
        seed = bytes.fromhex(self.ask("2701"))[2:]
        assert self.ask(b"\x27\x02" + key_of(SECRET, seed)) == "6702"

    def prepare(self) -> None:
        self.unlock("02")
        assert self.ask(b"\x2e\xf1\x5aworkshop 7") == "6ef15a"

    def erase(self, start: int, size: int) -> str:
        return self.ask(b"\x31\x01\xff\x00" + area(start, size))

    def download(self, start: int, data: bytes) -> None:
        data += b"\xff" * (-len(data) % 4)
        assert self.ask(b"\x34\x00" + area(start, len(data))) == "74200fff"
        for number, at in enumerate(range(0, len(data), 4093)):
            assert self.ask(bytes([0x36, (number + 1) & 0xFF]) + data[at : at + 4093])[:2] == "76"
        assert self.ask("37") == "77"

    def stage(self, signed: Signed) -> str:
        """The whole sequence into the passive slot; the answer to the check of dependencies."""
        image_at, document_at = slot_area(1 - self.part.uds.running[0])  # type: ignore[index]
        self.prepare()
        assert self.erase(document_at, 0x4000) == "7101ff0000"
        assert self.erase(image_at, -(-len(signed.image) // 4096) * 4096) == "7101ff0000"
        self.download(image_at, signed.image)
        self.download(document_at, len(signed.document).to_bytes(4, "little") + signed.document)
        return self.ask("3101ff01")

    def update(self, signed: Signed) -> None:
        """Stage and reset."""
        assert self.stage(signed) == "7101ff0100"
        assert self.ask("1101") == "5101"

    def confirm(self) -> str:
        self.unlock()
        return self.ask("31010210")

    def roll_back(self) -> str:
        self.unlock()
        return self.ask("31010211")


@pytest.fixture
def make_esp(tmp_path: Path, signer: Signer) -> Iterator[Callable[..., Esp]]:
    """Powered ESP32s that left the factory with that firmware."""
    opened: list[Flash] = []

    def make(*, holds: Signed, faults: Faults | None = None, **more: Any) -> Esp:
        path = tmp_path / f"esp-{len(opened)}.bin"
        esp32_factory(path, holds.image, holds.document)
        settings = Esp32Settings(
            flash_file=path,
            identity=EcuIdentity(kind="brake-controller", hardware="rev-b", serial="E-5"),
            public_keys=(signer.public,),
            security_secret=SECRET,
            **more,
        )
        flash = Flash(path, memory=settings.memory).__enter__()
        opened.append(flash)
        esp = Esp(settings=settings, flash=flash)
        esp.power_on(faults)
        return esp

    yield make
    for flash in opened:
        flash.close()


@pytest.fixture(scope="session")
def esp_firmware(signer: Signer) -> Callable[..., Signed]:
    """Builds and signs an application."""

    def build(version: str, *, nbytes: int = 8192, **words: Any) -> Signed:
        return signer.sign(version, image=build_esp_image(version=version, nbytes=nbytes, **words))

    return build


@pytest.fixture(scope="session")
def signer() -> Signer:
    private, public = new_key()
    return Signer(private=private, public=public)


MakeEcu = Callable[..., Ecu]


@pytest.fixture
def make_ecu(tmp_path: Path, signer: Signer) -> Iterator[MakeEcu]:
    """Powered ECUs; with `holds` they leave the factory with that firmware."""
    opened: list[Flash] = []

    def make(
        *,
        holds: Signed | None = None,
        timing: Timing | None = None,
        faults: Faults | None = None,
        **more: Any,
    ) -> Ecu:
        path = tmp_path / f"flash-{len(opened)}.bin"
        if "security_ca" not in more:
            more["security_secret"] = SECRET
        if holds:
            factory(path, holds.image, holds.document, memory=more.get("memory", DEFAULT_MAP))
        settings = McuSettings(
            flash_file=path,
            identity=EcuIdentity(kind="brake-controller", hardware="rev-b", serial="S-77"),
            public_keys=(signer.public,),
            timing=timing or Timing(),
            **more,
        )
        flash = Flash(path, memory=settings.memory).__enter__()
        opened.append(flash)
        ecu = Ecu(settings=settings, flash=flash)
        ecu.power_on(faults)
        return ecu

    yield make
    for flash in opened:
        flash.close()


@pytest.fixture
def ecu(make_ecu: MakeEcu, signer: Signer) -> Ecu:
    """An ECU that runs 1.0.0."""
    return make_ecu(holds=signer.sign())
