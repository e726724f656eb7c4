"""Deltas: one image told as the difference to another, small where code only moved.

The differencing is bsdiff's (Percival, "Naive Differences of Executable Code", 2003), found by the
library bsdiff4 where releases are made. Applying is done here, in Python alone: what a truck is given
is not signed, so no C code reads it, and memory, time and output are bounded whatever it holds:

- memory: two windows of LZMA and three chunks, whatever the sizes;
- output: exactly the signed length, else DeltaBroken; time follows from it, for there may be no more
  pieces than a real delta has;
- every place in the base lies inside the base.

The result is nothing until its SHA-256 is the signed one: the caller's to check, as of any download.

Form, version 1 (integers little endian): magic `QDELTA1` and a line feed; u64 length of the base, u64
length of the image; u32 lengths of three packed streams (control, difference, new bytes), then these.
Each is raw LZMA2 (FILTERS). Control: per piece three LEB128 numbers: bytes that are the base's plus
difference, bytes that are new, and the zigzag step of the base's place after it.
"""

from __future__ import annotations

import io
import lzma
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from shared.errors import OtaError

FORMAT = "quarry-delta-1"
MAGIC = b"QDELTA1\n"
HEADER = struct.Struct("<8sQQ3I")
WINDOW_BYTES = 1 << 20
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": WINDOW_BYTES}]
MOST_IMAGE_BYTES = 64 * 1024 * 1024
"""Images that deltas are made of: the search keeps both, and ten times the base, in memory."""
CHUNK_BYTES = 64 * 1024
LEAST_PER_PIECE = 4
"""Bytes of output that a piece brings on the average at least; a real delta's bring tens."""
FREE_PIECES = 1024


