"""The steps of bringing firmware into a part by its ROM loader. Blocking; for a worker thread.

What a part holds is known only as far as this very program has read it back: a loader tells nothing of its
own, and behind Go there is no loader left to ask.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from firmware_flashers.base import (
    BadImage,
    FirmwareImage,
    FlashError,
    Identity,
    NoAnswer,
    NotProved,
    WrongEcu,
)
from firmware_flashers.refusals import BadAnswer
from firmware_flashers.rom_profile import RomProfile
from firmware_flashers.rom_session import Presence, RomSession
from firmware_flashers.rom_words import BLOCK_BYTES, BusNotIsolated
from firmware_flashers.rom_writer import RomWriter
from firmware_flashers.threaded import Report
from shared.logs import get_log
from shared.release import Incompatible
from shared.states import Step

log = get_log("firmware_flashers")

LOADER_GONE = "loader_gone"
BRING_BACK = "Bring the part back into its ROM loader (BOOT0 high, then reset) and verify again."


@dataclass(frozen=True, kw_only=True)
class Proof:
    """An image that this program itself has read back, byte for byte."""

    sha256: str
    version: str

    @classmethod
    def of(cls, image: FirmwareImage) -> Proof:
        """What a proof of this image would say."""
        return cls(sha256=image.spec.sha256, version=image.spec.version)


@dataclass
class Visit:
    """Whether the part `stays` in its loader afterwards."""

    stays: bool = True


class RomSteps:
    """The steps. `touched` says whether the last one may have begun to change the flash."""

    def __init__(self, session: RomSession, profile: RomProfile, *, kind: str, hardware: str) -> None:
        self._session = session
        self._writer = RomWriter(session, profile)
        self._profile = profile
        self._part = profile.part
        self._timing = profile.timing
        self._start = profile.area.start
        self._kind = kind
        self._hardware = hardware
        self._proof: Proof | None = None  # of what stands there
        self._started: Proof | None = None  # of what this program has started
        self.touched = False

    def watched(self) -> AbstractContextManager[None]:
        """Around each step (see RomSession.watched)."""
        return self._session.watched()

    # -- steps of the Flasher protocol

    def identify(self) -> Identity:
        """The part's family is asked; what it holds is known only as proved by this program."""
        if self._started is not None:
            if self._session.who_is_there(self._timing.quiet_s) is not Presence.LOADER:
                return self._identity(self._started, in_bootloader=False)
            self._started = None
        with self._visit() as visit:
            pass
        return self._identity(self._proof or self._started, in_bootloader=visit.stays)

    def stage(self, image: FirmwareImage, report: Report) -> None:
        """Judge, erase, write and read back (see rom_writer); an image that stands there is not written."""
        self.touched = False
        total = len(image.data)
        report(Step.PREPARING, 0, total)
        self._check_fits(image)
        spec = image.spec
        if (len(image.data), hashlib.sha256(image.data).hexdigest()) != (spec.length, spec.sha256):
            raise BadImage("the image is not the one that its document describes")
        pieces = self._writer.pieces(image.data)
        self._session.open()
        self._forget()
        changed = self._writer.changed(pieces, report)
        if changed:
            self.touched = True
            self._writer.write_all(pieces, changed, report)
        else:
            log.info("flasher.image_held", version=spec.version)
        self._proof = Proof.of(image)
        report(Step.CHECKING, total, total)

    def activate(self) -> None:
        """Go to the slot's start, and see that the loader is gone. Raises FlashError "not_booted"."""
        self.touched = False
        self._session.open()
        self._go()

    def verify(self, image: FirmwareImage) -> Identity:
        """Read back and compare every byte; behind Go the proof that this program made before it counts."""
        self._check_fits(image)
        if self._started is not None:
            if self._started != Proof.of(image):
                raise NotProved(f"this flasher started {self._started.version}, not {image.spec.version}")
            if self._session.who_is_there(self._timing.quiet_s) is not Presence.LOADER:
                return self._identity(self._started, in_bootloader=False)
            raise NotProved(
                "the part is in its ROM loader again: the application does not run", code="not_booted"
            )
        try:
            with self._visit() as visit:
                self._compare(image)
        except (NoAnswer, BusNotIsolated) as error:
            raise NotProved(
                f"no ROM loader answers that could read back what runs: {error.message}",
                code=LOADER_GONE,
                advice=BRING_BACK,
            ) from error
        return self._identity(Proof.of(image), in_bootloader=visit.stays)

    # -- the bench's steps

    def read(self, start: int, length: int, report: Report) -> bytes:
        """Any memory that the loader reads."""
        self._session.open()
        got = bytearray()
        while len(got) < length:
            report(Step.READING_BACK, len(got), length)
            got += self._session.read(start + len(got), min(BLOCK_BYTES, length - len(got)))
        report(Step.READING_BACK, length, length)
        return bytes(got)

    def erase(self, start: int, length: int, report: Report) -> None:
        """Whole sectors, proved over all of them."""
        self.touched = False
        sectors = self._whole_sectors(start, length)
        self._session.open()
        self._begin_to_change()
        for sector in sectors:
            report(Step.ERASING, self._part.sector_starts[sector] - start, length)
            self._writer.erase(sector, full=True)
        report(Step.ERASING, length, length)

    def mass_erase(self) -> None:
        """Everything; the caller has made sure that it is wanted. Looked at where each sector begins."""
        self.touched = False
        self._session.open()
        self._begin_to_change()
        self._session.loader.mass_erase()
        for start in self._part.sector_starts[:-1]:
            self._writer.check_blank(start, start + BLOCK_BYTES)

    def write_protect(self, sectors: list[int]) -> None:
        """The part resets itself and is met again, as after the next three."""
        self._session.open()
        self._session.loader.write_protect(sectors)
        self._session.meet_after_reset(self._timing.reset_s)

    def write_unprotect(self) -> None:
        """No sector is protected any more."""
        self._session.open()
        self._session.loader.write_unprotect()
        self._session.meet_after_reset(self._timing.reset_s)

    def readout_protect(self) -> None:
        """Nothing of the memory can be reached any more."""
        self._session.open()
        self._session.loader.readout_protect()
        self._session.meet_after_reset(self._timing.reset_s)

    def readout_unprotect(self) -> None:
        """Everything is erased; when that is over, only the loader's next answer tells."""
        self.touched = False
        self._session.open()
        self._begin_to_change()
        self._session.loader.readout_unprotect()
        self._session.meet_after_reset(self._timing.mass_erase_s)

    # -- judgements

    def _check_fits(self, image: FirmwareImage) -> None:
        try:
            image.spec.check_fits(kind=self._kind, hardware=self._hardware)
        except Incompatible as error:
            raise WrongEcu(error.message) from error

    def _compare(self, image: FirmwareImage) -> None:
        self._forget()
        wrong = self._writer.difference(self._start, image.data)
        if wrong is not None:
            raise NotProved(f"{wrong:#010x} does not hold what {image.spec.version} has there")
        self._proof = Proof.of(image)

    def _whole_sectors(self, start: int, length: int) -> range:
        """Numbers of the sectors that start..start+length is made of. Raises FlashError."""
        end = start + length
        edges = self._part.sector_starts
        if length <= 0 or start not in edges or end not in edges:
            raise FlashError(
                f"{start:#010x}..{end:#010x} is not made of whole sectors of {self._part.name}",
                code="bad_address",
                retryable=False,
                advice="Give a sector's start and whole sectors.",
            )
        for one in self._profile.protected:
            if one.start < end and start < one.end:
                raise FlashError(
                    f"{start:#010x}..{end:#010x} holds {one.start:#010x}..{one.end:#010x}, "
                    "which is never erased",
                    code="never_erased",
                    retryable=False,
                    advice="The profile names this range under never_erased.",
                )
        return self._part.sectors_covering(start, end)

    # -- starting it

    @contextmanager
    def _visit(self) -> Iterator[Visit]:
        """Be in the loader; a part that was brought there by the hook is started again at the end."""
        visit = Visit()
        self._session.open()
        try:
            yield visit
        finally:
            if self._session.entered and self._writer.has_vectors():
                self._go()
                visit.stays = False

    def _go(self) -> None:
        proof = self._proof
        self._forget()
        for left in reversed(range(self._timing.block_tries)):
            acknowledged = self._ask_to_go()
            presence = self._session.who_is_there(self._timing.boot_s)
            if presence is Presence.OTHERS or (presence is Presence.NOBODY and acknowledged):
                log.info("flasher.part_started", start=self._start)
                self._started = proof
                return
            if presence is Presence.NOBODY:
                raise FlashError(
                    "the part fell silent before it acknowledged Go: whether it runs can't be known",
                    code="not_booted",
                    advice=BRING_BACK,
                )
            if acknowledged or not left:
                break
            self._session.open()
        raise FlashError(
            "the ROM loader answers again behind Go: the application does not stay running",
            code="not_booted",
            advice="Flash it again; if it repeats, the image does not start on this part.",
        )

    def _ask_to_go(self) -> bool:
        """Whether the loader acknowledges."""
        try:
            self._session.go(self._start)
        except (NoAnswer, BadAnswer, BusNotIsolated) as error:
            log.info("flasher.go_unacknowledged", error=error.message)
            return False
        return True

    # -- small things

    def _begin_to_change(self) -> None:
        self._forget()
        self._writer.trusted = False
        self.touched = True

    def _forget(self) -> None:
        self._proof = self._started = None

    def _identity(self, proof: Proof | None, *, in_bootloader: bool) -> Identity:
        return Identity(
            kind=self._kind,
            hardware=self._hardware,
            version=None if proof is None else proof.version,
            sha256=None if proof is None else proof.sha256,
            in_bootloader=in_bootloader,
        )
