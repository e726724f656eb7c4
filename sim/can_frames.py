"""CAN frames as the hub carries them, its greeting, and how long a frame takes on a real wire.

A classic frame has the form of Linux's `struct can_frame` (linux/can.h), 16 bytes, little-endian, with one
reserved byte used by the hub: u32 identifier with flags, u8 number of data bytes (remote frames: DLC), u8
hub flags, two zero bytes, eight data bytes (unused ones zero). An FD frame begins alike, with the flag FD,
and goes on in as many further units of 16 bytes as the rest of its data takes.
"""

from __future__ import annotations

import struct

import can

from sim.can_bits import FD_LENGTHS, classic_bits, fd_bits

FRAME_BYTES = 16
FRAME = struct.Struct("<IBB2x8s")
HEAD = struct.Struct("<IB11x")
"""Identifier and length of a classic frame, for readers that leave the data alone."""
FLAGS_AT = 5

EXTENDED = 0x8000_0000
REMOTE = 0x4000_0000
ERROR = 0x2000_0000
OWN = 0x01
"""Hub flag: the frame is the reader's own, which asked to hear itself. In a greeting: it asks so."""
FD = 0x02
"""Hub flag: an FD frame. In a greeting: the endpoint takes them."""
SWITCHED = 0x04
"""Hub flag of an FD frame: the data are sent at the data bit rate (BRS)."""
PASSIVE = 0x08
"""Hub flag of an FD frame: its sender is error passive (ESI)."""

GREETING = struct.Struct("<4sBBHII")
"""What either side says first: magic, version, flags (client: OWN, FD), zero, bit rate and data bit rate
(hub; 0: unpaced)."""
MAGIC = b"QHUB"
VERSION = 2

MOST_PATH_BYTES = 107
"""sun_path of Linux's sockaddr_un has 108 bytes and ends with a NUL (unix(7))."""

_FD_LENGTHS = frozenset(FD_LENGTHS)


def is_frame(can_id: int, length: int) -> bool:
    """Whether this can be the head of a classic frame."""
    if length > 8 or can_id & ERROR:
        return False
    return bool(can_id & EXTENDED) or can_id & 0x1FFF_FFFF <= 0x7FF


def is_fd_frame(can_id: int, length: int) -> bool:
    """Whether this can be the head of an FD frame."""
    return length in _FD_LENGTHS and not can_id & REMOTE and is_frame(can_id, 0)


def end_of(data: bytes | bytearray, at: int) -> int:
    """Where the frame that begins at `at` ends; its head is there."""
    length = data[at + 4] if data[at + FLAGS_AT] & FD else 0
    return at + FRAME_BYTES + (length + 7) // FRAME_BYTES * FRAME_BYTES


def split(data: bytes) -> tuple[list[bytes], bytes | None]:
    """The whole frames at the beginning of what an endpoint with FD sent, and the rest of it.

    The rest is None when it is no frame.
    """
    frames: list[bytes] = []
    at = 0
    while at + FRAME_BYTES <= len(data):
        can_id, length, flags, _ = FRAME.unpack_from(data, at)
        good = (is_fd_frame if flags & FD else is_frame)(can_id, length)
        if not good or flags & ~(FD | SWITCHED | PASSIVE) or (flags and not flags & FD):
            return frames, None
        end = end_of(data, at)
        if end > len(data):
            break
        frames.append(data[at:end])
        at = end
    return frames, data[at:]


def marked_own(frames: bytes) -> bytes:
    """The same frames, as their sender hears them itself."""
    marked = bytearray(frames)
    at = 0
    while at < len(marked):
        marked[at + FLAGS_AT] |= OWN
        at = end_of(marked, at)
    return bytes(marked)


def seconds_of(frame: bytes, bitrate: int, data_bitrate: int) -> float:
    """How long a whole frame occupies the wire, its stuff bits included (see can_bits)."""
    can_id, length, flags, data = FRAME.unpack_from(frame)
    number, extended = can_id & 0x1FFF_FFFF, bool(can_id & EXTENDED)
    if flags & FD:
        slow, fast = fd_bits(number, extended, _data(frame, length), bool(flags & SWITCHED))
        return slow / bitrate + fast / data_bitrate
    if can_id & REMOTE:
        return classic_bits(number, extended, b"", remote_dlc=length) / bitrate
    return classic_bits(number, extended, data[:length]) / bitrate


def _data(frame: bytes | bytearray, length: int) -> bytes:
    return bytes(frame[8 : 8 + length])


def encode(message: can.Message) -> bytes:
    """The frame of `message`; raises CanOperationError for what no node could send."""
    can_id = message.arbitration_id
    if not 0 <= can_id <= (0x1FFF_FFFF if message.is_extended_id else 0x7FF):
        raise can.CanOperationError(f"identifier {can_id:#x} is out of range")
    if message.is_extended_id:
        can_id |= EXTENDED
    if message.is_fd:
        return _encode_fd(message, can_id)
    if message.is_error_frame or message.dlc > 8 or len(message.data) > 8:
        raise can.CanOperationError("a classic frame has up to 8 bytes, and errors are not sent")
    if message.is_remote_frame:
        can_id |= REMOTE
    return FRAME.pack(can_id, message.dlc, 0, b"" if message.is_remote_frame else bytes(message.data))


def _encode_fd(message: can.Message, can_id: int) -> bytes:
    size = len(message.data)
    if size not in _FD_LENGTHS or message.is_remote_frame or message.is_error_frame:
        raise can.CanOperationError(f"there is no FD frame of {size} bytes, nor a remote one")
    flags = FD | message.bitrate_switch * SWITCHED | message.error_state_indicator * PASSIVE
    data = bytes(message.data)
    frame = FRAME.pack(can_id, size, flags, data[:8]) + data[8:]
    return frame.ljust(end_of(frame, 0), b"\0")


def decode(frame: bytes, *, channel: str, at: float) -> can.Message:
    """The message of a whole frame that came from the hub; `at` is its time stamp (Unix, s)."""
    can_id, length, flags, data = FRAME.unpack_from(frame)
    remote = bool(can_id & REMOTE)
    if flags & FD:
        return can.Message(
            timestamp=at,
            arbitration_id=can_id & 0x1FFF_FFFF,
            is_extended_id=bool(can_id & EXTENDED),
            is_fd=True,
            bitrate_switch=bool(flags & SWITCHED),
            error_state_indicator=bool(flags & PASSIVE),
            dlc=length,
            data=_data(frame, length),
            channel=channel,
            is_rx=not flags & OWN,
        )
    return can.Message(
        timestamp=at,
        arbitration_id=can_id & 0x1FFF_FFFF,
        is_extended_id=bool(can_id & EXTENDED),
        is_remote_frame=remote,
        dlc=length,
        data=None if remote else data[:length],
        channel=channel,
        is_rx=not flags & OWN,
    )
