"""How an ECU proves after its start that it is well, as signed in a release. Whole numbers only.

Identification is always read back. A release may ask for more: no new trouble codes (ISO 14229-1,
ReadDTCInformation) and a heartbeat on the vehicle's bus (SAE J1939). A part that is left out is not asked
for, and is left out of the signed bytes, too: a release without any is the same bytes as ever.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

MOST_WITHIN_MS = 300_000
"""Below what the agent gives one ECU to answer in (edge_agent.update.ecus.Limits.check_s)."""
CONFIRMED = 0x08
"""confirmedDTC, bit 3 of the status byte (ISO 14229-1, annex D.2)."""
MOST_PGN = 0x3FFFF
PDU2_FROM = 240

_Millis = Annotated[int, Meta(ge=1, le=MOST_WITHIN_MS)]
_Dtc = Annotated[int, Meta(ge=0, le=0xFFFFFF)]


class TroubleCodes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """No trouble code may be set whose status has a bit of `status_mask`, for `for_ms` on end.

    Those in `ignored` (three bytes each, as a number) may be, and with `known_may_stay` those that were set
    already before the release touched the first ECU.
    """

    status_mask: Annotated[int, Meta(ge=1, le=0xFF)] = CONFIRMED
    ignored: Annotated[tuple[_Dtc, ...], Meta(max_length=256)] = ()
    known_may_stay: bool = True
    for_ms: Annotated[int, Meta(ge=0, le=MOST_WITHIN_MS)] = 5_000


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ECU must send `pgn` at least every so many milliseconds, for `for_ms` on end.

    `source` is its J1939 address; left out, it is the one that the truck's configuration gives the component.
    """

    pgn: Annotated[int, Meta(ge=0, le=MOST_PGN)]
    source: Annotated[int, Meta(ge=0, le=253)] | UnsetType = UNSET
    at_least_every_ms: Annotated[int, Meta(ge=100, le=60_000)]
    for_ms: _Millis

    @property
    def wrong(self) -> str | None:
        """What contradicts itself in it; None: nothing."""
        if self.pgn >> 8 & 0xFF < PDU2_FROM and self.pgn & 0xFF:
            return (
                f"heartbeat.pgn {self.pgn} has a destination in it: its last byte must be 0 (J1939-21, 5.2)"
            )
        if self.for_ms < self.at_least_every_ms:
            return "heartbeat.for_ms is shorter than heartbeat.at_least_every_ms"
        return None


class Health(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that is asked for must hold at one look, within `within_ms`; looks are `every_ms` apart."""

    within_ms: _Millis = 30_000
    every_ms: Annotated[int, Meta(ge=100, le=60_000)] = 1_000
    dtcs: TroubleCodes | UnsetType = UNSET
    heartbeat: Heartbeat | UnsetType = UNSET

    @property
    def wrong(self) -> str | None:
        """What contradicts itself in it; None: nothing."""
        if self.every_ms > self.within_ms:
            return "health.every_ms is longer than health.within_ms"
        if self.dtcs is not UNSET and self.dtcs.for_ms > self.within_ms:
            return "dtcs.for_ms is longer than health.within_ms"
        if self.heartbeat is UNSET:
            return None
        if self.heartbeat.for_ms > self.within_ms:
            return "heartbeat.for_ms is longer than health.within_ms"
        return self.heartbeat.wrong
