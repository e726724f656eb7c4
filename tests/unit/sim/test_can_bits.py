"""Frames on the wire, counted bit by bit: by hand and against published figures."""

from __future__ import annotations

import pytest

from sim.can_bits import classic_bits, fd_bits

ALTERNATING = 0x555
FD = {
    # 17 bits to BRS, 13 behind the CRC; ESI, DLC 4, data, stuff count 4, CRC, fixed stuff bits.
    "64 bytes, nothing to stuff": (ALTERNATING, False, b"\x55" * 64, True, (30, 549)),
    "without a switch all is nominal": (ALTERNATING, False, b"\x55" * 64, False, (30 + 549, 0)),
    "29 bit": (0x15555555, True, b"\x55" * 64, True, (49, 549)),
    "12 bytes: CRC-17 and 6 fixed stuff bits": (
        ALTERNATING,
        False,
        b"\x55" * 12,
        True,
        (30, 5 + 96 + 4 + 17 + 6),
    ),
    "20 bytes: CRC-21": (ALTERNATING, False, b"\x55" * 20, True, (30, 5 + 160 + 4 + 21 + 7)),
    # 14 zeros before FDF, 512 behind DLC 1111: a stuff bit after every fifth.
    "all zeros": (0x000, False, bytes(64), True, (30 + 2, 549 + 102)),
    # DLC 0001, then 111 and five zeros at the very end: the fixed stuff bit stands there anyway.
    "five equal bits at the end": (ALTERNATING, False, b"\xe0", True, (30, 5 + 8 + 4 + 17 + 6)),
    # BRS 1, then ESI and DLC: 00000, the last of them before the CRC field.
    "no data": (ALTERNATING, False, b"", True, (30, 5 + 4 + 17 + 6)),
}


def test_a_frame_of_zeros_has_a_stuff_bit_after_every_fifth() -> None:
    """SOF, identifier, control field and CRC are 34 zeros: the CRC of zeros is zero."""
    assert classic_bits(0x000, False, b"") == 47 + 34 // 5


@pytest.mark.parametrize(("can_id", "extended", "data", "brs", "bits"), FD.values(), ids=FD)
def test_fd_frames_worked_out_on_paper(
    can_id: int, extended: bool, data: bytes, brs: bool, bits: tuple[int, int]
) -> None:
    assert fd_bits(can_id, extended, data, brs) == bits


@pytest.mark.parametrize(("extended", "least", "most"), [(False, 111, 135), (True, 131, 160)])
def test_eight_bytes_are_between_no_and_worst_stuffing(extended: bool, least: int, most: int) -> None:
    """The published bounds, and both kinds of data come close to theirs."""
    can_id = 0x15555555 if extended else 0x555
    seen = [classic_bits(can_id, extended, bytes([byte, 0x55] * 4)) for byte in range(256)]
    assert min(seen) == least
    # Runs of four, each begun by the stuff bit of the one before.
    worst = max(classic_bits(0, extended, bytes([byte]) * 8) for byte in range(256))
    assert most - 7 <= worst <= most


def test_a_remote_frame_has_a_length_and_no_data() -> None:
    assert classic_bits(0x555, False, b"", remote_dlc=8) - classic_bits(0x555, False, b"") in {-1, 0, 1}
    assert classic_bits(0x555, False, b"", remote_dlc=5) < 47 + 7


@pytest.mark.parametrize("size", [9, 11, 63, 65])
def test_lengths_that_no_dlc_says(size: int) -> None:
    with pytest.raises(KeyError):
        fd_bits(0x123, False, bytes(size), True)
