"""The least time that the wire needs for a transfer: frame by frame, with the stuffing of these very bytes.

Blocks of 4095 bytes (service and counter included), one flow control a message (block size 0, STmin 0)
and one response a block; no turnaround anywhere. The bits of a frame are those of sim.can_bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sim.can_bits import classic_bits, fd_bits

BLOCK_BYTES = 4095
_DLC_BYTES = (8, 12, 16, 20, 24, 32, 48, 64)


@dataclass(frozen=True, kw_only=True)
class Wire:
    """A bus: bit/s, and bit/s of the data phase where it is CAN FD."""

    bitrate: int
    data_bitrate: int | None = None

    @property
    def frame_bytes(self) -> int:
        """Bytes of the longest frame."""
        return 8 if self.data_bitrate is None else 64

    def seconds(self, can_id: int, data: bytes, *, extended: bool = False) -> float:
        """What one frame takes."""
        if self.data_bitrate is None:
            return classic_bits(can_id, extended, data) / self.bitrate
        nominal, fast = fd_bits(can_id, extended, data, True)
        return nominal / self.bitrate + fast / self.data_bitrate


def isotp_frames(payload: bytes, frame_bytes: int, padding: int) -> Iterator[bytes]:
    """One message's frames, ISO 15765-2 table 9, padded."""

    def padded(frame: bytes) -> bytes:
        size = next(size for size in _DLC_BYTES if size >= len(frame))
        return frame.ljust(size, bytes([padding]))

    if len(payload) <= 7:
        yield padded(bytes([len(payload)]) + payload)
        return
    if len(payload) <= frame_bytes - 2 and frame_bytes > 8:
        yield padded(bytes([0, len(payload)]) + payload)
        return
    yield bytes([0x10 | len(payload) >> 8, len(payload) & 0xFF]) + payload[: frame_bytes - 2]
    step = frame_bytes - 1
    for number, at in enumerate(range(frame_bytes - 2, len(payload), step), start=1):
        yield padded(bytes([0x20 | number & 0xF]) + payload[at : at + step])


def download_seconds(wire: Wire, data: bytes, *, request_id: int, response_id: int) -> float:
    """TransferData of all of `data`: requests, flow control and responses."""
    total = 0.0
    step = BLOCK_BYTES - 2
    for number, at in enumerate(range(0, len(data), step), start=1):
        block = bytes([0x36, number & 0xFF]) + data[at : at + step]
        frames = list(isotp_frames(block, wire.frame_bytes, 0xCC))
        total += sum(wire.seconds(request_id, frame) for frame in frames)
        if len(frames) > 1:
            total += wire.seconds(response_id, bytes([0x30, 0, 0]).ljust(8, b"\xaa"))
        total += wire.seconds(response_id, bytes([2, 0x76, number & 0xFF]).ljust(8, b"\xaa"))
    return total
