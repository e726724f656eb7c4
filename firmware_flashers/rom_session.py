"""Being in touch with one part's ROM loader: found alone on its bus, known to be of the family, kept in step.

Everything here is repeated a bounded number of times over lost and damaged frames; what can't be repaired
without an erase is `Spoilt`. Blocking, for a worker thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum, auto
from typing import TypeVar

from firmware_flashers.base import FlashError, NoAnswer, WrongEcu
from firmware_flashers.can_link import CanLink
from firmware_flashers.refusals import BadAnswer
from firmware_flashers.rom_enter import run_enter
from firmware_flashers.rom_profile import RomProfile
from firmware_flashers.rom_words import BLOCK_BYTES, BusNotIsolated, Nacked, Resynced
from firmware_flashers.stm32_rom import RomLoader
from shared.images.stm32_families import by_product_id
from shared.logs import get_log

log = get_log("firmware_flashers")
T = TypeVar("T")

FIRST_BITRATE = 125_000
"""What AN3154's loader starts at."""
NO_ECC_WORD_BYTES = 4
"""Flash of this word takes a second write over 0xFF; wider words carry a check sum that does not."""


class Spoilt(FlashError):
    """A sector may hold anything: it must be erased again."""

    code = "sector_spoilt"


class ReadoutProtected(FlashError):
    """The part's read-out protection (RDP) refuses everything that touches its memory."""

    code = "readout_protected"
    retryable = False
    advice = "Taking read-out protection away erases the whole flash; do it by hand, by its own command."


class Presence(Enum):
    """Who is on the bus."""

    LOADER = auto()
    OTHERS = auto()
    NOBODY = auto()


