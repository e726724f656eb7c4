"""The second-stage bootloader of an ESP32 with two OTA slots, rollback and anti-rollback enabled.

As esp-idf's `bootloader_utility.c` with CONFIG_BOOTLOADER_APP_ROLLBACK_ENABLE and
CONFIG_BOOTLOADER_APP_ANTI_ROLLBACK, with two differences: of a slot it asks for a signed document as well
(in the place of secure boot), and the eFuse rises only with an image that verifies.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from shared.images import esp
from shared.images.stm32 import BadImageLayout
from sim.mcu.boot import Installed, Judge, Verdict
from sim.mcu.flash import Flash
from sim.mcu.memory import KIB, Area, FlashMap
from sim.mcu.otadata import ENTRY_BYTES, SLOTS, Entry, ImageState, OtaData

SECTOR_BYTES = 4 * KIB
_SECURE_VERSION = struct.Struct("<II")


@dataclass(frozen=True, kw_only=True)
class EspMap(FlashMap):
    """A flash of 4 MiB; offsets from 0. `state` (in the NVS partition) counts wrong keys."""

    sectors: tuple[int, ...] = (SECTOR_BYTES,) * 1024
    flash_start: int = 0
    word_bytes: int = 4
    bootloader: Area = field(default=Area(start=0, end=0x9000))
    state: Area = field(default=Area(start=0x9000, end=0xA000))
    otadata: Area = field(default=Area(start=0xE000, end=0x1_0000))
    slots: tuple[Area, Area] = field(
        default=(Area(start=0x1_0000, end=0x11_0000), Area(start=0x11_0000, end=0x21_0000))
    )
    documents: tuple[Area, Area] = field(
        default=(Area(start=0x21_0000, end=0x21_4000), Area(start=0x21_4000, end=0x21_8000))
    )


DEFAULT_ESP_MAP = EspMap()


@dataclass(frozen=True, kw_only=True)
class Chip:
    """What the chip says of itself; the revision is major * 100 + minor."""

    chip_id: int = 0
    revision: int = 300


class EspBootloader:
    """Judges the slots and chooses one; judgements hold until the flash changes."""

    def __init__(self, flash: Flash, memory: EspMap, judge: Judge, chip: Chip) -> None:
        self._flash = flash
        self._memory = memory
        self._judge = judge
        self._chip = chip
        self._judged: dict[int, tuple[int, Installed]] = {}

    @property
    def secure_version(self) -> int:
        """What the eFuse asks of an image."""
        return self._flash.counter

    @property
    def otadata(self) -> OtaData:
        """As the flash holds it."""
        first, second = (
            self._flash.read(self._memory.otadata.start + sector * SECTOR_BYTES, ENTRY_BYTES)
            for sector in range(SLOTS)
        )
        return OtaData.decode(first, second)

    def judge(self, slot: int) -> Installed:
        """What a slot holds now."""
        known = self._judged.get(slot)
        if known is None or known[0] != self._flash.generation:
            installed = self._judge.judge(
                self._flash,
                slot=self._memory.slots[slot],
                document=self._memory.documents[slot],
                image_fits=self._image_fits,
            )
            self._judged[slot] = known = (self._flash.generation, installed)
        return known[1]

    def boots(self, slot: int) -> bool:
        """Whether a slot's image verifies."""
        return self.judge(slot).verdict is Verdict.BOOTABLE

    def boot(self) -> int | None:
        """Choose a slot as after a reset, and leave the marks of it; None when no image verifies."""
        for sector, aborted in self.otadata.unconfirmed().items():
            self.write(sector, aborted)
        otadata = self.otadata
        first = 0
        active = otadata.active(self._is_new_enough)
        if active is not None:
            entry = otadata.entries[active]
            assert entry is not None
            first = entry.slot
            if entry.state == ImageState.NEW:
                self.write(active, Entry(seq=entry.seq, state=ImageState.PENDING_VERIFY))
            elif entry.state == ImageState.VALID:
                self.raise_secure_version(first)
        for slot in (first, 1 - first):
            if self.boots(slot):
                if otadata.is_blank:
                    self.write(0, Entry(seq=slot + 1, state=ImageState.VALID))
                    self.raise_secure_version(slot)
                return slot
        return None

    def write(self, sector: int, entry: Entry) -> None:
        """Replace an entry; a power cut in between loses it."""
        start = self._memory.otadata.start + sector * SECTOR_BYTES
        self._flash.erase(self._memory.sectors_of(start, SECTOR_BYTES)[0])
        self._flash.write(start, entry.encode())

    def raise_secure_version(self, slot: int) -> None:
        """Let the eFuse rise to the secure version of a slot's image, if that verifies."""
        if self.boots(slot):
            self._flash.raise_counter(self._secure_version_of(slot) or 0)

    def _secure_version_of(self, slot: int) -> int | None:
        """What the application descriptor says; None without one."""
        at = self._memory.slots[slot].start + esp.APP_DESCRIPTOR_OFFSET
        magic, version = _SECURE_VERSION.unpack(self._flash.read(at, _SECURE_VERSION.size))
        return version if magic == esp.APP_DESCRIPTOR_MAGIC else None

    def _is_new_enough(self, slot: int) -> bool:
        version = self._secure_version_of(slot)
        return version is not None and version >= self.secure_version

    def _image_fits(self, data: bytes) -> Verdict:
        """Magic, chip, revision, checksum, appended hash; then the secure version."""
        chip = self._chip
        try:
            image = esp.read_esp(data)
        except BadImageLayout:
            return Verdict.VECTORS
        most = image.max_revision
        if image.chip_id != chip.chip_id or chip.revision < image.min_revision:
            return Verdict.VECTORS
        if most is not None and chip.revision > most:
            return Verdict.VECTORS
        return Verdict.BOOTABLE if image.secure_version >= self.secure_version else Verdict.SECURE_VERSION
