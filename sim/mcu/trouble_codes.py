"""What a simulated application stores of its faults, and how it tells them (ISO 14229-1, 0x19 0x02).

A bootloader stores nothing: there the service is not supported. Of ReadDTCInformation nothing but
reportDTCByStatusMask is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sim.mcu.profile import Sid, require_length

BY_STATUS_MASK = 0x02
MOST_CODE = 0xFFFFFF


@dataclass(frozen=True, kw_only=True)
class TroubleCodes:
    """Codes (three bytes as a number) with their status byte.

    `always` are stored whatever runs; those of `of_version` are set by the image of that version, `after_s`
    seconds after its start. `kept_bits` is the DTCStatusAvailabilityMask.
    """

    always: Mapping[int, int] = field(default_factory=dict)
    of_version: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    after_s: float = 0.0
    kept_bits: int = 0xFF

    def answer(self, body: bytes, *, version: str | None, runs_for_s: float) -> bytes:
        """To a request whose sub-function is there. Raises Refused."""
        require_length(body, 2)
        stored = dict(self.always)
        if version is not None and runs_for_s >= self.after_s:
            stored |= self.of_version.get(version, {})
        told = [
            code.to_bytes(3, "big") + bytes([status & self.kept_bits])
            for code, status in sorted(stored.items())
            if status & self.kept_bits & body[1]
        ]
        return bytes([Sid.READ_DTCS + 0x40, BY_STATUS_MASK, self.kept_bits]) + b"".join(told)
