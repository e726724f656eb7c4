"""A simulated MCU on a bus, and a tester made of independent parts: can-isotp below, raw UDS above."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import can
import isotp
import pytest

from shared.release import FirmwareSpec
from shared.trust.document import make_document
from shared.trust.keys import load_signer, new_key
from sim.can_bus import hub_in_thread
from sim.mcu.assembly import McuSettings
from sim.mcu.faults import Faults
from sim.mcu.images import build_image
from sim.mcu.profile import EcuIdentity, Timing
from sim.mcu.security import key_of
from sim.mcu.server import Stm32Mcu, factory

SECRET = bytes(range(32))
SLOT = 0x0801_0000
DOCUMENT = 0x0800_8000


@dataclass(frozen=True, kw_only=True)
class Signed:
    image: bytes
    document: bytes
    spec: FirmwareSpec


Sign = Callable[[str, int], Signed]


@pytest.fixture(scope="session")
def keys() -> tuple[bytes, bytes]:
    return new_key()


@pytest.fixture(scope="session")
def sign(keys: tuple[bytes, bytes]) -> Sign:
    """Makes and signs an image of so many bytes."""

    def signed(version: str, nbytes: int) -> Signed:
        image = build_image(version, nbytes, SLOT)
        spec = FirmwareSpec(
            kind="brake-controller",
            hardware=("rev-b",),
            version=version,
            release_counter=1,
            length=nbytes,
            sha256=hashlib.sha256(image).hexdigest(),
        )
        document = make_document(spec, load_signer(keys[0]), datetime(2035, 1, 1, tzinfo=UTC))
        return Signed(image=image, document=document, spec=spec)

    return signed


def area(start: int, size: int) -> bytes:
    return b"\x44" + start.to_bytes(4, "big") + size.to_bytes(4, "big")


class Tester:
    """Asks over can-isotp; responsePending is waited out."""

    def __init__(self, bus: can.BusABC) -> None:
        self._notifier = can.Notifier(bus, [], timeout=0.05)
        self._stack: Any = isotp.NotifierBasedCanStack(
            bus=bus,
            notifier=self._notifier,
            address=isotp.Address(isotp.AddressingMode.Normal_11bits, txid=0x7E0, rxid=0x7E8),
            params={"tx_padding": 0xCC, "blocking_send": True},
        )
        self._stack.start()

    def close(self) -> None:
        """May be repeated."""
        if self._notifier.stopped:
            return
        self._stack.stop()
        self._notifier.stop()

    def ask(self, request: bytes, *, within_s: float = 10.0, waits: bool = True) -> bytes:
        """The answer, or with `waits=False` the first responsePending; empty when there is none in time."""
        try:
            self._stack.send(request, send_timeout=within_s)
        except isotp.BlockingSendFailure:
            return b""
        while True:
            answer = self._stack.recv(block=True, timeout=within_s)
            if answer is None:
                return b""
            if not waits or answer[0] != 0x7F or answer[2] != 0x78:
                return bytes(answer)

    def enter(self) -> None:
        assert self.ask(b"\x10\x03")[0] == 0x50
        assert self.ask(b"\x10\x02")[0] == 0x50
        seed = self.ask(b"\x27\x01")[2:]
        assert self.ask(b"\x27\x02" + key_of(SECRET, seed)) == b"\x67\x02"
        assert self.ask(b"\x2e\xf1\x5aworkshop") == b"\x6e\xf1\x5a"

    def erase(self) -> None:
        for start, size in ((DOCUMENT, 0x4000), (SLOT, 0x1_0000)):
            assert self.ask(b"\x31\x01\xff\x00" + area(start, size)) == b"\x71\x01\xff\x00\x00"

    def requests(self, start: int, data: bytes) -> list[bytes]:
        """What brings `data` there, block by block."""
        data += b"\xff" * (-len(data) % 4)
        blocks = [
            bytes([0x36, (number + 1) & 0xFF]) + data[at : at + 4093]
            for number, at in enumerate(range(0, len(data), 4093))
        ]
        return [b"\x34\x00" + area(start, len(data)), *blocks, b"\x37"]

    def program(self, firmware: Signed) -> None:
        """The whole sequence."""
        self.enter()
        self.erase()
        packed = len(firmware.document).to_bytes(4, "little") + firmware.document
        for start, data in ((SLOT, firmware.image), (DOCUMENT, packed)):
            for request in self.requests(start, data):
                assert self.ask(request)[0] == request[0] + 0x40
        assert self.ask(b"\x31\x01\xff\x01") == b"\x71\x01\xff\x01\x00"
        assert self.ask(b"\x11\x01") == b"\x51\x01"
        # What is asked while the part resets is lost.
        assert any(self.ask(b"\x3e\x00", within_s=0.3) for _ in range(30))


@pytest.fixture
def tester_on() -> Callable[[can.BusABC], Tester]:
    """Makes a tester on a bus; it is closed before the bus."""
    return Tester


@dataclass(kw_only=True)
class Bench:
    mcu: Stm32Mcu
    tester: Tester
    settings: McuSettings
    open_bus: Callable[[], can.BusABC]
    hang_up: Callable[[], None]


MakeBench = Callable[..., Bench]


@pytest.fixture
def make_bench(tmp_path: Path, keys: tuple[bytes, bytes]) -> Iterator[MakeBench]:
    """An MCU and a tester, on a hub or on python-can's in-process bus."""
    with ExitStack() as stack:

        def make(
            *,
            holds: Signed | None = None,
            interface: str = "quarry-hub",
            faults: Faults | None = None,
            timing: Timing | None = None,
        ) -> Bench:
            flash_file = tmp_path / "flash.bin"
            if holds:
                factory(flash_file, holds.image, holds.document)
            settings = McuSettings(
                flash_file=flash_file,
                identity=EcuIdentity(kind="brake-controller", hardware="rev-b"),
                public_keys=(keys[1],),
                security_secret=SECRET,
                timing=timing or Timing(),
            )
            channel = str(tmp_path / "can.sock")
            hub_stack = stack.enter_context(ExitStack())
            if interface == "quarry-hub":
                hub_stack.enter_context(hub_in_thread(channel))

            def open_bus() -> can.BusABC:
                return stack.enter_context(can.Bus(channel, interface=interface, ignore_config=True))

            mcu = stack.enter_context(Stm32Mcu(settings, open_bus(), faults=faults))
            tester = Tester(open_bus())
            stack.callback(tester.close)
            return Bench(
                mcu=mcu, tester=tester, settings=settings, open_bus=open_bus, hang_up=hub_stack.close
            )

        yield make
