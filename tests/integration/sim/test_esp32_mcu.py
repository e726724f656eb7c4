"""The simulated ESP32 on a bus: an update by an independent ISO-TP stack, power cuts, a bad application."""

from __future__ import annotations

import hashlib
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
from shared.trust.keys import load_signer
from sim.can_bus import hub_in_thread
from sim.mcu.boot import Verdict
from sim.mcu.esp32_mcu import Esp32Mcu, Esp32Settings, esp32_factory
from sim.mcu.esp_images import build_esp_image
from sim.mcu.faults import Faults
from sim.mcu.profile import EcuIdentity
from sim.mcu.security import key_of

SECRET = bytes(range(32))
OTA_1, DOC_1 = 0x11_0000, 0x21_4000
IMAGE_BYTES = 12_288


@dataclass(frozen=True, kw_only=True)
class Signed:
    image: bytes
    document: bytes


@pytest.fixture
def firmware(keys: tuple[bytes, bytes]) -> Callable[..., Signed]:
    def build(version: str, *, secure_version: int = 0) -> Signed:
        image = build_esp_image(version=version, nbytes=IMAGE_BYTES, secure_version=secure_version)
        spec = FirmwareSpec(
            kind="mixer",
            hardware=("rev-c",),
            version=version,
            release_counter=1,
            length=len(image),
            sha256=hashlib.sha256(image).hexdigest(),
        )
        document = make_document(spec, load_signer(keys[0]), datetime(2035, 1, 1, tzinfo=UTC))
        return Signed(image=image, document=document)

    return build


@dataclass(kw_only=True)
class Bench:
    mcu: Esp32Mcu
    tester: Any

    def ask(self, request: bytes) -> bytes:
        """An answer; what is asked while the part resets is lost."""
        for _ in range(40):
            answer: bytes = self.tester.ask(request, within_s=0.5)
            if answer:
                return answer
        raise AssertionError("nobody answers")

    def unlock(self) -> None:
        seed = self.ask(b"\x27\x01")[2:]
        assert self.ask(b"\x27\x02" + key_of(SECRET, seed)) == b"\x67\x02"

    def requests(self, new: Signed) -> list[bytes]:
        """From the erase to the check of dependencies."""

        def area(start: int, size: int) -> bytes:
            return b"\x44" + start.to_bytes(4, "big") + size.to_bytes(4, "big")

        packed = len(new.document).to_bytes(4, "little") + new.document
        return [
            b"\x31\x01\xff\x00" + area(DOC_1, 0x4000),
            b"\x31\x01\xff\x00" + area(OTA_1, IMAGE_BYTES),
            *self.tester.requests(OTA_1, new.image),
            *self.tester.requests(DOC_1, packed),
            b"\x31\x01\xff\x01",
        ]

    def enter(self) -> None:
        assert self.ask(b"\x10\x03")[0] == 0x50
        assert self.ask(b"\x10\x02")[0] == 0x50
        self.unlock()
        assert self.ask(b"\x2e\xf1\x5adesk") == b"\x6e\xf1\x5a"

    def stage(self, new: Signed) -> None:
        self.enter()
        for request in self.requests(new):
            answer = self.ask(request)
            assert answer[0] == request[0] + 0x40
        assert answer == b"\x71\x01\xff\x01\x00"

    def value(self, did: int) -> bytes:
        return self.ask(b"\x22" + did.to_bytes(2, "big"))[3:]


