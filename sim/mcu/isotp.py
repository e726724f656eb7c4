"""ISO-TP (ISO 15765-2:2016, normal addressing) as a server needs it, in one thread: classic CAN and CAN FD.

Strict about what it receives: a frame of the wrong sequence number ends its message, a message that is longer
than the server's buffer is answered with an overflow, and frames whose length does not fit what they
say (9.6.2, 9.6.3) or that nobody expects are ignored. The bus must not lose frames while the server works,
which the hub, the model and `virtual` don't.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from shared.errors import ConfigError

CLASSIC_BYTES = 8
FD_BYTES = 64
FD_LENGTHS = (8, 12, 16, 20, 24, 32, 48, 64)
"""What a CAN FD frame can hold from eight bytes on (ISO 11898-1:2015, table 5)."""
MOST_BYTES = 4095
"""What a first frame's twelve bits can say; longer messages take its escape of 32 bits."""
MOST_BUFFER_BYTES = 1024 * 1024
PAD = 0xAA
MOST_WAIT_FRAMES = 10


class Pci(IntEnum):
    """Kinds of frames: the high nibble of the first byte (table 9)."""

    SINGLE = 0
    FIRST = 1
    CONSECUTIVE = 2
    FLOW_CONTROL = 3


CLEAR_TO_SEND, WAIT, OVERFLOW = 0x00, 0x01, 0x02


class SendFailed(Exception):
    """The tester did not take a response."""


@dataclass(frozen=True, kw_only=True)
class Transport:
    """How one ECU receives and sends.

    `block_size` consecutive frames follow each flow control (0: all), `st_min` is its raw byte.
    `most_bytes` is the receive buffer.
    `waits` flow controls say WAIT, `wait_s` apart, before each that says go. `needs_padding`: frames
    under eight bytes are not heard. N_Cr, the longest pause between consecutive frames, is `n_cr_s`.
    """

    block_size: int = 0
    st_min: int = 0
    most_bytes: int = MOST_BYTES
    waits: int = 0
    wait_s: float = 0.05
    needs_padding: bool = False
    n_cr_s: float = 1.0

    def __post_init__(self) -> None:
        """Raises ConfigError that names the value."""
        for name in ("block_size", "st_min"):
            if not 0 <= getattr(self, name) <= 0xFF:
                raise ConfigError(f"{name} is {getattr(self, name)}, not a byte")
        if not 1 <= self.most_bytes <= MOST_BUFFER_BYTES or not 0 <= self.waits <= 100:
            raise ConfigError(f"most_bytes {self.most_bytes} or waits {self.waits} is out of range")


@dataclass(kw_only=True)
class _Incoming:
    size: int
    data: bytearray
    frame_bytes: int
    next_number: int
    due_at: float
    until_flow_control: int


class Receiver:
    """Puts requests together, frame by frame; `send` carries flow control, `wait` passes seconds."""

    def __init__(
        self,
        send: Callable[[bytes], None],
        *,
        clock: Callable[[], float],
        wait: Callable[[float], None] = lambda _: None,
        transport: Transport | None = None,
    ) -> None:
        self._send = send
        self._clock = clock
        self._wait = wait
        self._transport = transport or Transport()
        self._incoming: _Incoming | None = None

    @property
    def is_receiving(self) -> bool:
        """Whether a message has begun and may still be completed."""
        return self._incoming is not None and self._clock() <= self._incoming.due_at

    def forget(self) -> None:
        """Drop what is half received."""
        self._incoming = None

    def feed(self, data: bytes, *, functional: bool) -> bytes | None:
        """Take a frame's data; returns a message when that completes one."""
        if not data or (self._transport.needs_padding and len(data) < CLASSIC_BYTES):
            return None
        kind, low = data[0] >> 4, data[0] & 0x0F
        if kind == Pci.SINGLE:
            message = _single(data)
            # A single frame in the middle of a message replaces it (clause 9.8.3).
            if message is not None and not functional:
                self._incoming = None
            return message
        if functional:
            return None
        if kind == Pci.FIRST:
            self._begin(data)
        elif kind == Pci.CONSECUTIVE:
            return self._continue(low, data)
        return None

    def _begin(self, data: bytes) -> None:
        if len(data) < CLASSIC_BYTES:
            return
        self._incoming = None
        size, start = (data[0] & 0x0F) << 8 | data[1], 2
        if size == 0:
            size, start = int.from_bytes(data[2:6], "big"), 6
            # The escape is for lengths that need it (9.6.3.2).
            if size <= MOST_BYTES:
                return
        # A message that a single frame of this length could carry does not begin so (table 14).
        if size <= (len(data) - 1 if len(data) == CLASSIC_BYTES else len(data) - 2):
            return
        if size > self._transport.most_bytes:
            self._flow_control(OVERFLOW)
            return
        self._incoming = _Incoming(
            size=size,
            data=bytearray(data[start:]),
            frame_bytes=len(data),
            next_number=1,
            due_at=0.0,
            until_flow_control=self._transport.block_size,
        )
        self._go_on(self._incoming)

    def _continue(self, number: int, data: bytes) -> bytes | None:
        incoming = self._incoming
        if incoming is None:
            return None
        if self._clock() > incoming.due_at or number != incoming.next_number:
            self._incoming = None
            return None
        left = incoming.size - len(incoming.data)
        # All have the first frame's length but the last, which has at least what is left (9.6.4).
        if len(data) > incoming.frame_bytes or len(data) < min(incoming.frame_bytes, left + 1):
            return None
        incoming.data += data[1:]
        incoming.next_number = (number + 1) & 0x0F
        incoming.due_at = self._clock() + self._transport.n_cr_s
        if len(incoming.data) >= incoming.size:
            self._incoming = None
            return bytes(incoming.data[: incoming.size])
        if incoming.until_flow_control:
            incoming.until_flow_control -= 1
            if incoming.until_flow_control == 0:
                incoming.until_flow_control = self._transport.block_size
                self._go_on(incoming)
        return None

    def _go_on(self, incoming: _Incoming) -> None:
        for _ in range(self._transport.waits):
            self._flow_control(WAIT)
            self._wait(self._transport.wait_s)
        self._flow_control(CLEAR_TO_SEND)
        incoming.due_at = self._clock() + self._transport.n_cr_s

    def _flow_control(self, status: int) -> None:
        settings = self._transport
        self._send(pad(bytes([Pci.FLOW_CONTROL << 4 | status, settings.block_size, settings.st_min])))


