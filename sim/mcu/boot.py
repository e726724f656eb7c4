"""What the bootloader boots: an image whose signed document fits this ECU and its slot, nothing else."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum

from securesystemslib.signer import Key

from shared.release import FirmwareSpec, Incompatible
from shared.trust.document import BadDocument, TrustError, Unsigned, verify_document
from sim.mcu.flash import Flash
from sim.mcu.images import vectors_fit

# An ECU has no clock that it could trust: whether a document has expired is judged by the gateway.
NO_CLOCK = datetime.min.replace(tzinfo=UTC)


class Verdict(IntEnum):
    """Answer of checkProgrammingDependencies."""

    BOOTABLE = 0
    NO_DOCUMENT = 1
    SIGNATURE = 2
    OTHER_ECU = 3
    CONTENT = 4
    VECTORS = 5


@dataclass(frozen=True, kw_only=True)
class Installed:
    """What the slot holds. `spec` is given only when it is bootable."""

    verdict: Verdict
    spec: FirmwareSpec | None = None


class Bootloader:
    """Judges the flash; a judgement holds until the flash changes."""

    def __init__(self, flash: Flash, keys: Mapping[str, Key], *, kind: str, hardware: str) -> None:
        self._flash = flash
        self._keys = keys
        self._kind = kind
        self._hardware = hardware
        self._judged: tuple[int, Installed] | None = None

    def judge(self) -> Installed:
        """Document, signature, kind and hardware, length and hash, vector table: in this order."""
        if self._judged is None or self._judged[0] != self._flash.generation:
            self._judged = (self._flash.generation, self._judge())
        return self._judged[1]

    def _judge(self) -> Installed:
        memory = self._flash.memory
        [size] = struct.unpack("<I", self._flash.read(memory.document.start, 4))
        if not 0 < size <= memory.document.size - 4:
            return Installed(verdict=Verdict.NO_DOCUMENT)
        document = self._flash.read(memory.document.start + 4, size)
        try:
            spec = verify_document(document, self._keys, now=NO_CLOCK)
            spec.check_fits(kind=self._kind, hardware=self._hardware)
        except BadDocument:
            return Installed(verdict=Verdict.NO_DOCUMENT)
        except (Unsigned, TrustError):
            return Installed(verdict=Verdict.SIGNATURE)
        except Incompatible:
            return Installed(verdict=Verdict.OTHER_ECU)
        if spec.length > memory.slot.size:
            return Installed(verdict=Verdict.CONTENT)
        image = self._flash.read(memory.slot.start, spec.length)
        if hashlib.sha256(image).hexdigest() != spec.sha256:
            return Installed(verdict=Verdict.CONTENT)
        if not vectors_fit(image[:8], slot=memory.slot, ram=memory.ram, length=spec.length):
            return Installed(verdict=Verdict.VECTORS)
        return Installed(verdict=Verdict.BOOTABLE, spec=spec)
