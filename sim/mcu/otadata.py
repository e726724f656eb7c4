"""The otadata partition of ESP-IDF: which of two slots boots, and what is known of its image. Pure.

Two sectors hold an entry of 32 bytes each, little-endian: `ota_seq u32, seq_label[20], ota_state u32,
crc u32` (esp-idf `esp_flash_partitions.h`); slot (ota_seq - 1) modulo 2 is meant. The CRC is over ota_seq
alone: `esp_rom_crc32_le(UINT32_MAX, &ota_seq, 4)`. An entry counts unless it is blank, has a wrong CRC, or
is INVALID or ABORTED (`bootloader_common_loader.c`).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Self

SLOTS = 2
_ENTRY = struct.Struct("<I20sII")
ENTRY_BYTES = _ENTRY.size
_BLANK_SEQ = 0xFFFF_FFFF
_NO_LABEL = b"\xff" * 20


class ImageState(IntEnum):
    """esp_ota_img_states_t."""

    NEW = 0
    PENDING_VERIFY = 1
    VALID = 2
    INVALID = 3
    ABORTED = 4
    UNDEFINED = 0xFFFF_FFFF


_NEVER_BOOTED = {ImageState.INVALID, ImageState.ABORTED}


def seq_crc(seq: int) -> int:
    """bootloader_common_ota_select_crc: the ROM's CRC-32 from all ones, which inverts before and after."""
    return zlib.crc32(seq.to_bytes(4, "little"), 0xFFFF_FFFF)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One entry that is not blank and has the right CRC. States that are not known stay as they are."""

    seq: int
    state: int

    @property
    def slot(self) -> int:
        return (self.seq - 1) % SLOTS

    @property
    def counts(self) -> bool:
        """Whether its slot may be booted by it."""
        return self.state not in _NEVER_BOOTED

    def encode(self) -> bytes:
        """Its 32 bytes."""
        return _ENTRY.pack(self.seq, _NO_LABEL, self.state, seq_crc(self.seq))

    @classmethod
    def decode(cls, data: bytes) -> Self | None:
        """The entry in a sector's first 32 bytes; None when there is none."""
        seq, _label, state, crc = _ENTRY.unpack(data[:ENTRY_BYTES])
        if seq == _BLANK_SEQ or crc != seq_crc(seq):
            return None
        return cls(seq=seq, state=state)


@dataclass(frozen=True, kw_only=True)
class OtaData:
    """Both sectors."""

    entries: tuple[Entry | None, Entry | None]

    @classmethod
    def decode(cls, first: bytes, second: bytes) -> Self:
        """From the beginnings of the two sectors."""
        return cls(entries=(Entry.decode(first), Entry.decode(second)))

    @property
    def is_blank(self) -> bool:
        """Whether nobody has chosen a slot yet (or both choices are lost)."""
        return self.entries == (None, None)

    def unconfirmed(self) -> dict[int, Entry]:
        """Entries that a boot finds PENDING_VERIFY, by sector, as it leaves them: ABORTED."""
        return {
            sector: Entry(seq=entry.seq, state=ImageState.ABORTED)
            for sector, entry in enumerate(self.entries)
            if entry is not None and entry.state == ImageState.PENDING_VERIFY
        }

    def active(self, may_boot: Callable[[int], bool]) -> int | None:
        """The sector whose entry decides: of those that count and whose slot `may_boot`, the later one."""
        found = [
            (entry.seq, -sector)
            for sector, entry in enumerate(self.entries)
            if entry is not None and entry.counts and may_boot(entry.slot)
        ]
        return -max(found)[1] if found else None

    def sector_of(self, slot: int) -> int | None:
        """The sector whose entry speaks of a slot; of two the later one."""
        found = [
            (entry.seq, sector)
            for sector, entry in enumerate(self.entries)
            if entry is not None and entry.slot == slot
        ]
        return max(found)[1] if found else None

    def state_of(self, slot: int) -> int:
        """What is known of a slot's image."""
        sector = self.sector_of(slot)
        entry = None if sector is None else self.entries[sector]
        return ImageState.UNDEFINED if entry is None else entry.state

    def choosing(self, slot: int, *, keep_slot: int, state: ImageState) -> tuple[int, Entry]:
        """What to write, and into which sector, so that `slot` boots next.

        The entry of `keep_slot` stays, so that a power cut while it is written loses no way back.
        """
        kept = self.sector_of(keep_slot) if keep_slot != slot else None
        if kept is None:
            own = self.sector_of(slot)
            sector = 0 if own is None else own
        else:
            sector = 1 - kept
        other = self.entries[1 - sector]
        seq = 1 if other is None else other.seq + 1
        while (seq - 1) % SLOTS != slot:
            seq += 1
        return sector, Entry(seq=seq, state=state)
