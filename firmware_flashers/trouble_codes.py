"""PURE: what an ECU answers when it is asked for its trouble codes (ISO 14229-1, ReadDTCInformation 0x19,
reportDTCByStatusMask 0x02): the status bits that it keeps, then four bytes for each code.
"""

from __future__ import annotations

from firmware_flashers.base import FlashError, TroubleCode
from firmware_flashers.refusals import BadAnswer

RECORD_BYTES = 4


class FaultsUnknown(FlashError):
    """The ECU does not keep what is asked for, so that nobody can say that it is well."""

    code = "faults_unknown"
    retryable = False
    advice = "Ask in the release for status bits that this ECU keeps, or for none."


def read_codes(record: bytes, mask: int, who: str) -> tuple[TroubleCode, ...]:
    """The codes with a status bit of `mask`, from what follows the echo of the sub-function.

    Raises BadAnswer; FaultsUnknown when the ECU does not keep each bit of the mask.
    """
    if len(record) % RECORD_BYTES != 1:
        raise BadAnswer(f"{who} gives its trouble codes in {len(record)} bytes, not 1 and 4 for each")
    missing = mask & ~record[0]
    if missing:
        raise FaultsUnknown(f"{who} does not keep the status bits 0x{missing:02X} of trouble codes")
    found = (record[at : at + RECORD_BYTES] for at in range(1, len(record), RECORD_BYTES))
    codes = [TroubleCode(code=int.from_bytes(one[:3], "big"), status=one[3]) for one in found]
    # Some ECUs answer with all that they store.
    return tuple(one for one in codes if one.status & mask)