def _single(data: bytes) -> bytes | None:
    """The message of a single frame, or None when its length does not fit (tables 12 and 13)."""
    low = data[0] & 0x0F
    if len(data) <= CLASSIC_BYTES:
        return data[1 : 1 + low] if 1 <= low < len(data) else None
    # In a longer frame the length has a byte of its own, and takes the shortest frame that it fits.
    if low != 0:
        return None
    size = data[1]
    return data[2 : 2 + size] if size > 7 and len(data) == _frame_bytes(size + 2) else None


def send_message(
    message: bytes,
    send: Callable[[bytes], None],
    next_flow_control: Callable[[], bytes | None],
    wait: Callable[[float], None],
    *,
    fd: bool = False,
) -> None:
    """Send a response of at least one byte, in frames of up to 64 bytes with `fd`.

    `next_flow_control` gives the tester's next flow control frame, or None when N_Bs (1 s) is over;
    `wait` passes seconds between consecutive frames. Raises SendFailed.
    """
    frame_bytes = FD_BYTES if fd else CLASSIC_BYTES
    if len(message) <= 7:
        send(pad(bytes([len(message)]) + message))
        return
    if len(message) <= frame_bytes - 2 and fd:
        send(pad(bytes([0x00, len(message)]) + message))
        return
    if len(message) <= MOST_BYTES:
        head = (Pci.FIRST << 12 | len(message)).to_bytes(2, "big")
    else:
        head = (Pci.FIRST << 44 | len(message)).to_bytes(6, "big")
    at = frame_bytes - len(head)
    send(head + message[:at])
    number, left_in_block, gap_s, waits = 1, 0, 0.0, 0
    unbounded = False
    while at < len(message):
        if left_in_block == 0 and not unbounded:
            frame = next_flow_control()
            if frame is None:
                raise SendFailed("no flow control within N_Bs")
            status = frame[0] & 0x0F
            if status == WAIT and waits < MOST_WAIT_FRAMES:
                waits += 1
                continue
            if status != CLEAR_TO_SEND:
                raise SendFailed(f"flow control with status {status}")
            waits = 0
            left_in_block, unbounded, gap_s = frame[1], frame[1] == 0, st_min_s(frame[2])
        if gap_s:
            wait(gap_s)
        piece = message[at : at + frame_bytes - 1]
        send(pad(bytes([Pci.CONSECUTIVE << 4 | number]) + piece))
        at, number, left_in_block = at + len(piece), (number + 1) & 0x0F, left_in_block - 1


def st_min_s(raw: int) -> float:
    """STmin in seconds (table 20): 00..7F ms, F1..F9 100 to 900 us, reserved values as the longest."""
    if raw <= 0x7F:
        return raw / 1000
    if 0xF1 <= raw <= 0xF9:
        return (raw - 0xF0) / 10_000
    return 0.127


def _frame_bytes(size: int) -> int:
    """The shortest frame from eight bytes on that holds `size` bytes; 0 when there is none."""
    at = bisect_left(FD_LENGTHS, size)
    return FD_LENGTHS[at] if at < len(FD_LENGTHS) else 0


def pad(data: bytes) -> bytes:
    """Filled up to the length of a frame, at least eight bytes."""
    return data.ljust(_frame_bytes(len(data)), bytes([PAD]))
