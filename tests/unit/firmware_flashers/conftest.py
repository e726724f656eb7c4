"""A small scripted ECU of our own: the other half of the "stm32-uds" profile, with hooks for faults.

It is the tester's view of the profile, written apart from sim/mcu, so that the two check each other.
`EcuModel.answer` maps a request to its responses; `WireToModel` is a transport without a bus or a
clock: silence costs no time, but counts.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from firmware_flashers.base import FirmwareImage, Identity
from firmware_flashers.security import Secret
from firmware_flashers.uds import UdsClient
from firmware_flashers.uds_ecu import UdsEcu
from firmware_flashers.uds_flash import UdsSteps
from firmware_flashers.uds_profile import UdsProfile, UdsTiming
from shared.release import FirmwareSpec
from shared.trust.document import make_document, read_unverified
from shared.trust.keys import load_signer, new_key

KIND, HARDWARE = "brake-controller", "B2"
SECRET = bytes(range(32))
FLASH, FLASH_BYTES = 0x0800_0000, 512 * 1024
SLOT, DOCUMENT_AREA = 0x0801_0000, 0x0800_8000
PRIVATE, PUBLIC = new_key()

Script = Callable[["EcuModel", bytes], "list[bytes] | None"]


def negative(request: bytes, nrc: int) -> bytes:
    return bytes([0x7F, request[0], nrc])


@dataclass
class EcuModel:
    """Flash, session and lock of one ECU. `script` sees each request first and may answer it: a list
    is what the ECU says (nothing: silence), None leaves it to the model.
    """

    script: Script = lambda _ecu, _request: None
    session: int = 1
    in_bootloader: bool = False
    unlocked: bool = False
    fingerprint: bool = False
    seed: bytes | None = None
    download: tuple[int, int] | None = None
    unpacker: Any = None  # of a compressed download
    has_deflate: bool = False
    written: int = 0
    blocks: int = 0
    flash: bytearray = field(default_factory=lambda: bytearray(b"\xff" * FLASH_BYTES))
    erased: list[int] = field(default_factory=list)
    log: list[bytes] = field(default_factory=list)

    def answer(self, request: bytes) -> list[bytes]:
        self.log.append(request)
        scripted = self.script(self, request)
        return self.model(request) if scripted is None else scripted

    def asked(self, prefix: str) -> list[bytes]:
        return [one for one in self.log if one.startswith(bytes.fromhex(prefix))]

    def reset(self) -> None:
        self.in_bootloader = self.installed() is None
        self.enter(1)

    def enter(self, session: int) -> None:
        self.session, self.unlocked, self.fingerprint = session, False, False
        self.seed = self.download = None

    def content(self, start: int, length: int) -> bytes:
        return bytes(self.flash[start - FLASH : start - FLASH + length])

    def put(self, start: int, data: bytes) -> None:
        self.flash[start - FLASH : start - FLASH + len(data)] = data

    def installed(self) -> FirmwareSpec | None:
        (length,) = struct.unpack("<I", self.content(DOCUMENT_AREA, 4))
        if length > 16 * 1024:
            return None
        spec = read_unverified(self.content(DOCUMENT_AREA + 4, length))
        data = self.content(SLOT, spec.length)
        return spec if hashlib.sha256(data).hexdigest() == spec.sha256 else None

    def install(self, image: FirmwareImage) -> None:
        self.put(SLOT, image.data)
        self.put(DOCUMENT_AREA, struct.pack("<I", len(image.document)) + image.document)
        self.reset()

    def model(self, request: bytes) -> list[bytes]:
        sid, body = request[0], request[1:]
        match sid:
            case 0x10:
                pending = []
                if body[0] == 2:
                    if self.session == 1:
                        return [negative(request, 0x7E)]
                    if not self.in_bootloader:
                        pending = [negative(request, 0x78)]
                    self.in_bootloader = True
                self.enter(body[0])
                return [*pending, bytes([0x50, body[0]]) + bytes.fromhex("003201F4")]
            case 0x11:
                self.reset()
                return [b"\x51\x01"]
            case 0x22:
                spec = self.installed()
                values: dict[int, bytes] = {
                    0xF197: KIND.encode(),
                    0xF191: HARDWARE.encode(),
                    0xFD01: bytes([self.in_bootloader]),
                }
                if spec is not None:
                    values |= {0xF189: spec.version.encode(), 0xFD00: bytes.fromhex(spec.sha256)}
                value = values.get(int.from_bytes(body, "big"))
                return [negative(request, 0x31) if value is None else b"\x62" + body + value]
            case 0x27 if self.session == 2:
                if body[0] == 1:
                    self.seed = bytes(16) if self.unlocked else os.urandom(16)
                    return [b"\x67\x01" + self.seed]
                assert self.seed is not None
                if body[1:] != hmac.digest(SECRET, self.seed, hashlib.sha256)[:16]:
                    return [negative(request, 0x35)]
                self.unlocked = True
                return [b"\x67\x02"]
            case 0x31 if body[:3] == b"\x01\x02\x03" and self.session == 3:
                return [b"\x71\x01\x02\x03\x00"]
            case 0x3E:
                return [] if body[0] & 0x80 else [b"\x7e\x00"]
            case 0x23 | 0x2E | 0x31 | 0x34 | 0x36 | 0x37 if self.session != 2:
                return [negative(request, 0x7F)]
            case 0x23 | 0x2E | 0x31 | 0x34 if not self.unlocked:
                return [negative(request, 0x33)]
            case 0x23:
                return [b"\x63" + self.content(*struct.unpack(">II", body[1:]))]
            case 0x2E:
                self.fingerprint = True
                return [b"\x6e" + body[:2]]
            case 0x31:
                return [self.routine(request, body)]
            case 0x34:
                if body[0] not in ({0x00, 0x10} if self.has_deflate else {0x00}):
                    return [negative(request, 0x31)]
                address, length = struct.unpack(">II", body[2:])
                self.unpacker = zlib.decompressobj(-12) if body[0] else None
                self.download, self.written, self.blocks = (address, length), 0, 0
                return [bytes.fromhex("74200FFF")]
            case 0x36:
                return [self.transfer(request, body)]
            case 0x37:
                if self.download is None or self.written != self.download[1]:
                    return [negative(request, 0x24)]
                self.download = None
                return [b"\x77"]
            case _:
                return [negative(request, 0x11)]

    def routine(self, request: bytes, body: bytes) -> bytes:
        echo = b"\x71" + body[:3]
        match body[1:3]:
            case b"\xff\x00":
                if not self.fingerprint:
                    return negative(request, 0x22)
                address, length = struct.unpack(">II", body[4:12])
                self.erased.append(address)
                self.put(address, b"\xff" * length)
                return echo + b"\x00"
            case b"\x02\x02":
                address, length = struct.unpack(">II", body[4:12])
                content = self.content(address, length)
                return echo + bytes([hashlib.sha256(content).digest() != body[12:]])
            case b"\xff\x01":
                return echo + bytes([self.installed() is None])
            case _:
                return negative(request, 0x31)

    def transfer(self, request: bytes, body: bytes) -> bytes:
        if self.download is None:
            return negative(request, 0x24)
        if self.blocks and body[0] == self.blocks & 0xFF:
            return b"\x76" + body[:1]
        if body[0] != (self.blocks + 1) & 0xFF:
            return negative(request, 0x73)
        address, length = self.download
        data = body[1:] if self.unpacker is None else self.unpacker.decompress(body[1:])
        if self.written + len(data) > length:
            return negative(request, 0x71)
        if self.content(address + self.written, len(data)).strip(b"\xff"):
            return negative(request, 0x72)
        self.blocks += 1
        self.put(address + self.written, data)
        self.written += len(data)
        return b"\x76" + body[:1]


class WireToModel:
    """A uds.Transport straight into a model."""

    def __init__(self, ecu: EcuModel) -> None:
        self.ecu = ecu
        self.answers: list[bytes] = []
        self.fail_sends: list[Exception] = []

    def send(self, payload: bytes, *, timeout_s: float) -> None:
        self.answers.clear()
        if self.fail_sends:
            raise self.fail_sends.pop(0)
        self.answers = self.ecu.answer(payload)

    def receive(self, timeout_s: float) -> bytes | None:
        return self.answers.pop(0) if self.answers else None

    def send_single(self, payload: bytes) -> None:
        self.ecu.answer(payload)


FAST = UdsTiming(
    margin_s=0.05,
    flow_control_s=0.1,
    consecutive_s=0.1,
    request_s=1.0,
    session_s=1.0,
    erase_s=1.0,
    block_s=1.0,
    check_s=1.0,
    boot_s=0.5,
    reset_pause_s=0.005,
    security_delay_s=0.02,
    busy_wait_s=0.001,
    tester_present_s=0.02,
)


# With threads on both sides of a bus: a loaded machine must not look like a silent ECU.
SERVED = replace(FAST, margin_s=0.5, flow_control_s=0.5, consecutive_s=0.5, request_s=2.0, boot_s=5.0)


def make_image(
    *,
    version: str = "1.1.0",
    nbytes: int = 9001,
    kind: str = KIND,
    hardware: str = HARDWARE,
    head: bytes = b"",
) -> FirmwareImage:
    """A signed image that starts; `head` replaces its first bytes."""
    body = struct.pack("<II", 0x2002_0000, (SLOT + 0x100) | 1) + hashlib.shake_256(version.encode()).digest(
        nbytes - 8
    )
    data = head + body[len(head) :]
    spec = FirmwareSpec(
        kind=kind,
        hardware=(hardware,),
        version=version,
        release_counter=2,
        length=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )
    document = make_document(spec, load_signer(PRIVATE), datetime.now(UTC) + timedelta(days=30))
    return FirmwareImage(spec=spec, data=data, document=document)


class Steps:
    """The blocking steps of one flasher, side by side."""

    def __init__(self, ecu: UdsEcu) -> None:
        self._steps = UdsSteps(ecu)
        self.stage = self._steps.download.stage
        self.activate = self._steps.start.activate
        self.verify = self._steps.start.verify
        self.confirm = self._steps.start.confirm
        self.revert = self._steps.start.revert

    @property
    def touched(self) -> bool:
        return self._steps.download.touched

    def identify(self) -> Identity:
        return self._steps.ecu.identify()


@dataclass
class Bench:
    """Everything a test needs, by name (helper modules can't be imported here)."""

    ecu: EcuModel
    wire: WireToModel
    client: UdsClient
    download: Steps
    timing: UdsTiming
    profile: UdsProfile
    secret: Secret
    old: FirmwareImage
    new: FirmwareImage
    steps: list[tuple[str, int, int]] = field(default_factory=list)

    def stage(self, image: FirmwareImage | None = None) -> None:
        self.download.stage(image or self.new, lambda *step: self.steps.append(step))

    @staticmethod
    def negative(request: bytes, nrc: int) -> bytes:
        return negative(request, nrc)

    @staticmethod
    def make_image(**what: Any) -> FirmwareImage:
        return make_image(**what)


OLD = make_image(version="1.0.0", nbytes=5000)
NEW = make_image()


def make_bench() -> Bench:
    ecu = EcuModel()
    ecu.install(OLD)
    wire = WireToModel(ecu)
    client = UdsClient(wire, FAST)
    profile = UdsProfile(timing=FAST)
    secret = Secret(SECRET)
    download = Steps(UdsEcu(client, profile, secret, kind=KIND, hardware=HARDWARE))
    return Bench(
        ecu=ecu,
        wire=wire,
        client=client,
        download=download,
        timing=FAST,
        profile=profile,
        secret=secret,
        old=OLD,
        new=NEW,
    )


@pytest.fixture
def bench() -> Bench:
    """An ECU that runs 1.0.0, and the blocking steps wired to it without a bus."""
    return make_bench()


@pytest.fixture(scope="session")
def new_bench() -> Callable[[], Bench]:
    """As many of them as a property test needs."""
    return make_bench


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    """The ECU family's secret, as it must lie on disk."""
    path = tmp_path / "family.secret"
    path.write_bytes(SECRET)
    path.chmod(0o600)
    return path


@dataclass
class Served:
    """A model on a python-can bus, answering in a thread of its own until the test ends."""

    ecu: EcuModel
    channel: str
    settings: dict[str, Any]


@pytest.fixture
def serve(request: pytest.FixtureRequest, bench: Bench, secret_file: Path) -> Iterator[Served]:
    """The bench's ECU on a `virtual` bus of its own, and what EcuSettings need to reach it."""
    import can
    import isotp

    channel = f"test-{os.getpid()}-{request.node.name}"
    bus = can.Bus(channel, interface="virtual", ignore_config=True)
    stop = threading.Event()

    def read(timeout_s: float) -> isotp.CanMessage | None:
        message = bus.recv(timeout_s)
        if message is None:
            return None
        return isotp.CanMessage(arbitration_id=message.arbitration_id, data=bytes(message.data))

    def write(message: isotp.CanMessage) -> None:
        bus.send(can.Message(arbitration_id=message.arbitration_id, data=message.data, is_extended_id=False))

    logic = isotp.TransportLayerLogic(
        rxfn=read,
        txfn=write,
        address=isotp.Address(isotp.AddressingMode.Normal_11bits, txid=0x7E8, rxid=0x7E0),
        params={"blocksize": 0, "stmin": 0, "tx_padding": 0xAA, "logger_name": "test.ecu"},
    )

    def run() -> None:
        while not stop.is_set():
            logic.process(0.002)
            while (payload := logic.recv()) is not None:
                for answer in bench.ecu.answer(bytes(payload)):
                    logic.send(answer)

    thread = threading.Thread(target=run, name="served-ecu")
    thread.start()

    yield Served(
        ecu=bench.ecu,
        channel=channel,
        settings={
            "component": "brakes",
            "flasher": "stm32-uds",
            "interface": "virtual",
            "channel": channel,
            "tx_id": 0x7E0,
            "rx_id": 0x7E8,
            "kind": KIND,
            "hardware": HARDWARE,
            "security_secret_file": secret_file,
            "profile": UdsProfile(timing=SERVED),
        },
    )
    stop.set()
    thread.join(5)
    bus.shutdown()
