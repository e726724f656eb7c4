"""What is fuzzed: each target takes any bytes, and lets through nothing but the errors it promises.

Used by atheris (`run_target.py`), guided by coverage, and by hypothesis (`tests/property/firmware_flashers`).
`SEEDS` are inputs to begin from, good and nearly good ones.
"""

from __future__ import annotations

import hashlib
import struct
import tempfile
import threading
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress

import can

from firmware_flashers.base import FlashError
from firmware_flashers.can_link import CanLink
from firmware_flashers.isotp import IsoTpAddress, IsoTpTransport, NotSent
from firmware_flashers.isotp_frames import Ask
from firmware_flashers.profile import EXAMPLES, read_profile
from firmware_flashers.uds import UdsClient
from firmware_flashers.uds_profile import UdsTiming
from shared.errors import ConfigError
from shared.images import formats
from shared.images.esp import EspTarget, judge_esp, read_esp
from shared.images.mcuboot import McubootSlot, judge_mcuboot, read_mcuboot
from shared.images.stm32 import BadImageLayout, Stm32Layout, judge
from sim.mcu.esp_images import build_esp_image
from sim.mcu.images import build_image
from sim.mcu.mcuboot_images import build_mcuboot_image

SLOT = 0x0801_0000
MOST_STEPS = 500
SIZES = (0, 1, 2, 3, 7, 8, 12, 16, 64)


class Clock:
    """A look costs a tenth of a millisecond."""

    def __init__(self) -> None:
        self.at = 0.0

    def now(self) -> float:
        self.at += 0.0001
        return self.at

    def sleep(self, seconds: float) -> None:
        self.at += seconds

    def attending(self) -> AbstractContextManager[None]:
        return nullcontext()


class ScriptedBus(can.BusABC):
    """Gives the frames of `waiting`, then silence."""

    def __init__(self, waiting: deque[can.Message]) -> None:
        self.quarry_clock = Clock()
        self.waiting = waiting
        self.sent: list[can.Message] = []
        super().__init__(channel="scripted")

    def send(self, msg: can.Message, timeout: float | None = None) -> None:
        self.sent.append(msg)

    def recv(self, timeout: float | None = None) -> can.Message | None:
        # What is there already is left for the conversation: all of it is to be heard.
        if not timeout:
            return None
        if self.waiting:
            return self.waiting.popleft()
        self.quarry_clock.sleep(timeout or 0.0)
        return None


def isotp(data: bytes) -> None:
    """A conversation on a bus where the ECU says these frames, each a byte of its size and its bytes."""
    fd, extended, payload_bytes = bool(data[:1]) and data[0] & 1, bool(data[:1]) and data[0] & 2, data[1:2]
    frames: deque[can.Message] = deque()
    at = 2
    while at < len(data) and len(frames) < MOST_STEPS:
        size = SIZES[data[at] % len(SIZES)] if data[at] & 0x80 else min(data[at] & 0x7F, 64 if fd else 8)
        frames.append(
            can.Message(
                arbitration_id=0x18DAF110 if extended else 0x7E8,
                is_extended_id=bool(extended),
                data=data[at + 1 : at + 1 + min(size, 64 if fd else 8)],
                is_fd=bool(fd),
            )
        )
        at += 1 + size
    bus = ScriptedBus(frames)
    tx_id, rx_id = (0x18DA10F1, 0x18DAF110) if extended else (0x7E0, 0x7E8)
    transport = IsoTpTransport(
        CanLink(bus, name="scripted"),
        IsoTpAddress(tx_id=tx_id, rx_id=rx_id),
        interrupt=threading.Event(),
        padding=0xCC,
        flow_control_s=0.05,
        consecutive_s=0.05,
        fd=bool(fd),
        most_bytes=5000,
        ask=Ask(block_size=(data[0] >> 2) & 3 if data else 0),
    )
    most = 3 + len(frames)
    for _ in range(most):
        with suppress(FlashError):
            transport.send(bytes(1 + (payload_bytes[0] if payload_bytes else 0) * 4), timeout_s=1)
        answer = transport.receive(0.2)
        assert answer is None or 0 < len(answer) <= 5000
        if not bus.waiting:
            break
    else:
        raise AssertionError("the conversation does not end")
    for frame in bus.sent:
        assert len(frame.data) in ((8, 12, 16, 20, 24, 32, 48, 64) if fd else (8,))
    bus.shutdown()


