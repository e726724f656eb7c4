"""Parts that answer wrongly: a real simulated part whose words are changed on their way, frame by frame.

A liar stands between a part's firmware and its controller (it is the `Host` that the firmware sees). It
is honest until its `turn`, and then lies for so many frames, or for ever, by the seeded `rng`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import Any, Protocol

import can

from sim.mcu.host import Device, Host

NEGATIVE = 0x7F
SINGLE, FIRST, CONSECUTIVE, FLOW = range(4)
PAD = 0xAA


class Lie(Protocol):
    """One way of being wrong; made anew for each part."""

    period_s: float
    """So often `speak` is called while it lies; infinity for never."""
    is_rare: bool
    """It changes frames of a rare kind only."""

    def outgoing(self, liar: Liar, frame: bytes) -> list[bytes]:
        """What leaves in place of a frame."""
        ...

    def identifier(self, liar: Liar, honest: int) -> int:
        """What it leaves with."""
        ...

    def incoming(self, liar: Liar, frame: bytes) -> bool:
        """Whether the firmware gets to see this one."""
        ...

    def speak(self, liar: Liar) -> None:
        """Say something unasked."""
        ...


class Honest:
    """To be changed in one thing or another."""

    period_s = inf
    is_rare = False

    def outgoing(self, liar: Liar, frame: bytes) -> list[bytes]:
        return [frame]

    def identifier(self, liar: Liar, honest: int) -> int:
        return honest

    def incoming(self, liar: Liar, frame: bytes) -> bool:
        return True

    def speak(self, liar: Liar) -> None:
        """Nothing."""


@dataclass
class Liar:
    """A Device with a lie. `reform` ends it."""

    inner: Device
    lie: Lie
    rng: random.Random
    answer_id: int
    fd: bool
    turn: int
    left: float
    host: Host = field(init=False)
    instead: bytes | None = None
    """What the firmware gets to see in place of the present frame."""

    @property
    def running(self) -> Any:
        """Of a ROM loader inside: the mark of the application that it has started."""
        return getattr(self.inner, "running", None)

    def accepts(self, message: can.Message) -> bool:
        return self.inner.accepts(message)

    def run(self, host: Host, booted: Callable[[], None]) -> None:
        self.host = host
        self.inner.run(self, booted)

    def reform(self) -> None:
        self.left = 0

    @property
    def lies(self) -> bool:
        return self.turn <= 0 and self.left > 0

    def say(self, frame: bytes) -> None:
        """An answer, past the lie."""
        self.host.send(self.answer_id, frame.ljust(8, bytes([PAD]))[:8])

    # -- the Host that the firmware sees

    def now(self) -> float:
        return self.host.now()

    def wait(self, seconds: float) -> None:
        self.host.wait(seconds)

    def drop_input(self) -> None:
        self.host.drop_input()

    def set_bitrate(self, bitrate: int) -> None:
        self.host.set_bitrate(bitrate)

    def receive(self, timeout_s: float) -> can.Message | None:
        until = self.host.now() + timeout_s
        while True:
            left_s = max(0.0, until - self.host.now())
            message = self.host.receive(min(left_s, self.lie.period_s) if self.lies else left_s)
            if message is None:
                if self.host.now() >= until:
                    return None
                if self.lies:
                    self.lie.speak(self)
            elif not self.lies:
                return message
            elif self.lie.incoming(self, bytes(message.data)):
                if self.instead is not None:
                    message.data, self.instead = bytearray(self.instead), None
                return message

    def send(self, arbitration_id: int, data: bytes, *, extended: bool = False, fd: bool = False) -> None:
        self.turn -= 1
        if not self.lies:
            self.host.send(arbitration_id, data, extended=extended, fd=fd)
            return
        self.left -= 1
        for frame in self.lie.outgoing(self, data):
            one = self.lie.identifier(self, arbitration_id)
            self.host.send(one, frame, extended=extended, fd=fd)


def is_answer(frame: bytes) -> bool:
    """Whether a frame of a part carries the head of a UDS answer."""
    return frame[0] >> 4 in {SINGLE, FIRST}


def head_at(frame: bytes) -> int:
    """Where the answer begins in such a frame."""
    return 1 if frame[0] >> 4 == SINGLE else 2


def changed(frame: bytes, at: int, value: int) -> bytes:
    return frame[:at] + bytes([value & 0xFF]) + frame[at + 1 :]


class WrongSid(Honest):
    def outgoing(self, liar: Liar, frame: bytes) -> list[bytes]:
        return [changed(frame, head_at(frame), liar.rng.randrange(256))] if is_answer(frame) else [frame]


class WrongEcho(Honest):
    def outgoing(self, liar: Liar, frame: bytes) -> list[bytes]:
        if not is_answer(frame):
            return [frame]
        at = head_at(frame) + liar.rng.randint(1, 3)
        return [changed(frame, at, frame[at] ^ liar.rng.randint(1, 255))]


class Truncated(Honest):
    def outgoing(self, liar: Liar, frame: bytes) -> list[bytes]:
        match frame[0] >> 4:
            case 0:
                size = liar.rng.randrange(max(1, frame[0]))
                return [bytes([size]) + frame[1 : 1 + size]]
            case 2:
                return [frame[: liar.rng.randrange(len(frame))]]
            case _:
                return [frame[: liar.rng.randint(1, 8)]]


class Oversized(Honest):
    """More than was asked for, and more than was said."""

    def outgoing(self, liar: Liar, frame: bytes) -> list[bytes]:
        if not is_answer(frame):
            return [frame]
        size = liar.rng.choice([8, 20, 300, 4095])
        body = frame[head_at(frame) :] + liar.rng.randbytes(size)
        frames = [bytes([0x10 | size >> 8, size & 255]) + body[:6]]
        frames += [bytes([0x20 | n & 15]) + body[7 * n - 1 : 7 * n + 6] for n in range(1, 2 + size // 7)]
        return frames + frames[1:3]


class Pending(Honest):
    """0x78 for ever, to whatever is asked."""

    period_s = 0.5

    def __init__(self) -> None:
        self.sid = 0x22

    def outgoing(self, liar: Liar, frame: bytes) -> list[bytes]:
        if frame[0] >> 4 == FLOW:
            return [frame]
        if is_answer(frame):
            self.sid = frame[head_at(frame)] & ~0x40
        return [self.answer]

    @property
    def answer(self) -> bytes:
        return bytes([3, NEGATIVE, self.sid & 0xFF, 0x78]).ljust(8, bytes([PAD]))

    def speak(self, liar: Liar) -> None:
        liar.say(self.answer)


class Busy(Honest):
    """0x21 to everything."""

    def outgoing(self, liar: Liar, frame: bytes) -> list[bytes]:
        if frame[0] >> 4 == FLOW:
            return [frame]
        if not is_answer(frame):
            return []
        return [bytes([3, NEGATIVE, frame[head_at(frame)] & ~0x40, 0x21]).ljust(8, bytes([PAD]))]


class Wait(Honest):
    """Flow controls that ask to wait, for ever."""

    is_rare = True

    period_s = 0.2

    def __init__(self) -> None:
        self.asked = False

    def outgoing(self, liar: Liar, frame: bytes) -> list[bytes]:
        if frame[0] >> 4 != FLOW:
            return [frame]
        self.asked = True
        return [b"\x31\x00\x00"]

    def speak(self, liar: Liar) -> None:
        if self.asked:
            liar.say(b"\x31\x00\x00")


class SlowGaps(Honest):
    """STmin 127 ms, also by reserved values."""

    is_rare = True

    def outgoing(self, liar: Liar, frame: bytes) -> list[bytes]:
        return [changed(frame, 2, liar.rng.choice([0x7F, 0x80, 0xFF]))] if frame[0] >> 4 == FLOW else [frame]


class OneByOne(Honest):
    """Blocks of one frame: a flow control behind each."""

    is_rare = True

    def outgoing(self, liar: Liar, frame: bytes) -> list[bytes]:
        return [changed(frame, 1, 1)] if frame[0] >> 4 == FLOW else [frame]

    def incoming(self, liar: Liar, frame: bytes) -> bool:
        if frame and frame[0] >> 4 == CONSECUTIVE:
            liar.say(b"\x30\x01\x00")
        return True


class WrongSequence(Honest):
    is_rare = True

    def outgoing(self, liar: Liar, frame: bytes) -> list[bytes]:
        if frame[0] >> 4 != CONSECUTIVE:
            return [frame]
        return [changed(frame, 0, 0x20 | (frame[0] + liar.rng.randint(1, 15)) & 15)]


class Overflow(Honest):
    is_rare = True

    def outgoing(self, liar: Liar, frame: bytes) -> list[bytes]:
        return [b"\x32\x00\x00"] if frame[0] >> 4 == FLOW else [frame]


class Silence(Honest):
    def outgoing(self, liar: Liar, frame: bytes) -> list[bytes]:
        return []


class Deaf(Honest):
    def incoming(self, liar: Liar, frame: bytes) -> bool:
        return False


def garbage(rng: random.Random, *, fd: bool = False) -> bytes:
    return rng.randbytes(rng.choice([0, 1, 5, 8, 12, 64]) if fd else rng.randrange(9))


class Bursts(Honest):
    """Garbage before and behind each frame."""

    def outgoing(self, liar: Liar, frame: bytes) -> list[bytes]:
        def burst() -> list[bytes]:
            return [garbage(liar.rng, fd=liar.fd) for _ in range(liar.rng.randrange(60))]

        return [*burst(), frame, *burst()]


class Babble(Honest):
    """It never stops talking."""

    period_s = 0.004

    def speak(self, liar: Liar) -> None:
        liar.host.send(liar.answer_id, garbage(liar.rng, fd=liar.fd), fd=liar.fd)


class WrongBlockLength(Honest):
    is_rare = True

    ANSWERS = (
        "04742000 00",
        "0474200001",
        "0474200002",
        "027400",
        "0674 40FFFFFFFF",
        "047420FFFF",
        "03741003",
    )

    def outgoing(self, liar: Liar, frame: bytes) -> list[bytes]:
        if frame[:2] != b"\x04\x74":
            return [frame]
        return [bytes.fromhex(liar.rng.choice(self.ANSWERS)).ljust(8, bytes([PAD]))]


class YesToNothing(Honest):
    """It agrees to everything, and does nothing of what would change it."""

    def __init__(self) -> None:
        self.request = b""
        self.size = 0

    def incoming(self, liar: Liar, frame: bytes) -> bool:
        match frame[0] >> 4 if frame else None:
            case 0:
                return self._ask(liar, frame[1 : 1 + (frame[0] & 15)])
            case 1:
                if frame[2] not in {0x27, 0x2E, 0x31, 0x34, 0x36}:
                    return True
                self.size, self.request = (frame[0] & 15) << 8 | frame[1], frame[2:]
                liar.say(b"\x30\x00\x00")
                return False
            case 2 if self.size:
                self.request += frame[1:]
                if len(self.request) < self.size:
                    return False
                request, self.size = self.request[: self.size], 0
                return self._ask(liar, request)
            case _:
                return True

    def _ask(self, liar: Liar, request: bytes) -> bool:
        match request[:1].hex():
            case "27" if request[1] % 2 == 0:
                answer = request[:2]
            case "2e":
                answer = request[:3]
            case "31":
                answer = request[:4] + b"\x00"
            case "34":
                answer = b"\x34\x20\x0f\xff"
            case "36":
                answer = request[:2]
            case "37":
                answer = request[:1]
            case _:
                return True
        liar.say(bytes([len(answer), answer[0] + 0x40]) + answer[1:])
        return False


UDS_LIES: dict[str, Callable[[], Lie]] = {
    "wrong service": WrongSid,
    "wrong echo": WrongEcho,
    "truncated": Truncated,
    "oversized": Oversized,
    "pending for ever": Pending,
    "busy for ever": Busy,
    "wait for ever": Wait,
    "slow gaps": SlowGaps,
    "one by one": OneByOne,
    "wrong sequence": WrongSequence,
    "overflow": Overflow,
    "silence": Silence,
    "deaf": Deaf,
    "bursts of garbage": Bursts,
    "babble": Babble,
    "wrong block length": WrongBlockLength,
    "yes to nothing": YesToNothing,
}


# -- words of the ROM loaders (AN3154, AN5405): one byte each, or memory

ACK, NACK, ROM_BUSY = 0x79, 0x1F, 0x76


class Refuses(Honest):
    def outgoing(self, liar: Liar, frame: bytes) -> list[bytes]:
        return [bytes([NACK])] if frame == bytes([ACK]) else [frame]


class SaysBusy(Honest):
    def outgoing(self, liar: Liar, frame: bytes) -> list[bytes]:
        return [bytes([ROM_BUSY])] if frame == bytes([ACK]) else [frame]


class Repeats(Honest):
    def outgoing(self, liar: Liar, frame: bytes) -> list[bytes]:
        return [frame] * liar.rng.randint(2, 40)


class AnyByte(Honest):
    def outgoing(self, liar: Liar, frame: bytes) -> list[bytes]:
        return [liar.rng.randbytes(len(frame))]


class Empty(Honest):
    def outgoing(self, liar: Liar, frame: bytes) -> list[bytes]:
        return [b""]


class Longer(Honest):
    def outgoing(self, liar: Liar, frame: bytes) -> list[bytes]:
        sizes = [one for one in ((8, 12, 64) if liar.fd else (2, 5, 8)) if one >= len(frame)]
        return [frame.ljust(liar.rng.choice(sizes), b"\x55")]


class WrongIdentifier(Honest):
    def identifier(self, liar: Liar, honest: int) -> int:
        return liar.rng.choice([0x000, honest ^ 1, 0x079, 0x7FF])


class WrongMemory(Honest):
    """It reads other bytes than it holds."""

    is_rare = True

    def outgoing(self, liar: Liar, frame: bytes) -> list[bytes]:
        if len(frame) < 8:
            return [frame]
        return [changed(frame, liar.rng.randrange(len(frame)), liar.rng.randrange(256))]


class WritesNothing(Honest):
    """It acknowledges what it is given, and the firmware never sees the bytes."""

    is_rare = True

    def incoming(self, liar: Liar, frame: bytes) -> bool:
        if len(frame) < 8:
            return True
        # The loader counts the frames, so that it gets others.
        liar.instead = b"\xff" * len(frame)
        return True


ROM_LIES: dict[str, Callable[[], Lie]] = {
    "refuses": Refuses,
    "says busy": SaysBusy,
    "repeats": Repeats,
    "any byte": AnyByte,
    "empty": Empty,
    "longer": Longer,
    "wrong identifier": WrongIdentifier,
    "wrong memory": WrongMemory,
    "writes nothing": WritesNothing,
    "silence": Silence,
    "deaf": Deaf,
    "bursts of garbage": Bursts,
    "babble": Babble,
}
