"""The counted bits of a frame against its whole waveform, built slowly from the standard's figures."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.can_bits import FD_LENGTHS, classic_bits, fd_bits

Bits = list[int]

TAIL = [1, 0, 1] + [1] * 7 + [1] * 3
"""CRC delimiter, ACK slot, ACK delimiter, EOF, interframe space."""


def number(value: int, width: int) -> Bits:
    return [int(digit) for digit in format(value, f"0{width}b")]


def data_bits(data: bytes) -> Bits:
    return [bit for byte in data for bit in number(byte, 8)]


def crc(bits: Bits, polynomial: int, width: int, first: int = 0) -> int:
    """Division with remainder, a bit at a time (ISO 11898-1:2015, 10.4.2.6)."""
    register = first
    for bit in bits:
        register <<= 1
        if (register >> width & 1) ^ bit:
            register ^= polynomial | 1 << width
        register &= (1 << width) - 1
    return register


def stuffed(bits: Bits) -> Bits:
    """After five equal bits, stuff bits counted, comes the opposite one (10.5)."""
    out: Bits = []
    for bit in bits:
        out.append(bit)
        if len(out) >= 5 and len(set(out[-5:])) == 1:
            # A stuff bit takes part in the next run, so that the last five may hold one.
            out.append(1 - bit)
    return out


def identifier(can_id: int, extended: bool) -> Bits:
    """SOF to the bit before RTR (RRS)."""
    if extended:
        return [0, *number(can_id >> 18, 11), 1, 1, *number(can_id & 0x3FFFF, 18)]
    return [0, *number(can_id, 11)]


def classic_waveform(can_id: int, extended: bool, data: bytes) -> Bits:
    # RTR, r1, r0 behind a 29-bit identifier; RTR, IDE, r0 behind an 11-bit one.
    body = [*identifier(can_id, extended), 0, 0, 0, *number(len(data), 4), *data_bits(data)]
    return stuffed(body + number(crc(body, 0x4599, 15), 15)) + TAIL


def fd_waveform(can_id: int, extended: bool, data: bytes, brs: bool) -> tuple[Bits, Bits]:
    """What goes at the nominal and at the data bit rate."""
    head = identifier(can_id, extended) + ([0] if extended else [0, 0]) + [1, 0, int(brs)]
    body = [*head, 0, *number(FD_LENGTHS.index(len(data)), 4), *data_bits(data)]
    dynamic = stuffed(body)
    if len(dynamic) - len(stuffed(body[:-1])) == 2:
        # A stuff bit behind the last bit gives way to the fixed one.
        dynamic = dynamic[:-1]
    count = len(dynamic) - len(body)
    gray = count % 8 ^ (count % 8) >> 1
    stuff_count = [*number(gray, 3), gray.bit_count() & 1]
    polynomial, width = (0x102899, 21) if len(data) > 16 else (0x1685B, 17)
    field = stuff_count + number(crc(dynamic + stuff_count, polynomial, width, 1 << (width - 1)), width)
    fixed: Bits = []
    for at, bit in enumerate(field):
        if at % 4 == 0:
            fixed.append(1 - (fixed or dynamic)[-1])
        fixed.append(bit)
    fast_from = len(stuffed(head))
    slow, fast = dynamic[:fast_from], dynamic[fast_from:] + fixed
    return (slow + TAIL, fast) if brs else (slow + fast + TAIL, [])


@pytest.mark.parametrize(
    ("polynomial", "width", "check"),
    [(0x4599, 15, 0x059E), (0x1685B, 17, 0x04F03), (0x102899, 21, 0x0ED841)],
    ids=["CRC-15/CAN", "CRC-17/CAN-FD", "CRC-21/CAN-FD"],
)
def test_the_slow_crc_is_the_catalogues(polynomial: int, width: int, check: int) -> None:
    assert crc(data_bits(b"123456789"), polynomial, width) == check


def test_the_slow_stuffing_is_the_standards() -> None:
    assert stuffed([0] * 5 + [1] * 4 + [0]) == [0] * 5 + [1] + [1] * 4 + [0] + [0]
    assert stuffed([1, 0] * 4) == [1, 0] * 4


IDS = st.one_of(
    st.tuples(st.integers(0, 0x7FF), st.just(False)),
    st.tuples(st.integers(0, 0x1FFFFFFF), st.just(True)),
    st.sampled_from([(0, False), (0x7FF, False), (0, True), (0x1FFFFFFF, True)]),
)
# Long runs are where counting goes wrong.
BYTE = st.one_of(
    st.sampled_from([0x00, 0xFF, 0xF0, 0x0F, 0xE0, 0x1F, 0x07, 0xF8, 0x78, 0x87]), st.integers(0, 255)
)


@given(frame=IDS, data=st.lists(BYTE, max_size=8).map(bytes))
def test_classic_frames(frame: tuple[int, bool], data: bytes) -> None:
    assert classic_bits(*frame, data) == len(classic_waveform(*frame, data))


@given(
    frame=IDS,
    data=st.sampled_from(FD_LENGTHS).flatmap(lambda n: st.lists(BYTE, min_size=n, max_size=n)),
    brs=st.booleans(),
)
def test_fd_frames(frame: tuple[int, bool], data: list[int], brs: bool) -> None:
    slow, fast = fd_waveform(*frame, bytes(data), brs)
    assert fd_bits(*frame, bytes(data), brs) == (len(slow), len(fast))
