"""ISO-TP (ISO 15765-2:2016, normal addressing, classic CAN) as a server needs it, in one thread.

Strict about what it receives: a frame of the wrong sequence number ends its message, a message that is longer
than 4095 bytes is answered with an overflow, short frames (a tester pads to eight bytes) and frames that
nobody expects are ignored. The bus must not lose frames while the server works, which the hub and
`virtual` don't.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

FRAME_DATA_BYTES = 8
MOST_BYTES = 4095
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


@dataclass(kw_only=True)
class _Incoming:
    size: int
    data: bytearray
    next_number: int
    due_at: float
    until_flow_control: int


class Receiver:
    """Puts requests together, frame by frame; `send` carries flow control.

    `block_size` consecutive frames follow each flow control (0: all), `st_min` is its raw byte. N_Cr is
    1 s.
    """

    def __init__(
        self,
        send: Callable[[bytes], None],
        *,
        clock: Callable[[], float],
        block_size: int = 0,
        st_min: int = 0,
        n_cr_s: float = 1.0,
    ) -> None:
        self._send = send
        self._clock = clock
        self._block_size = block_size
        self._st_min = st_min
        self._n_cr_s = n_cr_s
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
        if len(data) < FRAME_DATA_BYTES:
            return None
        kind, low = data[0] >> 4, data[0] & 0x0F
        if kind == Pci.SINGLE:
            # A single frame in the middle of a message replaces it (clause 9.8.3).
            if not 1 <= low <= 7:
                return None
            if not functional:
                self._incoming = None
            return data[1 : 1 + low]
        if functional:
            return None
        if kind == Pci.FIRST:
            self._begin(low << 8 | data[1], data[2:])
        elif kind == Pci.CONSECUTIVE:
            return self._continue(low, data[1:])
        return None

    def _begin(self, size: int, data: bytes) -> None:
        self._incoming = None
        # Zero is the escape to 32-bit lengths, which are all over what this server takes.
        if size == 0 or size > MOST_BYTES:
            self._flow_control(OVERFLOW)
        elif size > 7:
            self._incoming = _Incoming(
                size=size,
                data=bytearray(data),
                next_number=1,
                due_at=self._clock() + self._n_cr_s,
                until_flow_control=self._block_size,
            )
            self._flow_control(CLEAR_TO_SEND)

    def _continue(self, number: int, data: bytes) -> bytes | None:
        incoming = self._incoming
        if incoming is None:
            return None
        if number != incoming.next_number or self._clock() > incoming.due_at:
            self._incoming = None
            return None
        incoming.data += data
        incoming.next_number = (number + 1) & 0x0F
        incoming.due_at = self._clock() + self._n_cr_s
        if len(incoming.data) >= incoming.size:
            self._incoming = None
            return bytes(incoming.data[: incoming.size])
        if self._block_size:
            incoming.until_flow_control -= 1
            if incoming.until_flow_control == 0:
                incoming.until_flow_control = self._block_size
                self._flow_control(CLEAR_TO_SEND)
        return None

    def _flow_control(self, status: int) -> None:
        self._send(pad(bytes([Pci.FLOW_CONTROL << 4 | status, self._block_size, self._st_min])))


def send_message(
    message: bytes,
    send: Callable[[bytes], None],
    next_flow_control: Callable[[], bytes | None],
    wait: Callable[[float], None],
) -> None:
    """Send a response of 1 to 4095 bytes.

    `next_flow_control` gives the tester's next flow control frame, or None when N_Bs (1 s) is over;
    `wait` passes seconds between consecutive frames. Raises SendFailed.
    """
    if len(message) <= 7:
        send(pad(bytes([len(message)]) + message))
        return
    send(bytes([Pci.FIRST << 4 | len(message) >> 8, len(message) & 0xFF]) + message[:6])
    at, number, left_in_block, gap_s, waits = 6, 1, 0, 0.0, 0
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
            left_in_block, unbounded, gap_s = frame[1], frame[1] == 0, st_min_s(frame[2])
        if gap_s:
            wait(gap_s)
        send(pad(bytes([Pci.CONSECUTIVE << 4 | number]) + message[at : at + 7]))
        at, number, left_in_block = at + 7, (number + 1) & 0x0F, left_in_block - 1


def st_min_s(raw: int) -> float:
    """STmin in seconds (table 20): 00..7F ms, F1..F9 100 to 900 us, reserved values as the longest."""
    if raw <= 0x7F:
        return raw / 1000
    if 0xF1 <= raw <= 0xF9:
        return (raw - 0xF0) / 10_000
    return 0.127


def pad(data: bytes) -> bytes:
    """Eight bytes."""
    return data.ljust(FRAME_DATA_BYTES, bytes([PAD]))
