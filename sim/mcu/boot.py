"""What a bootloader boots: an image whose signed document fits this ECU and its slot, nothing else."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum

from securesystemslib.signer import Key

from shared.release import FirmwareSpec, Incompatible
from shared.trust.document import BadDocument, TrustError, Unsigned, verify_document
from sim.mcu.flash import Flash
from sim.mcu.images import vectors_fit
from sim.mcu.memory import Area, MemoryMap

# An ECU has no clock that it could trust: whether a document has expired is judged by the gateway.
NO_CLOCK = datetime.min.replace(tzinfo=UTC)
SIZE_BYTES = 4
"""A document area begins with the document's length, little-endian."""


class Verdict(IntEnum):
    """Answer of checkProgrammingDependencies. VECTORS: what starts the image is wrong (an STM32's vector
    table, an ESP32's whole image format); SECURE_VERSION: it is older than the eFuse allows.
    """

    BOOTABLE = 0
    NO_DOCUMENT = 1
    SIGNATURE = 2
    OTHER_ECU = 3
    CONTENT = 4
    VECTORS = 5
    SECURE_VERSION = 6


@dataclass(frozen=True, kw_only=True)
class Installed:
    """What a slot holds. `spec` is given only when it is bootable."""

    verdict: Verdict
    spec: FirmwareSpec | None = None


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Whose firmware an ECU takes, and for what."""

    keys: Mapping[str, Key]
    kind: str
    hardware: str

    def judge(
        self, flash: Flash, *, slot: Area, document: Area, image_fits: Callable[[bytes], Verdict]
    ) -> Installed:
        """Document, signature, kind and hardware, length and hash, then `image_fits`: in this order."""
        [size] = struct.unpack("<I", flash.read(document.start, SIZE_BYTES))
        if not 0 < size <= document.size - SIZE_BYTES:
            return Installed(verdict=Verdict.NO_DOCUMENT)
        try:
            spec = verify_document(flash.read(document.start + SIZE_BYTES, size), self.keys, now=NO_CLOCK)
            spec.check_fits(kind=self.kind, hardware=self.hardware)
        except BadDocument:
            return Installed(verdict=Verdict.NO_DOCUMENT)
        except (Unsigned, TrustError):
            return Installed(verdict=Verdict.SIGNATURE)
        except Incompatible:
            return Installed(verdict=Verdict.OTHER_ECU)
        if spec.length > slot.size:
            return Installed(verdict=Verdict.CONTENT)
        image = flash.read(slot.start, spec.length)
        if hashlib.sha256(image).hexdigest() != spec.sha256:
            return Installed(verdict=Verdict.CONTENT)
        verdict = image_fits(image)
        return Installed(verdict=verdict, spec=spec if verdict is Verdict.BOOTABLE else None)


class Bootloader:
    """An STM32's: judges the flash; a judgement holds until the flash changes."""

    def __init__(self, flash: Flash, memory: MemoryMap, judge: Judge) -> None:
        self._flash = flash
        self._memory = memory
        self._judge = judge
        self._judged: tuple[int, Installed] | None = None

    def judge(self) -> Installed:
        """What the slot holds now."""
        if self._judged is None or self._judged[0] != self._flash.generation:
            installed = self._judge.judge(
                self._flash,
                slot=self._memory.slot,
                document=self._memory.document,
                image_fits=self._vectors_fit,
            )
            self._judged = (self._flash.generation, installed)
        return self._judged[1]

    def _vectors_fit(self, image: bytes) -> Verdict:
        memory = self._memory
        fits = vectors_fit(image[:8], slot=memory.slot, ram=memory.ram, length=len(image))
        return Verdict.BOOTABLE if fits else Verdict.VECTORS
