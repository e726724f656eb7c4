"""PURE: what the vehicle's own frames say: SAE J1939 identifiers, and six signals out of four messages.

A value comes out of a pattern of the valid range only. Error, not available, reserved and frames of a
wrong length say nothing, whatever the rest of the frame says. (J1939-21, 5.2: the identifier; J1939-71:
places, scales and the ranges of valid patterns.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

MOST_29_BITS = 0x1FFFFFFF
PDU2_FROM = 240
"""From this PF on the frame goes to everybody and PS is a part of the PGN."""
FRAME_BYTES = 8
PARK = 126.0
"""SPN 523: the pattern 0xFB, outside of the range -125..125 of gears."""


@dataclass(frozen=True, kw_only=True)
class Id:
    """A 29-bit identifier, taken apart. `destination` is None for a message to everybody."""

    priority: int
    pgn: int
    source: int
    destination: int | None


def read_id(arbitration_id: int) -> Id:
    """Take an identifier apart. Raises ValueError for one of over 29 bits."""
    if not 0 <= arbitration_id <= MOST_29_BITS:
        raise ValueError(f"{arbitration_id:#x} has over 29 bits")
    pages = arbitration_id >> 24 & 0x3
    pf, ps = arbitration_id >> 16 & 0xFF, arbitration_id >> 8 & 0xFF
    to_all = pf >= PDU2_FROM
    return Id(
        priority=arbitration_id >> 26,
        pgn=pages << 16 | pf << 8 | (ps if to_all else 0),
        source=arbitration_id & 0xFF,
        destination=None if to_all else ps,
    )


def make_id(pgn: int, source: int, *, priority: int = 6) -> int:
    """The identifier of a message to everybody."""
    return priority << 26 | pgn << 8 | source


class Spn(Enum):
    """The signals that are looked at."""

    WHEEL_SPEED = 84  # km/h
    PARKING_BRAKE = 70  # 1.0 set, 0.0 not set
    ENGINE_SPEED = 190  # 1/min
    GEAR = 523  # 0 neutral, PARK, above forward, below reverse
    BATTERY = 168  # V
    KEY_SWITCH = 158  # V behind the key switch


class Validity(Enum):
    """What a pattern is."""

    VALID = "valid"
    ERROR = "error"  # the sender says that its sensor is broken
    NOT_AVAILABLE = "not_available"  # the sender does not have it
    RESERVED = "reserved"  # nobody has said what the pattern means
    MALFORMED = "malformed"  # the frame has not its eight bytes


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """One signal of one frame; `value` is there only with VALID."""

    validity: Validity
    value: float | None = None


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a signal is: little-endian, `first_bit` counted from bit 0 of the first byte.

    `known` are patterns outside of the valid range that mean something all the same.
    """

    first_bit: int
    bits: int
    scale: float = 1.0
    offset: float = 0.0
    known: Mapping[int, float] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """One message: how often it comes (s), and what of it is looked at."""

    name: str
    pgn: int
    period_s: float
    places: Mapping[Spn, Place]


CCVS = Group(
    name="CCVS1",
    pgn=65265,
    period_s=0.1,
    places={
        Spn.PARKING_BRAKE: Place(first_bit=2, bits=2),
        Spn.WHEEL_SPEED: Place(first_bit=8, bits=16, scale=1 / 256),
    },
)
EEC1 = Group(
    name="EEC1",
    pgn=61444,
    # 10 to 100 ms by the engine's speed; the longest, which is that of a standing one.
    period_s=0.1,
    places={Spn.ENGINE_SPEED: Place(first_bit=24, bits=16, scale=0.125)},
)
ETC2 = Group(
    name="ETC2",
    pgn=61445,
    period_s=0.1,
    places={Spn.GEAR: Place(first_bit=24, bits=8, offset=-125.0, known={0xFB: PARK})},
)
VEP1 = Group(
    name="VEP1",
    pgn=65271,
    period_s=1.0,
    places={
        Spn.BATTERY: Place(first_bit=32, bits=16, scale=0.05),
        Spn.KEY_SWITCH: Place(first_bit=48, bits=16, scale=0.05),
    },
)
GROUPS: Mapping[int, Group] = {one.pgn: one for one in (CCVS, EEC1, ETC2, VEP1)}
GROUP_OF: Mapping[Spn, Group] = {spn: group for group in GROUPS.values() for spn in group.places}


def decode(group: Group, data: bytes) -> dict[Spn, Decoded]:
    """Every signal of a frame of `group`."""
    if len(data) != FRAME_BYTES:
        return {spn: Decoded(validity=Validity.MALFORMED) for spn in group.places}
    whole = int.from_bytes(data, "little")
    return {
        spn: _judge(whole >> place.first_bit & (1 << place.bits) - 1, place)
        for spn, place in group.places.items()
    }


def _judge(raw: int, place: Place) -> Decoded:
    if place.known is not None and raw in place.known:
        return Decoded(validity=Validity.VALID, value=place.known[raw])
    validity = _validity(raw, place.bits)
    if validity is not Validity.VALID:
        return Decoded(validity=validity)
    return Decoded(validity=validity, value=raw * place.scale + place.offset)


def _validity(raw: int, bits: int) -> Validity:
    """J1939-71, tables of ranges: 2 bits by pattern; longer signals by their first byte."""
    if bits == 2:
        return (Validity.VALID, Validity.VALID, Validity.ERROR, Validity.NOT_AVAILABLE)[raw]
    top = raw >> bits - 8
    if top <= 0xFA:
        return Validity.VALID
    return {0xFE: Validity.ERROR, 0xFF: Validity.NOT_AVAILABLE}.get(top, Validity.RESERVED)