@pytest.fixture
def bench(tmp_path: Path, keys: tuple[bytes, bytes], firmware: Any, tester_on: Any) -> Iterator[Bench]:
    flash_file = tmp_path / "flash.bin"
    old = firmware("1.0.0")
    esp32_factory(flash_file, old.image, old.document)
    settings = Esp32Settings(
        flash_file=flash_file,
        identity=EcuIdentity(kind="mixer", hardware="rev-c"),
        public_keys=(keys[1],),
        security_secret=SECRET,
    )
    channel = tmp_path / "can.sock"
    with ExitStack() as stack:
        stack.enter_context(hub_in_thread(channel))

        def open_bus() -> can.BusABC:
            bus = can.Bus(str(channel), interface="quarry-hub", ignore_config=True)
            return stack.enter_context(bus)

        mcu = stack.enter_context(Esp32Mcu(settings, open_bus()))
        tester = tester_on(open_bus())
        stack.callback(tester.close)
        yield Bench(mcu=mcu, tester=tester)


def test_an_update_runs_and_is_confirmed(bench: Bench, firmware: Any) -> None:
    new = firmware("2.0.0", secure_version=3)
    bench.stage(new)
    assert bench.value(0xF189) == b"1.0.0", "until the reset the old one runs"
    assert bench.mcu.programmed_bytes >= IMAGE_BYTES
    assert bench.ask(b"\x11\x01") == b"\x51\x01"
    assert bench.value(0xF189) == b"2.0.0"
    assert bench.value(0xFD00) == hashlib.sha256(new.image).digest()
    assert (bench.value(0xFD02), bench.value(0xFD03)) == (b"\x01", b"\x01")
    bench.ask(b"\x10\x03")
    bench.unlock()
    assert bench.ask(b"\x31\x01\x02\x10") == b"\x71\x01\x02\x10\x00"
    bench.mcu.power_cycle()
    assert (bench.value(0xFD02), bench.value(0xFD03)) == (b"\x01", b"\x02")
    assert bench.mcu.secure_version == 3
    assert bench.mcu.judge(0).verdict is Verdict.SECURE_VERSION
    assert bench.mcu.content(1, IMAGE_BYTES) == new.image


def test_without_a_confirmation_the_old_one_answers(bench: Bench, firmware: Any) -> None:
    bench.stage(firmware("2.0.0"))
    bench.ask(b"\x11\x01")
    assert bench.value(0xF189) == b"2.0.0"
    bench.mcu.power_cycle()
    assert (bench.value(0xF189), bench.value(0xFD02), bench.value(0xFD03)) == (b"1.0.0", b"\x00", b"\x02")


def test_a_bad_application_leaves_the_old_one_answering(bench: Bench, firmware: Any) -> None:
    bench.stage(firmware("2.0.0"))
    bench.mcu.order(Faults(bad_app=True))
    bench.ask(b"\x11\x01")
    assert bench.value(0xF189) == b"1.0.0"


def test_rolling_back_answers_and_restarts(bench: Bench, firmware: Any) -> None:
    bench.stage(firmware("2.0.0"))
    bench.ask(b"\x11\x01")
    assert bench.value(0xF189) == b"2.0.0"
    bench.ask(b"\x10\x03")
    bench.unlock()
    assert bench.ask(b"\x31\x01\x02\x11") == b"\x71\x01\x02\x11\x00"
    assert (bench.value(0xF189), bench.value(0xFD02)) == (b"1.0.0", b"\x00")
    bench.stage(firmware("2.0.0"))


@pytest.mark.parametrize("frame", [2, 60, 900, 1800, 1850])
def test_a_power_cut_while_it_is_staged_leaves_the_old_one(bench: Bench, firmware: Any, frame: int) -> None:
    new = firmware("2.0.0")
    bench.enter()
    bench.mcu.order(Faults(power_cut_at_frame=frame))
    for request in bench.requests(new):
        if not bench.tester.ask(request, within_s=0.5):
            break
    assert bench.mcu.wait_dark(10), "there were so many frames"
    bench.mcu.power_cycle()
    assert (bench.value(0xF189), bench.value(0xFD02), bench.value(0xFD03)) == (b"1.0.0", b"\x00", b"\x02")
    bench.stage(new)
    bench.ask(b"\x11\x01")
    assert bench.value(0xF189) == b"2.0.0"