class RomSession:
    """One part. `resets` counts how often it was found freshly reset; `entered`: the hook brought it here."""

    def __init__(
        self,
        link: CanLink,
        profile: RomProfile,
        *,
        interrupt: threading.Event,
        enter: tuple[str, ...] = (),
    ) -> None:
        self._link = link
        self._profile = profile
        self._part = profile.part
        self._timing = profile.timing
        self._interrupt = interrupt
        self._enter = enter
        self._in_touch = False
        self._met_at = link.bitrate or FIRST_BITRATE
        self.loader = RomLoader(link, profile.timing, fd=profile.is_fd, interrupt=interrupt)
        self._blank = b"\xff" * (64 if profile.is_fd else 8)
        # What a loader that still waits for data may be given.
        self._filling = self._blank
        first = profile.part.sectors_covering(profile.area.start, profile.area.end)[0]
        self._filling_at_first = self.loader.filling_of_erase(first, profile.way_of_erase)
        self._has_neighbours = profile.area.end - profile.area.start < profile.part.flash.size
        self.resets = 0
        self.entered = False

    # --- finding it ------------------------------------------------------------------------------

    def open(self) -> None:
        """Be in touch. Raises BusNotIsolated (nothing was sent), NoAnswer, WrongEcu, ReadoutProtected."""
        self.entered = False
        if self._in_touch:
            self.loader.drain()
            return
        try:
            self._meet(self._timing.sync_s)
        except (NoAnswer, BusNotIsolated) as error:
            if not self._enter:
                raise
            log.info("flasher.loader_not_found", error=error.message)
            run_enter(self._enter, within_s=self._timing.enter_s, interrupt=self._interrupt)
            self.entered = True
            self._meet(self._timing.sync_s)

    def leave(self) -> None:
        """What is there from now on has to be found anew."""
        self._in_touch = False

    @contextmanager
    def watched(self) -> Iterator[None]:
        """A step that fails or is cancelled may leave the loader in the middle of a command."""
        try:
            yield
        except BaseException:
            self.leave()
            raise

    def who_is_there(self, seconds: float) -> Presence:
        """Listen so long; ask for a loader only where nobody else speaks."""
        self.leave()
        try:
            self.loader.listen(seconds)
            there = any(self.loader.is_there() for _ in range(2))
        except BusNotIsolated:
            return Presence.OTHERS
        return Presence.LOADER if there else Presence.NOBODY

    def meet_after_reset(self, within_s: float) -> None:
        """The part has just reset itself: find its loader again, BOOT0 being high. Raises NoAnswer."""
        self.leave()
        self._meet(within_s)

    def _meet(self, within_s: float) -> None:
        self.loader.listen(self._timing.quiet_s)
        self._find(within_s)
        listed = self._ask(self.loader.get)
        product = self._ask(self.loader.get_id)
        if self._part not in by_product_id(product):
            names = ", ".join(one.name for one in by_product_id(product)) or "no family that is known"
            raise WrongEcu(
                f"the part's product id is {product:#05x} ({names}); the profile is for {self._part.name}"
            )
        log.info("flasher.loader_met", product=product, version=listed.version, commands=len(listed.commands))
        self._speed_up()
        self._in_touch = True

    def _find(self, within_s: float) -> Resynced:
        """The loader, at whatever bit rate it is now and in the middle of whatever.

        A tester that died between the two frames of an Erase leaves a loader that takes the next frame for
        a sector's code. Where there is more than the slot to lose, that frame is not the synchronisation,
        whose missing bytes would be what the controller still holds, but the code of the slot's own first.
        """
        filling, sync_first = self._filling, False
        if filling == self._blank:
            filling, sync_first = self._filling_at_first, not self._has_neighbours
        speed = self._profile.speed
        rates: list[int | None] = [None]
        if speed is not None and self._link.sets_bitrate:
            rates += [one for one in (self._met_at, speed) if one != self._link.bitrate]
        for left, rate in zip(reversed(range(len(rates))), rates, strict=True):
            if rate is not None:
                self._link.set_bitrate(rate)
            try:
                found = self.loader.resync(filling, within_s=within_s / len(rates), sync_first=sync_first)
            except NoAnswer:
                if not left:
                    raise
            else:
                self._filling = self._blank
                return found
        raise AssertionError("there is always a rate to try")

    def _speed_up(self) -> None:
        speed = self._profile.speed
        if speed is not None and speed != self._link.bitrate:
            self.loader.set_speed(speed)

    # --- acts that survive lost frames -----------------------------------------------------------

    def _ask(self, act: Callable[[], T]) -> T:
        """Do what may be repeated as it is."""
        for left in reversed(range(self._timing.block_tries)):
            try:
                return act()
            except (NoAnswer, BadAnswer) as error:
                if not left:
                    raise
                log.info("flasher.frame_lost", error=error.message)
                self._recover()
            except Nacked:
                if not left:
                    raise
        raise AssertionError("there is always a last try")

    def _recover(self) -> Resynced:
        try:
            found = self.loader.resync(self._filling)
        except NoAnswer:
            if self._link.bitrate == self._met_at or not self._link.sets_bitrate:
                self._in_touch = False
                raise
            # A part that was reset is back at its first bit rate.
            self._in_touch = False
            found = self._find(self._timing.sync_s)
            self._speed_up()
            self._in_touch = True
        self.resets += found.was_reset
        return found

    def read(self, address: int, length: int, *, first_s: float | None = None) -> bytes:
        """Up to 256 bytes."""
        try:
            return self._ask(lambda: self.loader.read(address, length, first_s=first_s))
        except Nacked as error:
            raise self._why(f"reading {address:#010x}") from error

    def write(self, address: int, data: bytes) -> None:
        """Up to 256 bytes, whole words. Raises Spoilt when only an erase can help."""
        for left in reversed(range(self._timing.block_tries)):
            try:
                self.loader.write(address, data)
                return
            except (NoAnswer, BadAnswer, Nacked) as error:
                if not left:
                    if isinstance(error, Nacked):
                        raise self._why(f"writing {address:#010x}") from error
                    raise
                log.info("flasher.block_in_doubt", address=address, error=error.message)
            address, data = self._rest_of(address, data, self._recover())
            if not data:
                return

    def _rest_of(self, address: int, data: bytes, found: Resynced) -> tuple[int, bytes]:
        """What of a block in doubt is still to be written, seen by what is there."""
        if found.was_reset:
            raise Spoilt(f"the part was reset while {address:#010x} was being written")
        there = self.read(address, len(data))
        if there == data:
            return address, b""
        word = self._part.word_bytes
        right = next(at for at in range(len(data)) if there[at] != data[at])
        right -= right % word
        if there[right:].strip(b"\xff") or (found.filled and word > NO_ECC_WORD_BYTES):
            raise Spoilt(f"{address + right:#010x} holds what was not sent")
        return address + right, data[right:]

    def erase(self, sector: int) -> None:
        """One sector, looked at from both ends. Raises FlashError "not_erased"."""
        start, end = self._part.sector_starts[sector : sector + 2]
        dialect = self._profile.way_of_erase
        for left in reversed(range(self._timing.sector_tries)):
            # Whatever happens on the way, a loader that waits for sector codes gets this one.
            self._filling = self.loader.filling_of_erase(sector, dialect)
            try:
                self._erase_once(sector, dialect)
                self._filling = self._blank
            except (NoAnswer, BadAnswer, Nacked) as error:
                if not left:
                    if isinstance(error, Nacked):
                        raise self._why(f"erasing sector {sector}") from error
                    raise
                # A sector whose erase was cut is erased again, however it reads.
                self._recover()
                self._filling = self._blank
                continue
            length = min(BLOCK_BYTES, end - start)
            ends = {start, end - length}
            if all(self.is_blank(at, length, first_s=self._timing.erase_s) for at in ends):
                return
        raise FlashError(
            f"sector {sector} at {start:#010x} is not blank after its erase",
            code="not_erased",
            advice="It is write-protected, or the part is worn: `write_unprotect`, then flash again.",
        )

    def _erase_once(self, sector: int, dialect: str) -> None:
        self.loader.erase(sector, dialect)
        # A loader that got the first frame twice has begun anew: whatever came next would be a code to it.
        if self.loader.settle():
            raise BadAnswer(f"the loader acknowledges more of the erase of sector {sector} than there was")

    def is_blank(self, address: int, length: int, *, first_s: float | None = None) -> bool:
        """Whether up to 256 bytes are erased; read twice if not, since a frame may have been damaged."""
        blank = b"\xff" * length
        return any(self.read(address, length, first_s=first_s) == blank for _ in range(2))

    def go(self, address: int) -> None:
        """Start what stands there; a lost acknowledgement is not repaired, for it may run already."""
        for left in reversed(range(self._timing.block_tries)):
            try:
                self.loader.go(address)
                return
            except Nacked as error:
                if left:
                    continue
                nothing = FlashError(
                    f"the loader refuses to start {address:#010x}: no vector table that fits the part",
                    code="not_booted",
                    advice="Flash it again; if it repeats, the image does not start on this part.",
                )
                raise self._refused(f"starting {address:#010x}", nothing) from error

    def _refused(self, what: str, otherwise: FlashError) -> FlashError:
        """What a refusal of an access to memory means: read-out protection, or what else it would be."""
        try:
            self.loader.read(self._part.flash_start, 1)
        except Nacked:
            return ReadoutProtected(f"the part refuses {what}: its read-out protection is on")
        return otherwise

    def _why(self, what: str) -> FlashError:
        bad_address = FlashError(
            f"the loader refuses {what}",
            code="bad_address",
            retryable=False,
            advice="Compare the profile's family and slot with the part.",
        )
        return self._refused(what, bad_address)
