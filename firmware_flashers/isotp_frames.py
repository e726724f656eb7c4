"""The frames of ISO 15765-2:2016 (normal addressing, classic CAN and CAN FD): made, read, put together.

Pure: bytes in, bytes out; no bus, no clock. Table and clause numbers are the standard's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

CLASSIC_BYTES = 8
FD_BYTES = 64
FD_LENGTHS = (8, 12, 16, 20, 24, 32, 48, 64)
"""Sizes of frames from 8 bytes on that a data length code can say (ISO 11898-1, table 5)."""
MOST_12_BITS = 0xFFF
MOST_32_BITS = 0xFFFF_FFFF
SHORT_SINGLE_BYTES = 7
LONGEST_ST_MIN_S = 0.127
MESSAGE_S, SLOWEST_BYTES_S = 5.0, 500
"""A message that takes longer than this and slower than that many bytes a second is given up.

The latter is a 125 kbit/s bus with 94 % of other traffic.
"""

HEADS = tuple(bytes([0x20 | number]) for number in range(16))
"""The first byte of a consecutive frame, by its sequence number."""


class Kind(IntEnum):
    """The high nibble of the first byte (table 9)."""

    SINGLE = 0
    FIRST = 1
    CONSECUTIVE = 2
    FLOW_CONTROL = 3


_CONSECUTIVE = int(Kind.CONSECUTIVE)  # looked up for every frame


class FlowStatus(IntEnum):
    """The low nibble of a flow control's first byte (table 18)."""

    CLEAR_TO_SEND = 0
    WAIT = 1
    OVERFLOW = 2


