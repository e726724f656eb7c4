"""Erase, write and read back by a ROM loader, in the order in which a torn image never boots.

A ROM loader keeps no mark of what is whole. So the sector of the vector table is erased first, and its first
words (stack pointer and reset vector, at least one flash word) are written last, after everything else was
read back: until then the core finds nothing to start. Whatever a loader acknowledges, only what it reads
back counts.

While the vector table stands at the beginning, a whole image stood there, and sectors that hold the right
bytes already are left alone (reading back is cheaper than a latency-bound write); an attempt that failed
takes that trust away.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from firmware_flashers.base import BadImage, NotProved
from firmware_flashers.rom_profile import RomProfile
from firmware_flashers.rom_session import RomSession, Spoilt
from firmware_flashers.rom_words import BLOCK_BYTES
from firmware_flashers.threaded import Report
from shared.images.stm32 import BadImageLayout, judge
from shared.logs import get_log
from shared.states import Step

log = get_log("firmware_flashers")

VECTOR_BYTES = 8
"""Stack pointer and reset vector: a core starts by the second even where the first is wrong."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What of an image lies in one sector, from its start on."""

    sector: int
    start: int
    wanted: bytes


class RomWriter:
    """The memory of one part. `trusted`: no attempt of this program has failed since the last whole one."""

    def __init__(self, session: RomSession, profile: RomProfile) -> None:
        self._session = session
        self._profile = profile
        self._part = profile.part
        self._timing = profile.timing
        self._start = profile.area.start
        self._head = max(VECTOR_BYTES, profile.part.word_bytes)
        self._total = 0
        self.trusted = True

    def pieces(self, data: bytes) -> list[Piece]:
        """An image by sectors, padded to whole flash words. Raises BadImage when it can't start there."""
        try:
            judge(data, self._profile.layout)
        except BadImageLayout as error:
            raise BadImage(error.message, advice=error.advice) from error
        padded = data + b"\xff" * (-len(data) % self._part.word_bytes)
        edges, base = self._part.sector_starts, self._start
        return [
            Piece(
                sector=sector,
                start=edges[sector],
                wanted=padded[edges[sector] - base : edges[sector + 1] - base],
            )
            for sector in self._part.sectors_covering(base, base + len(padded))
        ]

    def changed(self, pieces: list[Piece], report: Report) -> list[Piece]:
        """The pieces to write, the vector table's first; none when the image stands there whole."""
        if not (self._profile.skip_unchanged and self.trusted and self.has_vectors()):
            return pieces
        total = _size(pieces)
        changed = []
        for piece in pieces:
            report(Step.PREPARING, piece.start - self._start, total)
            if self.difference(piece.start, piece.wanted) is not None:
                changed.append(piece)
        log.info("flasher.sectors_compared", sectors=len(pieces), changed=len(changed))
        if changed and changed[0] is not pieces[0]:
            changed.insert(0, pieces[0])
        return changed

    def has_vectors(self) -> bool:
        """Whether an image that could start stands in the slot: its first words were written last."""
        slot = self._profile.area
        head = self._session.read(self._start, VECTOR_BYTES)
        try:
            # Judged as if it filled the slot, for its own length is not known.
            judge(head.ljust(slot.end - slot.start, b"\xff"), self._profile.layout)
        except BadImageLayout:
            return False
        return True

    def write_all(self, pieces: list[Piece], changed: list[Piece], report: Report) -> None:
        """Write the `changed` ones of an image's pieces, the vector table's among them. Raises NotProved.

        Then all are read back, the others too: a frame that was lost, doubled or damaged on the way may have
        made the loader erase or write elsewhere (the sector code of an Erase stands in a frame of its own).
        """
        self.trusted = False
        self._total = _size(pieces)
        head, body = pieces[0].wanted[: self._head], pieces[0].wanted[self._head :]
        hidden = Piece(sector=pieces[0].sector, start=pieces[0].start, wanted=b"\xff" * len(head) + body)
        image = [hidden, *pieces[1:]]
        sectors = {piece.sector for piece in changed}
        wrong = 0
        for _ in range(self._timing.sector_tries):
            for piece in image:
                if piece.sector in sectors:
                    self._write_piece(piece, report)
            sectors, wrong = self._wrong(image, report)
            if not sectors:
                if self._is_committed(hidden.start, head):
                    self.trusted = True
                    return
                sectors, wrong = {hidden.sector}, hidden.start
            log.warning("flasher.sectors_wrong", sectors=sorted(sectors))
        raise NotProved(
            f"{wrong:#010x} does not hold what was written",
            advice="The sector is write-protected (`write_unprotect`), or the part is worn.",
        )

    def _wrong(self, image: list[Piece], report: Report) -> tuple[set[int], int]:
        """The sectors that read back otherwise, and where."""
        total = _size(image)
        sectors, where = set(), 0
        for piece in image:
            report(Step.CHECKING, piece.start - self._start, total)
            wrong = self.difference(piece.start, piece.wanted)
            if wrong is not None:
                sectors.add(piece.sector)
                where = wrong
        return sectors, where

    def _is_committed(self, start: int, head: bytes) -> bool:
        resets = self._session.resets
        try:
            self._session.write(start, head)
        except Spoilt as error:
            log.warning("flasher.vectors_spoilt", error=error.message)
            return False
        return self.difference(start, head) is None and self._session.resets == resets

    def _write_piece(self, piece: Piece, report: Report) -> None:
        """One sector, from its erase on again when something came in between."""
        for left in reversed(range(self._timing.sector_tries)):
            try:
                self._write_once(piece, report)
                return
            except (Spoilt, NotProved) as error:
                log.warning("flasher.sector_spoilt", sector=piece.sector, error=error.message)
                if not left:
                    raise NotProved(error.message, advice=error.advice) from error

    def _write_once(self, piece: Piece, report: Report) -> None:
        resets, done, total = self._session.resets, piece.start - self._start, self._total
        report(Step.ERASING, done, total)
        self.erase(piece.sector, full=self._profile.blank_check == "full")
        for at, data in _runs(piece, self._part.word_bytes):
            report(Step.WRITING, min(at - self._start, total), total)
            self._session.write(at, data)
        if self._session.resets != resets:
            raise Spoilt(f"the part was reset while sector {piece.sector} was being written")

    def erase(self, sector: int, *, full: bool) -> None:
        """One sector, proved at its ends or over all of it. Raises NotProved, FlashError "not_erased"."""
        self._session.erase(sector)
        if full:
            start, end = self._part.sector_starts[sector : sector + 2]
            self.check_blank(start, end)

    def check_blank(self, start: int, end: int) -> None:
        """Raises NotProved when something is not erased."""
        for at in range(start, end, BLOCK_BYTES):
            if not self._session.is_blank(at, min(BLOCK_BYTES, end - at), first_s=self._timing.erase_s):
                raise NotProved(f"{at:#010x} is not blank after its erase")

    def difference(self, start: int, wanted: bytes) -> int | None:
        """The address of the first block that differs, read again before it is believed."""
        for at in range(0, len(wanted), BLOCK_BYTES):
            block = wanted[at : at + BLOCK_BYTES]
            if not any(self._session.read(start + at, len(block)) == block for _ in range(2)):
                return start + at
        return None


def _size(pieces: list[Piece]) -> int:
    return sum(len(piece.wanted) for piece in pieces)


def _runs(piece: Piece, word: int) -> Iterator[tuple[int, bytes]]:
    """Blocks to write: aligned to 256 bytes of address, without the erased words at either end."""
    for at in range(0, len(piece.wanted), BLOCK_BYTES):
        block = piece.wanted[at : at + BLOCK_BYTES]
        first = len(block) - len(block.lstrip(b"\xff"))
        if first == len(block):
            continue
        first -= first % word
        end = len(block.rstrip(b"\xff"))
        end += -end % word
        yield piece.start + at + first, block[first:end]
