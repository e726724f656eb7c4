"""Faults of the wire and the controller, the same for every kind of simulated part.

The host carries them out, so that a device knows nothing of them. Frames are those that the part
accepts, and those that it sends; counts begin at 1 when the order is given.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

import can


@dataclass(frozen=True, kw_only=True)
class CanFaults:
    """What happens to single frames, each once.

    Of the frames that come in: `drop_frame` is lost, `corrupt_frame` arrives with a wrong byte (as
    through a broken gateway; a wire's own errors are repaired by its controllers), `delay_frame` comes
    `delay_s` late with all behind it, `repeat_frame` comes twice. `bus_off_at_frame`: the controller
    leaves the bus for `bus_off_s` instead of taking it. `reset_at_frame`: the part is reset instead,
    `power_cut_at_frame`: it goes dark right after it. Of the frames that go out: `lose_response_frame`,
    `corrupt_response_frame`, `delay_response_frame`, `repeat_response_frame` likewise;
    `power_cut_at_response_frame`: dark right after sending it.
    """

    drop_frame: int = 0
    corrupt_frame: int = 0
    delay_frame: int = 0
    repeat_frame: int = 0
    lose_response_frame: int = 0
    corrupt_response_frame: int = 0
    delay_response_frame: int = 0
    repeat_response_frame: int = 0
    delay_s: float = 0.1
    bus_off_at_frame: int = 0
    bus_off_s: float = 0.1
    reset_at_frame: int = 0
    power_cut_at_frame: int = 0
    power_cut_at_response_frame: int = 0


class Fate(Enum):
    """What becomes of one frame."""

    LOSE = auto()
    CORRUPT = auto()
    DELAY = auto()
    REPEAT = auto()
    BUS_OFF = auto()
    RESET = auto()
    POWER_CUT = auto()


class Countdown:
    """Comes due at the n-th call of `due` from 1, once; never with n = 0."""

    def __init__(self, at: int) -> None:
        self._left = at

    def due(self) -> bool:
        """Count one."""
        if self._left <= 0:
            return False
        self._left -= 1
        return self._left == 0


class CanFaultState:
    """The order as it is being carried out."""

    def __init__(self, order: CanFaults) -> None:
        self.order = order
        self._incoming = {
            Fate.POWER_CUT: order.power_cut_at_frame,
            Fate.RESET: order.reset_at_frame,
            Fate.BUS_OFF: order.bus_off_at_frame,
            Fate.LOSE: order.drop_frame,
            Fate.DELAY: order.delay_frame,
            Fate.CORRUPT: order.corrupt_frame,
            Fate.REPEAT: order.repeat_frame,
        }
        self._outgoing = {
            Fate.LOSE: order.lose_response_frame,
            Fate.DELAY: order.delay_response_frame,
            Fate.CORRUPT: order.corrupt_response_frame,
            Fate.REPEAT: order.repeat_response_frame,
            Fate.POWER_CUT: order.power_cut_at_response_frame,
        }
        for counts in (self._incoming, self._outgoing):
            _forget_what_is_over(counts)

    def of_incoming(self) -> tuple[Fate, ...]:
        """Count a frame that came in; what becomes of it, in the order in which it happens."""
        return _count(self._incoming)

    def of_outgoing(self) -> tuple[Fate, ...]:
        """Count a frame that is sent."""
        return _count(self._outgoing)


def _count(left: dict[Fate, int]) -> tuple[Fate, ...]:
    if not left:
        return ()
    for fate in left:
        left[fate] -= 1
    due = tuple(fate for fate, frames in left.items() if frames == 0)
    _forget_what_is_over(left)
    return due


def _forget_what_is_over(left: dict[Fate, int]) -> None:
    for fate in [fate for fate, frames in left.items() if frames <= 0]:
        del left[fate]


def corrupted(data: bytes) -> bytes:
    """The data with one wrong bit, where most protocols have something that matters: the second byte."""
    if not data:
        return data
    at = min(1, len(data) - 1)
    return data[:at] + bytes([data[at] ^ 0x20]) + data[at + 1 :]


def with_data(message: can.Message, data: bytes) -> can.Message:
    """The same frame with other data of the same length."""
    changed = message.__copy__()
    changed.data = bytearray(data)
    return changed