class ScriptedTransport:
    """Answers that come one after the other, whatever is asked."""

    def __init__(self, answers: deque[bytes | None], clock: Clock) -> None:
        self.answers = answers
        self.clock = clock
        self.sends = 0

    def send(self, payload: bytes, *, timeout_s: float) -> None:
        self.sends += 1
        self.clock.sleep(0.001)
        if self.sends % 17 == 0:
            raise NotSent("no flow control")

    def receive(self, timeout_s: float) -> bytes | None:
        answer = self.answers.popleft() if self.answers else None
        self.clock.sleep(0.0005 if answer is not None else timeout_s)
        return answer

    def send_single(self, payload: bytes) -> None:
        self.clock.sleep(0.001)


def uds(data: bytes) -> None:
    """A client that asks for everything, and an ECU that says this: a byte of a size, and so many bytes."""
    answers: deque[bytes | None] = deque()
    at = 0
    while at < len(data) and len(answers) < MOST_STEPS:
        size = data[at]
        answers.append(None if size == 0xFF else data[at + 1 : at + 1 + size])
        at += 1 + (0 if size == 0xFF else size)
    clock = Clock()
    transport = ScriptedTransport(answers, clock)
    timing = UdsTiming(request_s=3, session_s=3, block_s=3, erase_s=3, check_s=3, busy_wait_s=0.05)
    client = UdsClient(transport, timing, clock=clock)
    acts: list[Callable[[], object]] = [
        lambda: client.change_session(3),
        lambda: client.read(0xF189, "the version"),
        lambda: client.request_seed(1),
        lambda: client.send_key(1, bytes(16)),
        lambda: client.write(0xF15A, b"workshop", "the fingerprint"),
        lambda: client.routine(0xFF00, bytes(9), "the erase", most_s=3),
        lambda: client.request_download(SLOT, 4096),
        lambda: client.transfer(b"\x36\x01" + bytes(100)),
        client.transfer_exit,
        lambda: client.read_memory(SLOT, 16),
        lambda: client.authenticate(1, bytes(8), "a challenge"),
        client.is_present,
        client.reset,
    ]
    for act in acts:
        begun = clock.at
        with suppress(FlashError):
            act()
        # Three tries of 3 s and their P2*, which the ECU itself may have set to 655 s, bounded each.
        assert clock.at - begun < 30


READERS: list[Callable[[bytes], object]] = [
    formats.read,
    lambda data: formats.read(data, base=SLOT),
    lambda data: judge_esp(
        read_esp(data), EspTarget(chip_id=0, revision=100, partition_bytes=1 << 20, secure_version=0)
    ),
    # With the hash put right, so that what lies behind that check is reached.
    lambda data: read_esp(data[:-32] + hashlib.sha256(data[:-32]).digest()),
    lambda data: judge_mcuboot(read_mcuboot(data), McubootSlot(slot_bytes=1 << 17, least_security_counter=1)),
    lambda data: judge(
        data,
        Stm32Layout(slot_start=SLOT, slot_end=SLOT + (1 << 16), ram_start=0x2000_0000, ram_end=0x2002_0000),
    ),
]


def images(data: bytes) -> None:
    """A file of any kind, by the reader that its first byte names."""
    if not data:
        return
    with suppress(BadImageLayout):
        READERS[data[0] % len(READERS)](data[1:])


def profile(data: bytes) -> None:
    """A profile file."""
    with tempfile.NamedTemporaryFile(suffix=".toml") as file, suppress(ConfigError):
        file.write(data)
        file.flush()
        read_profile(file.name).settings(
            component="brakes",
            interface="virtual",
            channel="x",
            kind="brake-controller",
            hardware="B2",
            tx_id=0x7E0,
            rx_id=0x7E8,
        )


