"""How many bits a CAN frame occupies the wire, stuff bits included (ISO 11898-1:2015, 10.4 and 10.5).

Exact for the very data of a frame: the bit stream is run through the stuffing rule, CRC-15 of a classic frame
included. In an FD frame the CRC and its stuff count carry stuff bits at fixed places, so that their
values do not change its length; ESI is taken as 0 (error active). Interframe space (3 bits) is counted, so
that frames back to back take the sum of their bits.
"""

from __future__ import annotations

from functools import lru_cache

CLASSIC_TAIL_BITS = 13
"""CRC delimiter, ACK, ACK delimiter, EOF 7, interframe space 3."""
CRC15_POLYNOMIAL = 0x4599
FD_LENGTHS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 20, 24, 32, 48, 64)
_DLC_OF = {length: dlc for dlc, length in enumerate(FD_LENGTHS)}
_STUFF_COUNT_BITS = 4
_LONG = 16
"""FD frames with more data bytes than this have CRC-21, the others CRC-17."""

# The stuffing rule as a machine: a state is the last bit and how often it has come, 1 to 4 times. What
# follows is kept for whole bytes: the next state in the low bits, the stuff bits inserted above them, so
# far above that a frame's steps can simply be added up.
_STATES = 8
_STATE = 0x7
_COUNT_SHIFT = 12


def _step(state: int, bit: int) -> tuple[int, int]:
    """The state after `bit`, and whether a stuff bit followed it."""
    last, run = state >> 2, (state & 3) + 1
    if bit != last:
        return bit << 2, 0
    if run < 4:
        return bit << 2 | run, 0
    # Five equal bits: the opposite one is put in, and begins the next run.
    return (1 - bit) << 2, 1


def _steps(state: int, value: int, width: int) -> int:
    stuffed = 0
    for at in range(width - 1, -1, -1):
        state, one = _step(state, value >> at & 1)
        stuffed += one
    return stuffed << _COUNT_SHIFT | state


_BYTES = tuple(tuple(_steps(state, byte, 8) for byte in range(256)) for state in range(_STATES))
_SEVENS = tuple(tuple(_steps(state, bits, 7) for bits in range(128)) for state in range(_STATES))


def _crc15_of(byte: int) -> int:
    crc = byte << 7
    for _ in range(8):
        crc = (crc << 1 ^ CRC15_POLYNOMIAL) if crc & 0x4000 else crc << 1
    return crc & 0x7FFF


_CRC15 = tuple(_crc15_of(byte) for byte in range(256))


def _stuffed_head(bits: int, width: int) -> tuple[int, int]:
    """State and stuff bits after the first `width` bits of a frame, which begin with SOF (0)."""
    # Before SOF the bus is recessive; its bits are not stuffed.
    state, stuffed = 0, 0
    for at in range(width - 2, -1, -1):
        state, one = _step(state, bits >> at & 1)
        stuffed += one
    return state, stuffed


@lru_cache(maxsize=4096)
def _classic_head(arbitration_id: int, extended: bool, remote: bool, dlc: int) -> tuple[int, int, int, int]:
    """Width, stuff bits, stuffing state and CRC-15 after SOF, identifier and control field."""
    rtr = int(remote)
    if extended:
        base, rest = arbitration_id >> 18, arbitration_id & 0x3FFFF
        # SOF, base identifier, SRR 1, IDE 1, rest, RTR, r1, r0, DLC.
        width, bits = 39, base << 27 | 0b11 << 25 | rest << 7 | rtr << 6 | dlc
    else:
        # SOF, identifier, RTR, IDE 0, r0, DLC.
        width, bits = 19, arbitration_id << 7 | rtr << 6 | dlc
    state, stuffed = _stuffed_head(bits, width)
    crc = 0
    for at in range(width - 1, -1, -1):
        crc = (crc << 1 ^ (CRC15_POLYNOMIAL if (crc >> 14 ^ bits >> at) & 1 else 0)) & 0x7FFF
    return width, stuffed, state, crc


def classic_bits(
    arbitration_id: int, extended: bool, data: bytes | bytearray, *, remote_dlc: int | None = None
) -> int:
    """Bits of a classic frame with up to 8 data bytes; `remote_dlc` makes it a remote frame without data."""
    dlc = len(data) if remote_dlc is None else remote_dlc
    width, stuffed, state, crc = _classic_head(arbitration_id, extended, remote_dlc is not None, dlc)
    steps = 0
    for byte in data:
        crc = (crc << 8 & 0x7FFF) ^ _CRC15[crc >> 7 ^ byte]
        step = _BYTES[state][byte]
        state = step & _STATE
        steps += step
    step = _SEVENS[state][crc >> 8]
    steps += step + _BYTES[step & _STATE][crc & 0xFF]
    return width + 8 * len(data) + 15 + stuffed + (steps >> _COUNT_SHIFT) + CLASSIC_TAIL_BITS


@lru_cache(maxsize=4096)
def _fd_head(arbitration_id: int, extended: bool, brs: bool, dlc: int) -> tuple[int, int, int]:
    """Nominal bits up to and with BRS, stuff bits of ESI and DLC, and the state after them."""
    if extended:
        base, rest = arbitration_id >> 18, arbitration_id & 0x3FFFF
        # SOF, base identifier, SRR 1, IDE 1, rest, RRS 0, FDF 1, res 0, BRS.
        width, bits = 36, base << 24 | 0b11 << 22 | rest << 4 | 0b0100 | brs
    else:
        # SOF, identifier, RRS 0, IDE 0, FDF 1, res 0, BRS.
        width, bits = 17, arbitration_id << 5 | 0b00100 | brs
    state, stuffed = _stuffed_head(bits, width)
    step = 0
    control_stuffed = 0
    for at in range(4, -1, -1):
        state, step = _step(state, dlc >> at & 1)
        control_stuffed += step
    if dlc == 0:
        # The last bit before the fixed stuff bit of the CRC field is followed by that one alone.
        control_stuffed -= step
    return width + stuffed, control_stuffed, state


def fd_bits(arbitration_id: int, extended: bool, data: bytes | bytearray, brs: bool) -> tuple[int, int]:
    """Bits of an FD frame at the nominal and at the data bit rate; without `brs` all are nominal.

    `data` has a length that a DLC can say (FD_LENGTHS), else KeyError. The bit rate switches behind BRS
    and behind the CRC field.
    """
    size = len(data)
    nominal, stuffed, state = _fd_head(arbitration_id, extended, brs, _DLC_OF[size])
    steps = 0
    for byte in data:
        step = _BYTES[state][byte]
        state = step & _STATE
        steps += step
    stuffed += steps >> _COUNT_SHIFT
    if size and state >> 2 != data[-1] & 1:
        # The state is that of a stuff bit behind the last data bit, where the fixed one stands anyway.
        stuffed -= 1
    crc_bits = _STUFF_COUNT_BITS + (21 if size > _LONG else 17)
    # One fixed stuff bit before the stuff count, and one after each further four bits.
    fixed = 1 + (crc_bits - 1) // 4
    fast = 1 + 4 + 8 * size + stuffed + crc_bits + fixed
    nominal += CLASSIC_TAIL_BITS
    return (nominal, fast) if brs else (nominal + fast, 0)