class DeltaBroken(OtaError):
    """A delta that can't be applied to this base: the whole image is fetched instead."""

    code = "delta_broken"
    advice = "Nothing to do: the whole image is fetched. If it happens often, make the delta anew."


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a delta says of itself; lengths in bytes, `packed` of its three streams."""

    base_length: int
    length: int
    packed: tuple[int, int, int]


def make_delta(base: bytes, image: bytes) -> bytes:
    """The delta from `base` to `image`. Needs bsdiff4 (extra `release`); slow and hungry: for releases.

    Raises ValueError for images over MOST_IMAGE_BYTES, or a delta that no truck would take.
    """
    import bsdiff4.core

    if max(len(base), len(image)) > MOST_IMAGE_BYTES:
        raise ValueError(f"deltas are made of images up to {MOST_IMAGE_BYTES} bytes")
    control, difference, extra = bsdiff4.core.diff(base, image)
    pieces = [_signed(word) for (word,) in struct.iter_unpack("<Q", control)]
    if len(pieces) // 3 > most_pieces(len(image)):
        raise ValueError("the images have too little in common")
    words = bytearray()
    for number, value in enumerate(pieces):
        _put(words, value if number % 3 < 2 else (value << 1) ^ (value >> 63))
    streams = [lzma.compress(one, lzma.FORMAT_RAW, filters=FILTERS) for one in (words, difference, extra)]
    header = HEADER.pack(MAGIC, len(base), len(image), *map(len, streams))
    return b"".join([header, *streams])


def most_pieces(length: int) -> int:
    """Pieces that a delta of an image of `length` bytes may have."""
    return FREE_PIECES + length // LEAST_PER_PIECE


def read_header(delta: BinaryIO) -> Header:
    """The head of a delta, and whether the file is as long as it says. Raises DeltaBroken."""
    raw = delta.read(HEADER.size)
    if len(raw) != HEADER.size:
        raise DeltaBroken("the delta ends in its header")
    magic, base_length, length, *packed = HEADER.unpack(raw)
    if magic != MAGIC:
        raise DeltaBroken("this is no delta of a form that is known here")
    if delta.seek(0, io.SEEK_END) != HEADER.size + sum(packed):
        raise DeltaBroken("the delta's streams are not as long as it says")
    return Header(base_length=base_length, length=length, packed=(packed[0], packed[1], packed[2]))


def apply_delta(base: BinaryIO, delta: BinaryIO, *, length: int) -> Iterator[bytes]:
    """The image as it comes out, in chunks, `length` bytes in all.

    `base` and `delta` are open, seekable files. Raises DeltaBroken, also after chunks have come: what
    was written until then is to be thrown away.
    """
    header = read_header(delta)
    if header.length != length:
        raise DeltaBroken(f"the delta is of an image of {header.length} bytes, {length} were signed")
    base_length = base.seek(0, io.SEEK_END)
    if header.base_length != base_length:
        raise DeltaBroken(f"the delta is for a base of {header.base_length} bytes, this has {base_length}")
    begins = HEADER.size
    streams = []
    for packed in header.packed:
        streams.append(_Stream(delta, begins, packed))
        begins += packed
    control, difference, extra = streams
    done = place = pieces = 0
    while done < length:
        pieces += 1
        if pieces > most_pieces(length):
            raise DeltaBroken("the delta has more pieces than any real one")
        alike, new, step = control.number(), control.number(), control.number()
        if done + alike + new > length:
            raise DeltaBroken("the delta's pieces do not make an image of the signed length")
        if place < 0 or place + alike > base_length:
            raise DeltaBroken("the delta reaches beyond its base")
        base.seek(place)
        for size in _chunks(alike):
            old = base.read(size)
            if len(old) != size:
                raise DeltaBroken("the base ends too early")
            yield _plus(old, difference.take(size))
        for size in _chunks(new):
            yield extra.take(size)
        done += alike + new
        place += alike + ((step >> 1) ^ -(step & 1))
    for one in streams:
        one.finish()


class _Stream:
    """One packed stream of a delta, unpacked as far as it is asked for."""

    def __init__(self, file: BinaryIO, begin: int, packed: int) -> None:
        self._file = file
        self._at = begin
        self._end = begin + packed
        self._unpack = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=FILTERS)
        self._ready = b""
        self._used = 0

    def take(self, count: int) -> bytes:
        """Exactly `count` bytes."""
        parts = []
        while count:
            self._refill()
            part = self._ready[self._used : self._used + count]
            self._used += len(part)
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def number(self) -> int:
        """One LEB128 number of at most 63 bits."""
        value = shift = 0
        while True:
            self._refill()
            byte = self._ready[self._used]
            self._used += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
            if shift >= 63:
                raise DeltaBroken("a number in the delta is too large")

    def finish(self) -> None:
        """Raise DeltaBroken when there is more than was asked for."""
        left = self._used < len(self._ready) or self._next()
        if left or self._at < self._end or self._unpack.unused_data:
            raise DeltaBroken("the delta holds more than its image")

    def _refill(self) -> None:
        if self._used == len(self._ready):
            self._ready, self._used = self._next(), 0
            if not self._ready:
                raise DeltaBroken("the delta ends too early")

    def _next(self) -> bytes:
        """At least one more byte, but not many; none at the end."""
        try:
            while not self._unpack.eof:
                raw = b""
                if self._unpack.needs_input:
                    self._file.seek(self._at)
                    raw = self._file.read(min(CHUNK_BYTES, self._end - self._at))
                    self._at += len(raw)
                    if not raw:
                        return b""
                out = self._unpack.decompress(raw, max_length=CHUNK_BYTES)
                if out:
                    return out
        except lzma.LZMAError as error:
            raise DeltaBroken(f"the delta can't be unpacked: {error}") from error
        return b""


def _chunks(count: int) -> Iterator[int]:
    while count:
        size = min(count, CHUNK_BYTES)
        yield size
        count -= size


def _plus(old: bytes, difference: bytes) -> bytes:
    """Byte by byte, each modulo 256: as one number whose bytes' top bits are added apart from the rest."""
    size = len(old)
    if not any(difference):
        return old
    a, b = int.from_bytes(old, "little"), int.from_bytes(difference, "little")
    top = int.from_bytes(b"\x80" * size, "little")
    rest = int.from_bytes(b"\x7f" * size, "little")
    return (((a & rest) + (b & rest)) ^ ((a ^ b) & top)).to_bytes(size, "little")


def _signed(word: int) -> int:
    # bsdiff writes sign and magnitude.
    return -(word & ~(1 << 63)) if word >> 63 else word


def _put(out: bytearray, value: int) -> None:
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