TARGETS: dict[str, Callable[[bytes], None]] = {
    "isotp": isotp,
    "uds": uds,
    "images": images,
    "profile": profile,
}


# -- inputs to begin from


def _frames(*frames: str, head: int = 0, payload: int = 0) -> bytes:
    raw = [bytes.fromhex(one) for one in frames]
    return bytes([head, payload]) + b"".join(bytes([len(one)]) + one for one in raw)


def _answers(*answers: str) -> bytes:
    raw = [bytes.fromhex(one) for one in answers]
    return b"".join(bytes([len(one)]) + one for one in raw)


def _ihex(data: bytes) -> bytes:
    lines = [":020000040801F1"]
    for at in range(0, len(data), 16):
        record = bytes([len(data[at : at + 16])]) + struct.pack(">HB", at, 0) + data[at : at + 16]
        lines.append(":" + (record + bytes([-sum(record) & 0xFF])).hex().upper())
    return "\n".join([*lines, ":00000001FF", ""]).encode()


def _srec(data: bytes) -> bytes:
    def line(kind: int, body: bytes) -> str:
        counted = bytes([len(body) + 1]) + body
        return f"S{kind}" + (counted + bytes([~sum(counted) & 0xFF])).hex().upper()

    lines = [line(3, struct.pack(">I", SLOT + at) + data[at : at + 16]) for at in range(0, len(data), 16)]
    return "\n".join([line(0, b"\0\0fuzz"), *lines, line(7, struct.pack(">I", SLOT)), ""]).encode()


def _elf(data: bytes) -> bytes:
    head = struct.pack(
        "<16sHHIIIIIHHHHHH", b"\x7fELF\x01\x01\x01", 2, 40, 1, SLOT + 1, 52, 0, 0, 52, 32, 1, 40, 0, 0
    )
    return head + struct.pack("<8I", 1, 84, SLOT, SLOT, len(data), len(data), 5, 4) + data


_CODE = build_image("1.0.0", 1024, SLOT)
SEEDS: dict[str, list[bytes]] = {
    "isotp": [
        _frames("0250 03AAAAAAAAAA"),
        _frames("1014 62FD00 010203", "21 04050607080910", "22 11121314151617", payload=1),
        _frames("300000AAAAAAAAAA", "0276 01", payload=20),
        _frames("310000", "300200", "300205", "0276 01", payload=20),
        _frames("320000", "3F0000", "0276 01", payload=20),
        _frames("1000 00001000 0102", "21 03040506070809", head=2),
        _frames("001050" + "01" * 61, "104F" + "02" * 62, "21" + "03" * 20, head=1),
        _frames("1014 62FD00 010203", "22 04050607080910", "0250 03", head=4),
    ],
    "uds": [
        _answers(
            "5003003201F4",
            "62F189312E30",
            "6701" + "11" * 16,
            "6702",
            "6EF15A",
            "7101FF0000",
            "74200FFF",
            "7601",
            "77",
            "63" + "00" * 16,
            "6901110004DEADBEEF0000",
            "7E00",
            "5101",
        ),
        _answers("7F1078", "7F1078", "5003FFFFFFFF", "7F2221", "7F2221", "62F18931", "7F2737"),
        _answers("50", "5003", "62", "62F1", "67", "7F", "7F10", "7F107800", "00"),
    ],
    "images": [
        *(bytes([kind]) + made for kind in (0, 1) for made in (_ihex(_CODE), _srec(_CODE), _elf(_CODE))),
        b"\x01" + _CODE,
        *(bytes([kind]) + build_esp_image(version="1.0.0", nbytes=2048) for kind in (2, 3)),
        b"\x04" + build_mcuboot_image(version="1.0.0", nbytes=1024, slot_base=SLOT, security_counter=2),
        b"\x05" + _CODE,
    ],
    "profile": [one.read_bytes() for one in sorted(EXAMPLES.glob("*.toml"))],
}
