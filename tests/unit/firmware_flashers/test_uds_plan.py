"""What is sent and what is not: the parts always make the whole again, whatever the image looks like."""

from __future__ import annotations

import zlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_flashers.base import MemoryRange
from firmware_flashers.uds import block_requests
from firmware_flashers.uds_plan import Stretch, deflated, runs, stretches, together

PIECES = st.lists(
    st.one_of(
        st.binary(min_size=1, max_size=40),
        st.integers(1, 120).map(lambda count: b"\xff" * count),
    ),
    max_size=12,
)


@given(pieces=PIECES, word=st.sampled_from([1, 4, 8, 16, 32]), least=st.integers(0, 100))
def test_runs_and_the_erased_flash_between_them_are_the_image(
    pieces: list[bytes], word: int, least: int
) -> None:
    data = b"".join(pieces)
    data += b"\xff" * (-len(data) % word)
    flash = bytearray(b"\xff" * len(data))
    end = -1
    for run in runs(data, word_bytes=word, erased_run_bytes=least):
        assert run.data
        assert run.offset % word == 0
        assert len(run.data) % word == 0
        assert run.offset > end  # in order, and never touching: else they were one
        end = run.offset + len(run.data)
        flash[run.offset : end] = run.data
    assert flash == data
    if least:
        # Nothing long is sent: within one run every stretch of 0xFF is shorter, but for its words' rest.
        most = max(least, word) + 2 * word
        assert all(
            b"\xff" * most not in run.data for run in runs(data, word_bytes=word, erased_run_bytes=least)
        )


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", []),
        (b"\xff" * 4096, []),
        (b"\x01" * 8 + b"\xff" * 16 + b"\x02" * 8, [(0, 8), (24, 8)]),
        (b"\x01" * 8 + b"\xff" * 15 + b"\x02" * 9, [(0, 32)]),
        (b"\xff" * 17 + b"\x02" * 7, [(16, 8)]),
        (b"\x01" * 9 + b"\xff" * 23, [(0, 12)]),
    ],
)
def test_runs_of_an_image(data: bytes, found: list[tuple[int, int]]) -> None:
    got = [(run.offset, len(run.data)) for run in runs(data, word_bytes=4, erased_run_bytes=16)]
    assert got == found


def test_a_nasty_image_is_planned_in_no_time() -> None:
    data = (b"\xff" * 99_999 + b"\x00") * 10
    assert [run.offset for run in runs(data, word_bytes=4, erased_run_bytes=100_000)] == [0]


SECTORS = [MemoryRange(start=0x1000 * n, end=0x1000 * (n + 1)) for n in range(8)]


@given(wanted=st.sets(st.integers(0, 7)), length=st.integers(0x7001, 0x8000))
def test_stretches_are_neighbours_put_together(wanted: set[int], length: int) -> None:
    data = bytes(n % 251 for n in range(length))
    found = stretches(SECTORS, [SECTORS[n] for n in sorted(wanted)], data)
    assert [one for stretch in found for one in stretch.sectors] == [SECTORS[n] for n in sorted(wanted)]
    for one in found:
        assert one.data == data[one.start : one.sectors[-1].end]
    for first, second in pairwise(found):
        assert first.sectors[-1].end < second.start


@pytest.mark.parametrize(
    ("most", "sizes"),
    [(1, [1] * 8), (0x1FFF, [1] * 8), (0x2000, [2] * 4), (0x3000, [3, 3, 2]), (2**31, [8])],
)
def test_small_sectors_are_erased_together(most: int, sizes: list[int]) -> None:
    assert [(one.end - one.start) // 0x1000 for one in together(tuple(SECTORS), most)] == sizes
    apart = tuple(SECTORS[n] for n in (0, 2, 3))
    assert len(together(apart, 2**31)) == 2


@pytest.mark.parametrize(
    ("done", "start"), [(0, 0x2000), (0xFFF, 0x2000), (0x1000, 0x3000), (0x27FF, 0x4000), (0x2800, 0x4000)]
)
def test_a_stretch_goes_on_from_the_sector_of_its_first_missing_byte(done: int, start: int) -> None:
    data = bytes(n % 251 for n in range(0x2800))
    rest = Stretch(sectors=tuple(SECTORS[2:5]), data=data).rest(done)
    assert rest.start == start
    assert rest.data == data[start - 0x2000 :]
    assert rest.sectors[-1] == SECTORS[4]


@given(data=st.binary(max_size=3000))
def test_what_is_compressed_is_smaller_and_comes_back(data: bytes) -> None:
    for content in (data, data[:10] * 300):
        packed = deflated(content)
        if packed is not None:
            assert len(packed) < len(content)
            assert zlib.decompressobj(-12).decompress(packed) == content


@given(data=st.binary(min_size=1, max_size=1500), most=st.integers(1, 9))
def test_blocks_count_from_one_and_wrap(data: bytes, most: int) -> None:
    requests = block_requests(data, most)
    assert b"".join(one[2:] for one in requests) == data
    assert [one[:2] for one in requests] == [bytes([0x36, n & 0xFF]) for n in range(1, len(requests) + 1)]
    assert all(len(one) == most + 2 for one in requests[:-1])
