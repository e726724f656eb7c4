"""Classic CAN frames as 16 bytes, the hub's greeting, and what a frame costs on a real wire.

The form is that of Linux's `struct can_frame` (linux/can.h), little-endian, with one reserved byte
used by the hub: u32 identifier with flags, u8 DLC, u8 hub flags, two zero bytes, eight data bytes
(unused ones zero).
"""

from __future__ import annotations

import struct

import can

FRAME_BYTES = 16
FRAME = struct.Struct("<IBB2x8s")
HEAD = struct.Struct("<IB11x")
"""Identifier and DLC of a frame, for readers that leave the data alone."""

EXTENDED = 0x8000_0000
REMOTE = 0x4000_0000
ERROR = 0x2000_0000
OWN = 0x01
"""Hub flag: the frame is the reader's own, which asked to hear itself."""

GREETING = struct.Struct("<4sBBHI")
"""What either side says first: magic, version, flags (client: OWN), zero, bit rate (hub; 0: unpaced)."""
MAGIC = b"QHUB"
VERSION = 1

MOST_PATH_BYTES = 107
"""sun_path of Linux's sockaddr_un has 108 bytes and ends with a NUL (unix(7))."""


def bits_of(can_id: int, dlc: int) -> int:
    """Bits that a frame occupies the wire, without stuff bits (ISO 11898-1).

    47 + 8 a data byte with an 11-bit identifier, 67 + 8 a data byte with a 29-bit one (the three bits
    of interframe space included): 111 and 131 for eight bytes. Remote frames carry no data. Worst-case
    stuffing would add up to a fifth.
    """
    data_bytes = 0 if can_id & REMOTE else dlc
    return (67 if can_id & EXTENDED else 47) + 8 * data_bytes


def is_frame(can_id: int, dlc: int) -> bool:
    """Whether this can be the head of a classic frame."""
    if dlc > 8 or can_id & ERROR:
        return False
    return bool(can_id & EXTENDED) or can_id & 0x1FFF_FFFF <= 0x7FF


def encode(message: can.Message) -> bytes:
    """The frame of `message`; raises CanOperationError for FD and error frames, which are not carried."""
    if message.is_fd or message.is_error_frame or message.dlc > 8:
        raise can.CanOperationError("the hub carries classic CAN data and remote frames only")
    can_id = message.arbitration_id
    if not 0 <= can_id <= (0x1FFF_FFFF if message.is_extended_id else 0x7FF):
        raise can.CanOperationError(f"identifier {can_id:#x} is out of range")
    if message.is_extended_id:
        can_id |= EXTENDED
    if message.is_remote_frame:
        can_id |= REMOTE
    return FRAME.pack(can_id, message.dlc, 0, b"" if message.is_remote_frame else bytes(message.data))


def decode(frame: bytes, *, channel: str, at: float) -> can.Message:
    """The message of 16 bytes that came from the hub; `at` is its time stamp (Unix, s)."""
    can_id, dlc, flags, data = FRAME.unpack(frame)
    remote = bool(can_id & REMOTE)
    return can.Message(
        timestamp=at,
        arbitration_id=can_id & 0x1FFF_FFFF,
        is_extended_id=bool(can_id & EXTENDED),
        is_remote_frame=remote,
        dlc=dlc,
        data=None if remote else data[:dlc],
        channel=channel,
        is_rx=not flags & OWN,
    )
