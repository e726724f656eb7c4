"""Deltas: what was made comes out again; whatever is not one, is refused within bounds."""

from __future__ import annotations

import io
import lzma
import random
import struct

import pytest

from shared.delta import (
    FILTERS,
    FORMAT,
    FREE_PIECES,
    HEADER,
    MAGIC,
    MOST_IMAGE_BYTES,
    DeltaBroken,
    apply_delta,
    make_delta,
    most_pieces,
)
from shared.messages import Delta, Feature

RANDOM = random.Random(5)
BASE = RANDOM.randbytes(50_000)


def moved(base: bytes, at: int, new: bytes) -> bytes:
    """Code inserted at `at`: words behind it that point beyond it grow."""
    shifted = bytearray(base[:at] + new + base[at:])
    for place in range(at + len(new), len(shifted) - 4, 40):
        [value] = struct.unpack_from("<I", shifted, place)
        struct.pack_into("<I", shifted, place, (value + len(new)) % 2**32)
    return bytes(shifted)


def applied(base: bytes, delta: bytes, length: int) -> bytes:
    return b"".join(apply_delta(io.BytesIO(base), io.BytesIO(delta), length=length))


PAIRS = {
    "the same": (BASE, BASE),
    "code inserted early": (BASE, moved(BASE, 500, b"\x90" * 36)),
    "code removed": (BASE, BASE[:100] + BASE[900:]),
    "another order": (BASE, BASE[25_000:] + BASE[:25_000]),
    "nothing in common": (BASE[:3000], random.Random(6).randbytes(3000)),
    "an empty base": (b"", BASE[:1000]),
    "one byte": (b"a", b"b"),
    "shorter": (BASE, BASE[:10]),
    "much longer": (BASE[:10], BASE),
}


@pytest.mark.parametrize("case", PAIRS, ids=lambda case: str(case).replace(" ", "-"))
def test_the_image_comes_out_again(case: str) -> None:
    base, image = PAIRS[case]
    assert applied(base, make_delta(base, image), len(image)) == image


def test_a_delta_of_moved_code_is_small() -> None:
    base, image = PAIRS["code inserted early"]
    assert len(make_delta(base, image)) < len(image) / 10


def pack(control: bytes, difference: bytes = b"", extra: bytes = b"", **head: int) -> bytes:
    streams = [lzma.compress(one, lzma.FORMAT_RAW, filters=FILTERS) for one in (control, difference, extra)]
    lengths = [head.get("base", 100), head.get("length", 100), *map(len, streams)]
    return HEADER.pack(MAGIC, *lengths) + b"".join(streams)


ZEROS = bytes(100)
GOOD = pack(bytes([100, 0, 0]), ZEROS)
BOMB = lzma.compress(bytes(1 << 26), lzma.FORMAT_RAW, filters=FILTERS)
BROKEN = {
    "empty": b"",
    "a cut header": GOOD[:30],
    "another form": b"BSDIFF40" + GOOD[8:],
    "cut streams": GOOD[:-1],
    "more behind": GOOD + b"x",
    "for another base": pack(bytes([100, 0, 0]), ZEROS, base=101),
    "of another image": pack(bytes([100, 0, 0]), ZEROS, length=99),
    "longer than signed": pack(bytes([100, 1, 0]), ZEROS, b"x"),
    "behind the base": pack(bytes([60, 0, 0, 40, 0, 0, 1, 0, 0])[:3] + bytes([50, 0, 0]), bytes(110)),
    "a step behind the base": pack(bytes([10, 0, 200, 1, 90, 0, 0]), ZEROS),
    "a step before the base": pack(bytes([10, 0, 99, 90, 0, 0]), ZEROS),
    "a huge number": pack(b"\xff" * 20),
    "no pieces": pack(b""),
    "endless empty pieces": pack(bytes(3 * (FREE_PIECES + 200))),
    "too little difference": pack(bytes([100, 0, 0]), ZEROS[:99]),
    "too much difference": pack(bytes([100, 0, 0]), ZEROS + b"x"),
    "too little that is new": pack(bytes([0, 100, 0]), b"", ZEROS[:99]),
    "more pieces than asked for": pack(bytes([100, 0, 0, 1, 1, 1]), ZEROS),
    "a bomb": HEADER.pack(MAGIC, 100, 100, len(BOMB), 0, 0) + BOMB,
    "streams of noise": HEADER.pack(MAGIC, 100, 100, 50, 0, 0) + random.Random(7).randbytes(50),
}


def test_a_delta_made_by_hand_is_good() -> None:
    assert applied(BASE[:100], GOOD, 100) == BASE[:100]


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: str(case).replace(" ", "-"))
def test_what_is_no_delta_is_refused(case: str) -> None:
    with pytest.raises(DeltaBroken):
        applied(BASE[:100], BROKEN[case], 100)


def test_a_hostile_delta_brings_no_byte_too_many() -> None:
    delta = pack(bytes([100, 0, 0]), ZEROS, length=50)
    came: list[bytes] = []
    with pytest.raises(DeltaBroken):
        came.extend(apply_delta(io.BytesIO(BASE[:100]), io.BytesIO(delta), length=50))
    assert came == []


def test_what_no_truck_would_take_is_not_made() -> None:
    with pytest.raises(ValueError, match="bytes"):
        make_delta(b"", bytes(MOST_IMAGE_BYTES + 1))
    assert most_pieces(0) == FREE_PIECES


def test_the_form_has_one_name_in_hello_command_and_file() -> None:
    fields = {"base_sha256": "0" * 64, "url": "u", "length": 1, "sha256": "1" * 64}
    assert {Feature.DELTA.value, Delta.from_obj(fields).format} == {FORMAT}