@dataclass(frozen=True, kw_only=True)
class FlowControl:
    """What a receiver asks for; `status` is None for a reserved value, `block_size` 0 means all."""

    status: FlowStatus | None
    block_size: int
    st_min_s: float


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What our own flow controls ask for: as bytes of the frame, 0 is the whole rest at full speed."""

    block_size: int = 0
    st_min: int = 0


AT_ONCE = Ask()


def st_min_s(raw: int) -> float:
    """STmin in seconds (table 20): 00..7F ms, F1..F9 100 to 900 us; reserved values as the longest."""
    if raw <= 0x7F:
        return raw / 1000
    if 0xF1 <= raw <= 0xF9:
        return (raw - 0xF0) / 10_000
    return LONGEST_ST_MIN_S


def read_flow_control(data: bytes | bytearray) -> FlowControl | None:
    """None when the frame is none, or too short to be one."""
    if len(data) < 3 or data[0] >> 4 != Kind.FLOW_CONTROL:
        return None
    low = data[0] & 0x0F
    return FlowControl(
        status=FlowStatus(low) if low <= FlowStatus.OVERFLOW else None,
        block_size=data[1],
        st_min_s=st_min_s(data[2]),
    )


class Format:
    """How a sender lays frames out: 8 bytes each, or with `fd` up to 64; filled up with `padding`."""

    def __init__(self, *, fd: bool, padding: int) -> None:
        self.fd = fd
        self.frame_bytes = FD_BYTES if fd else CLASSIC_BYTES
        self.most_single_bytes = self.frame_bytes - 2 if fd else SHORT_SINGLE_BYTES
        self.consecutive_bytes = self.frame_bytes - 1
        self._fill = bytes([padding]) * FD_BYTES

    def padded(self, frame: bytes) -> bytes:
        """The frame with the smallest valid size that holds it."""
        for size in FD_LENGTHS:
            if len(frame) <= size:
                return frame + self._fill[: size - len(frame)]
        raise ValueError(f"{len(frame)} bytes don't fit into a frame")

    def single(self, payload: bytes) -> bytes:
        """A single frame (9.6.2); the short form wherever it holds the payload (table 10)."""
        if not 0 < len(payload) <= self.most_single_bytes:
            raise ValueError(
                f"a single frame carries 1 to {self.most_single_bytes} bytes, these are {len(payload)}"
            )
        if len(payload) <= SHORT_SINGLE_BYTES:
            return self.padded(bytes([len(payload)]) + payload)
        return self.padded(bytes([0, len(payload)]) + payload)

    def first(self, payload: bytes) -> tuple[bytes, int]:
        """The first frame (9.6.3) and how many bytes of the payload it carries."""
        size = len(payload)
        if size <= MOST_12_BITS:
            head = bytes([Kind.FIRST << 4 | size >> 8, size & 0xFF])
        else:
            head = bytes([Kind.FIRST << 4, 0]) + size.to_bytes(4, "big")
        room = self.frame_bytes - len(head)
        return head + payload[:room], room

    def flow_control(self, status: FlowStatus, ask: Ask) -> bytes:
        """A flow control (9.6.5)."""
        return self.padded(bytes([Kind.FLOW_CONTROL << 4 | status, ask.block_size, ask.st_min]))


class Reassembler:
    """Puts messages together, frame by frame; what the standard says to ignore is ignored (table 23).

    `reply` sends a flow control. Seconds are the caller's, who gives a message that `is_open` up by
    `drop` when `due_at` has passed: N_Cr after its last frame, or its own bound from `begun_at` on.
    """

    def __init__(
        self, *, most_bytes: int, n_cr_s: float, reply: Callable[[FlowStatus], None], block_size: int = 0
    ) -> None:
        self._most_bytes = most_bytes
        self._block_size = block_size
        self._block_left = 0
        self._n_cr_s = n_cr_s
        self._reply = reply
        self._data = bytearray()
        self._size = 0
        self._frame_bytes = CLASSIC_BYTES
        self._number = 0
        self._ends_at = 0.0
        self.is_open = False
        self.begun_at = 0.0
        self.due_at = 0.0

    def drop(self) -> None:
        """Forget what is half received."""
        self.is_open = False

    def feed(self, data: bytes | bytearray, now: float) -> bytes | None:
        """Take a frame's data, which came at `now`; returns a message when that completes one."""
        if not data:
            return None
        kind = data[0] >> 4
        if kind == _CONSECUTIVE:
            return self._continue(data, now) if self.is_open else None
        if kind == Kind.SINGLE:
            return self._single(data)
        if kind == Kind.FIRST:
            self._begin(data, now)
        return None

    def _single(self, data: bytes | bytearray) -> bytes | None:
        size, head = data[0] & 0x0F, 1
        if len(data) > CLASSIC_BYTES:
            # Over 8 bytes only the escape is valid (9.6.2.2).
            if size != 0:
                return None
            size, head = data[1], 2
        if not 0 < size <= len(data) - head:
            return None
        self.drop()
        return bytes(data[head : head + size])

    def _begin(self, data: bytes | bytearray, now: float) -> None:
        if len(data) not in FD_LENGTHS:
            return
        size, head = (data[0] & 0x0F) << 8 | data[1], 2
        if size == 0:
            size, head = int.from_bytes(data[2:6], "big"), 6
            if size <= MOST_12_BITS:
                return
        # What a single frame of this size could carry never comes as a first frame (table 14).
        if size < (CLASSIC_BYTES if len(data) == CLASSIC_BYTES else len(data) - 1):
            return
        self.drop()
        if size > self._most_bytes:
            self._reply(FlowStatus.OVERFLOW)
            return
        self._data = bytearray(data[head:])
        self._size = size
        self._frame_bytes = len(data)
        self._number = 1
        self.begun_at = now
        self._ends_at = now + MESSAGE_S + size / SLOWEST_BYTES_S
        self.due_at = now + self._n_cr_s
        self._block_left = self._block_size
        self.is_open = True
        self._reply(FlowStatus.CLEAR_TO_SEND)

    def _continue(self, data: bytes | bytearray, now: float) -> bytes | None:
        left = self._size - len(self._data)
        length = len(data)
        # RX_DL is the first frame's size; only the last frame may be shorter (9.5.5).
        if length != self._frame_bytes and (length > self._frame_bytes or length <= left):
            return None
        if data[0] & 0x0F != self._number:
            self.drop()
            return None
        self._data += data[1:]
        if length > left:
            self.drop()
            return bytes(self._data[: self._size])
        self._number = (self._number + 1) & 0x0F
        self.due_at = min(now + self._n_cr_s, self._ends_at)
        if self._block_size:
            self._block_left -= 1
            if self._block_left == 0:
                self._block_left = self._block_size
                self._reply(FlowStatus.CLEAR_TO_SEND)
        return None
