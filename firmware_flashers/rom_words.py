"""What the bytes of an STM32's ROM loader say, and how its refusals are named (ST AN3154, AN5405).

The code of a command is the identifier of its frames in both directions.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from firmware_flashers.base import FlashError

ACK = 0x79
NACK = 0x1F
SYNC = 0x79
DATA = 0x04  # AN3154 3.8 recommends it for data; an identifier that is no command

GET, GET_VERSION, GET_ID, SPEED = 0x00, 0x01, 0x02, 0x03
READ, GO, WRITE = 0x11, 0x21, 0x31
ERASE, EXTENDED_ERASE = 0x43, 0x44
WRITE_PROTECT, WRITE_UNPROTECT = 0x63, 0x73
READOUT_PROTECT, READOUT_UNPROTECT = 0x82, 0x92
SPECIAL, EXTENDED_SPECIAL = 0x50, 0x51
OF_THE_LOADER = frozenset(
    {SYNC, DATA, GET, GET_VERSION, GET_ID, SPEED, READ, GO, WRITE, ERASE, EXTENDED_ERASE}
    | {WRITE_PROTECT, WRITE_UNPROTECT, READOUT_PROTECT, READOUT_UNPROTECT, SPECIAL, EXTENDED_SPECIAL}
)
"""Every identifier that a frame of the loader can have."""

BLOCK_BYTES = 256
MASS_ERASE = b"\xff"
EXTENDED_MASS_ERASE = b"\xff\xff"
MOST_LISTED = 64
MOST_FILLING = 40
"""More frames than any command waits for: 32 of a write, 32 of a list of sector codes."""
SLICE_S = 0.25
"""So often a long wait looks whether it was interrupted."""
MOST_DRAINED = 1000

HEADER = struct.Struct(">IB")
ADDRESS = struct.Struct(">I")


class Nacked(FlashError):
    """The loader refuses a command."""

    code = "refused_by_loader"
    advice = "The message names the command. Check the profile's family and slot, and the part's protection."


class NotListed(FlashError):
    """A command that this loader's Get does not list."""

    code = "command_missing"
    retryable = False
    advice = "This part's loader is older than the document; flash it another way."


class BusNotIsolated(FlashError):
    """Somebody else speaks on the bus, and a ROM loader takes any frame for its own."""

    code = "bus_not_isolated"
    advice = "Take the part off the vehicle's bus, or silence every other node; a ROM loader must be alone."


@dataclass(frozen=True, kw_only=True)
class Listed:
    """Get's answer."""

    version: int
    commands: frozenset[int]


@dataclass(frozen=True, kw_only=True)
class Resynced:
    """How a loader was found: it took `filled` frames of filling for data; `was_reset` since then."""

    filled: int
    was_reset: bool
