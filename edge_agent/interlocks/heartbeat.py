"""PURE: whether an ECU's J1939 heartbeat comes often enough, for long enough.

A frame is dated at the look before the one that found it (j1939_vehicle), so that two frames of one look are
no time apart and a gap is told up to one look too long or too short: that much is granted.
"""

from __future__ import annotations

from dataclasses import dataclass

from edge_agent.interlocks.j1939 import PDU2_FROM


@dataclass(frozen=True, kw_only=True)
class Beats:
    """What was heard so far, at one moment: `last_s_ago` since the last frame (None: none came),
    `on_end_s` from the first of an unbroken row to the last.
    """

    last_s_ago: float | None = None
    on_end_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Sender:
    """Whose frames: `pgn` from the address `source`. A PGN with a destination is heard whatever that is."""

    pgn: int
    source: int

    @property
    def mask(self) -> int:
        """The bits of the 29 that name it."""
        return 0x03FFFFFF if self.pgn >> 8 & 0xFF >= PDU2_FROM else 0x03FF00FF

    def is_of(self, arbitration_id: int) -> bool:
        """Whether a frame is from it."""
        return (arbitration_id ^ (self.pgn << 8 | self.source)) & self.mask == 0


class Pulse:
    """One sender's frames over time; `gap_s` is the longest between two of an unbroken row."""

    def __init__(self, sender: Sender, gap_s: float) -> None:
        self.sender = sender
        self._gap_s = gap_s
        self._first: float | None = None
        self._last: float | None = None

    def note(self, at: float) -> None:
        """A frame came."""
        if self._last is None or at - self._last > self._gap_s:
            self._first = at
        self._last = at

    def forget(self) -> None:
        """Nobody could hear: what came before proves nothing for later."""
        self._first = self._last = None

    def beats(self, now: float) -> Beats:
        """What it is now."""
        if self._first is None or self._last is None:
            return Beats()
        ago = max(0.0, now - self._last)
        return Beats(last_s_ago=ago, on_end_s=0.0 if ago > self._gap_s else self._last - self._first)
