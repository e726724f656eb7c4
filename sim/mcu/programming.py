"""The hand on the flash: erase, download, check, read (ISO 14229-1:2020, clauses 11.3, 13 and 14).

Where the profile says nothing: a new RequestDownload and an erase abandon an unfinished download, so that a
tester can always begin again without leaving its session. Any number of downloads may follow one erase, as
long as none writes what another has written.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from sim.mcu.faults import FaultState
from sim.mcu.flash import Flash, NotErased, WriteProtected
from sim.mcu.memory import Area
from sim.mcu.pending import Pending
from sim.mcu.profile import Downloads, Nrc, Refused, Sid, Timing, require_length

ADDRESS_FORMAT = 0x44
RANGE_BYTES = 9
SHA256_BYTES = 32
PLAIN, DEFLATE = 0x00, 0x10
DEFLATE_WINDOW_BITS = 12
INFLATE_STEP_BYTES = 128
MOST_READ_BYTES = 4093


@dataclass(frozen=True, kw_only=True)
class Regions:
    """What a tester may see now, and change if `may_change`."""

    slot: Area
    document: Area
    may_change: bool = True

    def holds(self, start: int, size: int) -> bool:
        """Whether these bytes lie in one of them."""
        return self.slot.holds(start, size) or self.document.holds(start, size)


class _Inflater(Protocol):
    @property
    def unused_data(self) -> bytes: ...

    @property
    def unconsumed_tail(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


@dataclass(kw_only=True)
class _Download:
    """An open transfer. `left` bytes are to come; `rest` are bytes that do not fill a flash word yet.

    `failed`: a block was answered before it was programmed, and then could not be.
    """

    at: int
    left: int
    inflater: _Inflater | None = None
    last: tuple[int, bytes] | None = None
    rest: bytes = b""
    failed: bool = False

    @property
    def next_counter(self) -> int:
        return 0x01 if self.last is None else (self.last[0] + 1) & 0xFF


class Programmer:
    """Programs one flash for a tester that has been let in; raises Refused.

    `regions` says what may be programmed. `programmed_bytes` are those of the slot
    since its last erase in this run.
    """

    def __init__(
        self,
        flash: Flash,
        pending: Pending,
        timing: Timing,
        downloads: Downloads,
        *,
        regions: Callable[[], Regions],
        clock: Callable[[], float],
    ) -> None:
        self._flash = flash
        self._pending = pending
        self._timing = timing
        self._downloads = downloads
        self._regions = regions
        self._clock = clock
        self._download: _Download | None = None
        self._unwritten = b""
        self._idle_at = 0.0
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
        memory, regions = self._flash.memory, self._regions()
        whole_document = (start, size) == (regions.document.start, regions.document.size)
        in_slot = regions.slot.holds(start, size)
        if not whole_document and not (in_slot and memory.is_aligned(start, size)):
            raise Refused(Nrc.OUT_OF_RANGE)
        self._require_change(regions)
        self._download = None
        self._pending.say()
        self._await_flash()
        if in_slot:
            self.programmed_bytes = 0
        for sector in memory.sectors_of(start, size):
            try:
                self._flash.erase(sector, during=lambda: self._pending.take(self._timing.erase_s))
            except WriteProtected:
                raise Refused(Nrc.PROGRAMMING_FAILURE) from None
        self._pending.take(extra_s)

    def check_memory(self, options: bytes) -> int:
        """Compare `44 addr32 len32 sha256` with the content: 0 equal, 1 different."""
        start, size = read_range(options[:RANGE_BYTES])
        self._require_region(start, size)
        self.require_no_download()
        self._await_flash()
        content = self._flash.read(start, size)
        return int(hashlib.sha256(content).digest() != options[RANGE_BYTES:])

    def read(self, body: bytes) -> bytes:
        """Answer ReadMemoryByAddress `44 addr32 len32`, up to 4093 bytes."""
        start, size = read_range(body)
        self._require_region(start, size)
        if size > MOST_READ_BYTES:
            raise Refused(Nrc.OUT_OF_RANGE)
        self._await_flash()
        return bytes([Sid.READ_MEMORY + 0x40]) + self._flash.read(start, size)

    def request_download(self, body: bytes) -> bytes:
        """Open a download `format 44 addr32 len32` of whole words; the length is that of what is written."""
        if body[0] not in {PLAIN, DEFLATE} or (body[0] == DEFLATE and not self._downloads.deflate):
            raise Refused(Nrc.OUT_OF_RANGE)
        start, size = read_range(body[1:])
        self._require_region(start, size)
        word_bytes = self._flash.memory.word_bytes
        if start % word_bytes or size % word_bytes:
            raise Refused(Nrc.OUT_OF_RANGE)
        self._require_change(self._regions())
        inflater = zlib.decompressobj(-DEFLATE_WINDOW_BITS) if body[0] == DEFLATE else None
        self._download = _Download(at=start, left=size, inflater=inflater)
        return bytes([Sid.DOWNLOAD + 0x40, 0x20]) + self._downloads.block_bytes.to_bytes(2, "big")

    def transfer(self, body: bytes, faults: FaultState) -> bytes:
        """Take one block. The last block again is answered and not written again."""
        if len(body) + 1 > self._downloads.block_bytes:
            raise Refused(Nrc.INCORRECT_LENGTH)
        download = self._open_download()
        counter, data = body[0], body[1:]
        if (counter, data) != download.last:
            if counter != download.next_counter:
                raise Refused(Nrc.WRONG_COUNTER)
            self._take(download, self._unpacked(download, data))
            download.last = (counter, data)
        echoed = (counter + 1) & 0xFF if faults.wrong_counter.due() else counter
        return bytes([Sid.TRANSFER + 0x40, echoed])

    def exit(self) -> bytes:
        """Close a download that is complete."""
        download = self._open_download()
        if download.left:
            raise Refused(Nrc.SEQUENCE_ERROR)
        self._await_flash()
        self._download = None
        return bytes([Sid.EXIT + 0x40])

    def after_answer(self) -> None:
        """Program what was taken in advance; to be called when an answer is out."""
        if not self._unwritten:
            return
        data, self._unwritten = self._unwritten, b""
        download = self._download
        assert download is not None
        try:
            self._program(download, data)
        except Refused:
            download.failed = True
            self._download = download
        self._idle_at = self._clock() + self._timing.program_s

    def _open_download(self) -> _Download:
        download = self._download
        if download is None:
            raise Refused(Nrc.SEQUENCE_ERROR)
        if download.failed:
            self._download = None
            raise Refused(Nrc.PROGRAMMING_FAILURE)
        return download

    def _unpacked(self, download: _Download, data: bytes) -> bytes:
        """The bytes to write that a block brings; refuses more than were announced, and broken streams."""
        if download.inflater is not None:
            try:
                data = _inflated(download.inflater, data, download.left + 1)
            except zlib.error:
                self._download = None
                raise Refused(Nrc.TRANSFER_SUSPENDED) from None
            if len(data) > download.left or download.inflater.unused_data:
                self._download = None
                raise Refused(Nrc.TRANSFER_SUSPENDED)
        elif len(data) > download.left:
            raise Refused(Nrc.TRANSFER_SUSPENDED)
        return data

    def _take(self, download: _Download, data: bytes) -> None:
        self._await_flash()
        download.left -= len(data)
        if self._downloads.pipelined:
            self._unwritten = data
        else:
            self._program(download, data)
            self._pending.take(self._timing.program_s)

    def _program(self, download: _Download, data: bytes) -> None:
        words = download.rest + data
        whole = len(words) - len(words) % self._flash.memory.word_bytes
        if whole:
            in_slot = self._regions().slot.holds(download.at, 1)
            try:
                self._flash.write(download.at, words[:whole])
            except (NotErased, WriteProtected):
                self._download = None
                raise Refused(Nrc.PROGRAMMING_FAILURE) from None
            if in_slot:
                self.programmed_bytes += whole
        download.at += whole
        download.rest = words[whole:]

    def _await_flash(self) -> None:
        """A flash that still programs takes nothing else."""
        self._pending.take(self._idle_at - self._clock())

    @staticmethod
    def _require_change(regions: Regions) -> None:
        if not regions.may_change:
            raise Refused(Nrc.CONDITIONS_NOT_CORRECT)

    def _require_region(self, start: int, size: int) -> None:
        if not self._regions().holds(start, size):
            raise Refused(Nrc.OUT_OF_RANGE)


def _inflated(inflater: _Inflater, data: bytes, most_bytes: int) -> bytes:
    """Up to so many bytes of a stream; raises zlib.error."""
    out = bytearray()
    while len(out) < most_bytes:
        # zlib reaches back into what a call has put out, however small the window: so put out little.
        piece = inflater.decompress(data, min(INFLATE_STEP_BYTES, most_bytes - len(out)))
        out += piece
        data = inflater.unconsumed_tail
        if not piece:
            break
    return bytes(out)


def read_range(options: bytes) -> tuple[int, int]:
    """Address and size of `44 addr32 len32`; refuses another length with 0x13, another format with 0x31."""
    require_length(options, RANGE_BYTES)
    if options[0] != ADDRESS_FORMAT:
        raise Refused(Nrc.OUT_OF_RANGE)
    return int.from_bytes(options[1:5], "big"), int.from_bytes(options[5:9], "big")
