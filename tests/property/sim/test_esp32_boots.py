"""An ESP32 through any life: it always boots an image that verifies, never one below its eFuse."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.release import FirmwareSpec
from shared.trust.document import make_document
from shared.trust.keys import load_signer, new_key
from sim.mcu.assembly import Part
from sim.mcu.esp32_mcu import Esp32Settings, assemble_esp32, esp32_factory
from sim.mcu.esp32_uds import Esp32Uds
from sim.mcu.esp_boot import EspMap
from sim.mcu.esp_images import build_esp_image
from sim.mcu.faults import Faults, FaultState
from sim.mcu.flash import Flash, PowerCut
from sim.mcu.memory import Area
from sim.mcu.otadata import ImageState
from sim.mcu.profile import EcuIdentity
from sim.mcu.security import key_of
from sim.mcu.uds_server import Surroundings

SECRET = bytes(32)
SMALL = EspMap(
    sectors=(4096,) * 32,
    slots=(Area(start=0x1_0000, end=0x1_1000), Area(start=0x1_1000, end=0x1_2000)),
    documents=(Area(start=0x1_2000, end=0x1_3000), Area(start=0x1_3000, end=0x1_4000)),
)
IMAGE_BYTES = 2048
SECURE_VERSIONS = 3


@dataclass(frozen=True, kw_only=True)
class Firmware:
    image: bytes
    document: bytes
    secure_version: int

    @property
    def packed(self) -> bytes:
        data = len(self.document).to_bytes(4, "little") + self.document
        return data + b"\xff" * (-len(data) % 4)


class Life:
    """One part. `confirmed` is the highest secure version that anybody confirmed."""

    def __init__(self, settings_: Esp32Settings, flash: Flash, firmwares: tuple[Firmware, ...]) -> None:
        self._settings = settings_
        self.flash = flash
        self._by_hash = {hashlib.sha256(one.image).digest(): one for one in firmwares}
        self.firmwares = firmwares
        self.faults = FaultState(Faults())
        self.part: Part[Esp32Uds]
        self.confirmed = 0
        self.counter = 0
        self.now = 0.0
        self.boot()

    def boot(self) -> None:
        """Power on, again and again while that is cut too; then what runs is looked at."""
        for _ in range(6):
            try:
                around = Surroundings(
                    faults=self.faults, clock=lambda: self.now, wait=lambda _: None, restart=lambda: None
                )
                self.part = assemble_esp32(self._settings, self.flash, around)
                break
            except PowerCut:
                continue
        else:
            raise AssertionError("it is cut at most twice")
        self.look()

    def look(self) -> None:
        running = self.part.uds.running
        assert running is not None, "there is always something to boot"
        slot, spec = running
        content = self.flash.read(SMALL.slots[slot].start, IMAGE_BYTES)
        firmware = self._by_hash[hashlib.sha256(content).digest()]
        assert spec.sha256 == hashlib.sha256(content).hexdigest()
        counter = self.flash.counter
        assert firmware.secure_version >= counter, "never below the eFuse"
        assert counter >= self.counter, "the eFuse never falls"
        assert counter <= self.confirmed, "and rises with a confirmation alone"
        self.counter = counter

    @property
    def running(self) -> Firmware:
        slot = self.part.uds.running[0]  # type: ignore[index]
        return self._by_hash[hashlib.sha256(self.flash.read(SMALL.slots[slot].start, IMAGE_BYTES)).digest()]

    @property
    def state(self) -> int:
        return self.ask(b"\x22\xfd\x03")[3]

    def ask(self, request: bytes) -> bytes:
        answers: list[bytes] = []
        self.part.uds.handle(request, functional=False, reply=answers.append)
        return answers[-1]

    def unlock(self, session: int) -> None:
        # A cut while the try was counted costs the delay of too many tries.
        self.now += 20.0
        self.ask(b"\x10\x03")
        if session == 2:
            self.ask(b"\x10\x02")
        seed = self.ask(b"\x27\x01")[2:]
        self.ask(b"\x27\x02" + key_of(SECRET, seed))
        self.ask(b"\x2e\xf1\x5adesk")

    def stage(self, firmware: Firmware, *, requests: int = 99) -> bytes:
        """The whole sequence, or its first requests; the answer to the last."""
        passive = 1 - self.part.uds.running[0]  # type: ignore[index]
        slot, document = SMALL.slots[passive], SMALL.documents[passive]
        self.unlock(2)

        def area(start: int, size: int) -> bytes:
            return b"\x44" + start.to_bytes(4, "big") + size.to_bytes(4, "big")

        sequence = [
            b"\x31\x01\xff\x00" + area(document.start, document.size),
            b"\x31\x01\xff\x00" + area(slot.start, slot.size),
        ]
        for start, data in ((slot.start, firmware.image), (document.start, firmware.packed)):
            sequence += [b"\x34\x00" + area(start, len(data)), b"\x36\x01" + data, b"\x37"]
        sequence.append(b"\x31\x01\xff\x01")
        answer = b""
        for request in sequence[:requests]:
            answer = self.ask(request)
        return answer

    def confirm(self) -> None:
        self.confirmed = max(self.confirmed, self.running.secure_version)
        self.unlock(3)
        assert self.ask(b"\x31\x01\x02\x10") == b"\x71\x01\x02\x10\x00"
        assert self.state == ImageState.VALID
        assert self.flash.counter >= self.running.secure_version

    def roll_back(self) -> None:
        self.unlock(3)
        before = self.part.uds.running
        answer = self.ask(b"\x31\x01\x02\x11")
        if answer[0] == 0x71:
            assert self.part.uds.running != before
        else:
            assert answer == b"\x7f\x31\x22"


Lives = Callable[[], AbstractContextManager[Life]]


@pytest.fixture(scope="session")
def lives(tmp_path_factory: pytest.TempPathFactory) -> Lives:
    folder = tmp_path_factory.mktemp("esp")
    private, public = new_key()

    def firmware(version: str, secure_version: int) -> Firmware:
        image = build_esp_image(version=version, nbytes=IMAGE_BYTES, secure_version=secure_version)
        spec = FirmwareSpec(
            kind="k",
            hardware=("h",),
            version=version,
            release_counter=1,
            length=IMAGE_BYTES,
            sha256=hashlib.sha256(image).hexdigest(),
        )
        document = make_document(spec, load_signer(private), datetime(2035, 1, 1, tzinfo=UTC))
        return Firmware(image=image, document=document, secure_version=secure_version)

    firmwares = tuple(firmware(f"{number}.0.0", number // 2) for number in range(2 * SECURE_VERSIONS))
    esp32_factory(folder / "factory.bin", firmwares[0].image, firmwares[0].document, memory=SMALL)
    made = Esp32Settings(
        flash_file=folder / "flash.bin",
        identity=EcuIdentity(kind="k", hardware="h"),
        public_keys=(public,),
        security_secret=SECRET,
        memory=SMALL,
    )

    @contextmanager
    def life() -> Iterator[Life]:
        shutil.copyfile(folder / "factory.bin", Path(made.flash_file))
        with Flash(made.flash_file, memory=SMALL) as flash:
            yield Life(made, flash, firmwares)

    return life


VERSION = st.integers(0, 2 * SECURE_VERSIONS - 1)
STEP = st.one_of(
    st.tuples(st.just("update"), VERSION),
    st.tuples(st.just("stage"), VERSION),
    st.tuples(st.just("half"), st.integers(0, 8)),
    st.tuples(st.just("confirm"), st.just(0)),
    st.tuples(st.just("roll back"), st.just(0)),
    st.tuples(st.just("reset"), st.just(0)),
    st.tuples(st.just("power"), st.just(0)),
    st.tuples(st.just("bad app"), st.integers(0, 1)),
    st.tuples(st.just("cut at a byte"), st.integers(1, 64) | st.integers(65, 3000)),
    st.tuples(st.just("cut at an erase"), st.integers(1, 4)),
)


def live(life: Life, step: tuple[str, int]) -> None:
    word, number = step
    match word:
        case "update":
            life.stage(life.firmwares[number])
            life.ask(b"\x11\x01")
        case "stage":
            life.stage(life.firmwares[number])
        case "half":
            life.stage(life.firmwares[-1], requests=number)
        case "confirm":
            life.confirm()
        case "roll back":
            life.roll_back()
        case "reset":
            life.ask(b"\x11\x01")
        case "power":
            life.boot()
        case "bad app":
            life.faults.give(Faults(bad_app=bool(number)))
        case "cut at a byte":
            life.flash.cut_at_byte = number
        case "cut at an erase":
            life.flash.cut_at_erase = number


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEP, min_size=1, max_size=14))
def test_any_life_boots_what_verifies(lives: Any, steps: list[tuple[str, int]]) -> None:
    with lives() as life:
        for step in steps:
            try:
                live(life, step)
            except PowerCut:
                life.boot()
            life.look()
        life.flash.cut_at_byte = life.flash.cut_at_erase = None
        life.faults.give(Faults())
        for _ in range(2):
            life.boot()
        # Whatever happened, a good update goes through from here.
        assert life.state in {ImageState.VALID, ImageState.UNDEFINED}
        assert life.stage(life.firmwares[-1]) == b"\x71\x01\xff\x01\x00"
        assert life.ask(b"\x11\x01") == b"\x51\x01"
        assert life.running is life.firmwares[-1]
        assert life.state == ImageState.PENDING_VERIFY
        life.confirm()
        assert life.flash.counter == SECURE_VERSIONS - 1


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(erases=st.integers(0, 5), at=st.integers(1, 5000))
def test_a_cut_anywhere_in_an_update_keeps_the_old_one_or_tries_the_new_one(
    lives: Any, erases: int, at: int
) -> None:
    with lives() as life:
        life.confirm()
        if erases:
            life.flash.cut_at_erase = erases
        else:
            life.flash.cut_at_byte = at
        old, new = life.firmwares[0], life.firmwares[2]
        try:
            live(life, ("update", 2))
        except PowerCut:
            life.boot()
        life.flash.cut_at_byte = life.flash.cut_at_erase = None
        if life.running is new:
            assert life.state == ImageState.PENDING_VERIFY
            life.boot()
        assert life.running is old, "without a confirmation the old one comes back"
        live(life, ("update", 2))
        assert life.running is new
