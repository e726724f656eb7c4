"""The bootloader's hand on the flash: erase, download, check (ISO 14229-1:2020, clauses 13 and 14).

Where the profile says nothing: a new RequestDownload and an erase abandon an unfinished download, so that a
tester can always begin again without leaving its session.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from sim.mcu.faults import FaultState
from sim.mcu.flash import Flash, NotErased
from sim.mcu.memory import WORD
from sim.mcu.pending import Pending
from sim.mcu.profile import MOST_BLOCK_BYTES, Nrc, Refused, Sid, Timing

ADDRESS_FORMAT = 0x44
RANGE_BYTES = 9
SHA256_BYTES = 32


@dataclass(kw_only=True)
class _Download:
    """An open transfer. `left` bytes are to come; `rest` are bytes that do not fill a flash word yet."""

    at: int
    left: int
    last: tuple[int, bytes] | None = None
    rest: bytes = b""

    @property
    def next_counter(self) -> int:
        return 0x01 if self.last is None else (self.last[0] + 1) & 0xFF


class Programmer:
    """Programs one flash for a tester that has been let in; raises Refused.

    `programmed_bytes` are those of the slot since its last erase in this run.
    """

    def __init__(self, flash: Flash, pending: Pending, timing: Timing) -> None:
        self._flash = flash
        self._pending = pending
        self._timing = timing
        self._download: _Download | None = None
        self.programmed_bytes = 0

    def abandon(self) -> None:
        """Forget an unfinished download."""
        self._download = None

    def require_no_download(self) -> None:
        """Refuse with 0x24 while a download is open."""
        if self._download is not None:
            raise Refused(Nrc.SEQUENCE_ERROR)

    def erase(self, options: bytes, *, extra_s: float) -> None:
        """Erase `44 addr32 len32`: the whole document area, or whole sectors of the slot."""
        start, size = read_range(options)
        memory = self._flash.memory
        whole_document = (start, size) == (memory.document.start, memory.document.size)
        in_slot = memory.slot.holds(start, size)
        if not whole_document and not (in_slot and memory.is_aligned(start, size)):
            raise Refused(Nrc.OUT_OF_RANGE)
        self._download = None
        self._pending.say()
        if in_slot:
            self.programmed_bytes = 0
        for sector in memory.sectors_of(start, size):
            self._flash.erase(sector, during=lambda: self._pending.take(self._timing.erase_s))
        self._pending.take(extra_s)

    def check_memory(self, options: bytes) -> int:
        """Compare `44 addr32 len32 sha256` with the content: 0 equal, 1 different."""
        start, size = read_range(options[:RANGE_BYTES])
        self._require_writable(start, size)
        self.require_no_download()
        content = self._flash.read(start, size)
        return int(hashlib.sha256(content).digest() != options[RANGE_BYTES:])

    def request_download(self, body: bytes) -> bytes:
        """Open a download of whole words into the slot or the document area."""
        if body[0] != 0x00:
            raise Refused(Nrc.OUT_OF_RANGE)
        start, size = read_range(body[1:])
        self._require_writable(start, size)
        if start % WORD or size % WORD:
            raise Refused(Nrc.OUT_OF_RANGE)
        self._download = _Download(at=start, left=size)
        return bytes([Sid.DOWNLOAD + 0x40, 0x20]) + MOST_BLOCK_BYTES.to_bytes(2, "big")

    def transfer(self, body: bytes, faults: FaultState) -> bytes:
        """Take one block. The last block again is answered and not written again."""
        download = self._download
        if download is None:
            raise Refused(Nrc.SEQUENCE_ERROR)
        counter, data = body[0], body[1:]
        if (counter, data) != download.last:
            if counter != download.next_counter:
                raise Refused(Nrc.WRONG_COUNTER)
            if len(data) > download.left:
                raise Refused(Nrc.TRANSFER_SUSPENDED)
            self._program(download, data)
            download.last = (counter, data)
            self._pending.take(self._timing.program_s)
        echoed = (counter + 1) & 0xFF if faults.wrong_counter.due() else counter
        return bytes([Sid.TRANSFER + 0x40, echoed])

    def exit(self) -> bytes:
        """Close a download that is complete."""
        if self._download is None or self._download.left:
            raise Refused(Nrc.SEQUENCE_ERROR)
        self._download = None
        return bytes([Sid.EXIT + 0x40])

    def _program(self, download: _Download, data: bytes) -> None:
        words = download.rest + data
        whole = len(words) - len(words) % WORD
        if whole:
            try:
                self._flash.write(download.at, words[:whole])
            except NotErased as error:
                self._download = None
                raise Refused(Nrc.PROGRAMMING_FAILURE) from error
        if self._flash.memory.slot.holds(download.at, 1):
            self.programmed_bytes += whole
        download.at += whole
        download.left -= len(data)
        download.rest = words[whole:]

    def _require_writable(self, start: int, size: int) -> None:
        memory = self._flash.memory
        if not memory.slot.holds(start, size) and not memory.document.holds(start, size):
            raise Refused(Nrc.OUT_OF_RANGE)


def read_range(options: bytes) -> tuple[int, int]:
    """Address and size of `44 addr32 len32`; refuses other formats with 0x31."""
    if options[0] != ADDRESS_FORMAT:
        raise Refused(Nrc.OUT_OF_RANGE)
    return int.from_bytes(options[1:5], "big"), int.from_bytes(options[5:9], "big")
