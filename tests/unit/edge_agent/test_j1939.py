"""Identifiers taken apart, and each signal out of frames as they are recorded on real vehicles."""

from __future__ import annotations

import pytest

from edge_agent.interlocks.j1939 import (
    CCVS,
    EEC1,
    ETC2,
    GROUPS,
    PARK,
    VEP1,
    Decoded,
    Group,
    Id,
    Spn,
    Validity,
    decode,
    make_id,
    read_id,
)


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (0x18FEF100, Id(priority=6, pgn=65265, source=0x00, destination=None)),
        (0x0CF00400, Id(priority=3, pgn=61444, source=0x00, destination=None)),
        (0x18F00503, Id(priority=6, pgn=61445, source=0x03, destination=None)),
        (0x18FEF727, Id(priority=6, pgn=65271, source=0x27, destination=None)),
        (0x18DA0BF1, Id(priority=6, pgn=0xDA00, source=0xF1, destination=0x0B)),
        (0x1DFEF100, Id(priority=7, pgn=0x1FEF1, source=0x00, destination=None)),
        (0x1FFFFFFF, Id(priority=7, pgn=0x3FFFF, source=0xFF, destination=None)),
    ],
)
def test_an_identifier_is_taken_apart(number: int, expected: Id) -> None:
    assert read_id(number) == expected


def test_an_identifier_of_more_bits_is_none() -> None:
    for number in (-1, 0x20000000):
        with pytest.raises(ValueError, match="29 bits"):
            read_id(number)


def test_an_identifier_that_is_made_says_what_was_put_in() -> None:
    for pgn in GROUPS:
        assert (read_id(make_id(pgn, 0x0B)).pgn, read_id(make_id(pgn, 0x0B)).source) == (pgn, 0x0B)


VALUES: list[tuple[Group, str, Spn, float | Validity]] = [
    (CCVS, "f7 00 00 ff ff ff ff ff", Spn.WHEEL_SPEED, 0.0),
    (CCVS, "f7 00 1e ff ff ff ff ff", Spn.WHEEL_SPEED, 30.0),
    (CCVS, "f7 ff fa ff ff ff ff ff", Spn.WHEEL_SPEED, 250.99609375),
    (CCVS, "f7 00 fb ff ff ff ff ff", Spn.WHEEL_SPEED, Validity.RESERVED),
    (CCVS, "f7 00 fe ff ff ff ff ff", Spn.WHEEL_SPEED, Validity.ERROR),
    (CCVS, "f7 ff ff ff ff ff ff ff", Spn.WHEEL_SPEED, Validity.NOT_AVAILABLE),
    (CCVS, "f3 00 00 ff ff ff ff ff", Spn.PARKING_BRAKE, 0.0),
    (CCVS, "f7 00 00 ff ff ff ff ff", Spn.PARKING_BRAKE, 1.0),
    (CCVS, "fb 00 00 ff ff ff ff ff", Spn.PARKING_BRAKE, Validity.ERROR),
    (CCVS, "ff 00 00 ff ff ff ff ff", Spn.PARKING_BRAKE, Validity.NOT_AVAILABLE),
    (CCVS, "04 00 00", Spn.PARKING_BRAKE, Validity.MALFORMED),
    (CCVS, "04 00 00 00 00 00 00 00 00 00 00 00", Spn.WHEEL_SPEED, Validity.MALFORMED),
    (EEC1, "00 7d 7d 00 00 00 f0 ff", Spn.ENGINE_SPEED, 0.0),
    (EEC1, "00 7d 7d 50 14 00 f0 ff", Spn.ENGINE_SPEED, 650.0),
    (EEC1, "00 7d 7d ff fa 00 f0 ff", Spn.ENGINE_SPEED, 8031.875),
    (EEC1, "00 7d 7d 00 fe 00 f0 ff", Spn.ENGINE_SPEED, Validity.ERROR),
    (EEC1, "00 7d 7d 00 ff 00 f0 ff", Spn.ENGINE_SPEED, Validity.NOT_AVAILABLE),
    (ETC2, "ff ff ff 7d ff ff ff ff", Spn.GEAR, 0.0),
    (ETC2, "ff ff ff 80 ff ff ff ff", Spn.GEAR, 3.0),
    (ETC2, "ff ff ff 7c ff ff ff ff", Spn.GEAR, -1.0),
    (ETC2, "ff ff ff fb ff ff ff ff", Spn.GEAR, PARK),
    (ETC2, "ff ff ff fc ff ff ff ff", Spn.GEAR, Validity.RESERVED),
    (ETC2, "ff ff ff fe ff ff ff ff", Spn.GEAR, Validity.ERROR),
    (ETC2, "ff ff ff ff ff ff ff ff", Spn.GEAR, Validity.NOT_AVAILABLE),
    (VEP1, "ff ff ff ff 00 02 fc 01", Spn.BATTERY, 25.6),
    (VEP1, "ff ff ff ff 00 02 fc 01", Spn.KEY_SWITCH, 25.4),
    (VEP1, "ff ff ff ff 00 fe 00 00", Spn.BATTERY, Validity.ERROR),
    (VEP1, "ff ff ff ff 00 02 ff ff", Spn.KEY_SWITCH, Validity.NOT_AVAILABLE),
]


@pytest.mark.parametrize(("group", "data", "spn", "expected"), VALUES)
def test_a_signal_is_its_bits(group: Group, data: str, spn: Spn, expected: float | Validity) -> None:
    found = decode(group, bytes.fromhex(data))
    assert set(found) == set(group.places)
    if isinstance(expected, Validity):
        assert found[spn] == Decoded(validity=expected)
    else:
        assert found[spn].validity is Validity.VALID
        assert found[spn].value == pytest.approx(expected, abs=1e-9)
