"""How a staged image comes to run, is proved, made permanent or given up. Blocking; for a worker thread."""

from __future__ import annotations

from dataclasses import replace

from firmware_flashers.base import FirmwareImage, FlashError, Identity, NoAnswer, NotProved
from firmware_flashers.refusals import BadAnswer
from firmware_flashers.uds_ecu import STAYS, UdsEcu
from firmware_flashers.uds_slots import Slots
from firmware_flashers.uds_words import ImageState
from shared.logs import get_log

log = get_log("firmware_flashers")

ROLLED_BACK = "rolled_back"


class Start:
    """The steps behind `stage`, on one ECU. What it remembers of the stage before is a help, not a need.

    `touched` says whether the last `revert` may have begun to change anything; `was_running` that the image
    which was to be staged ran already; `staged_from` is the slot that ran when one was staged into the other.
    """

    def __init__(self, ecu: UdsEcu) -> None:
        self._ecu = ecu
        self.was_running = False
        self.staged_from: int | None = None
        self.touched = False
        self._is_reverted = False

    def forget(self) -> None:
        """Another stage begins."""
        self.was_running = self._is_reverted = False
        self.staged_from = None

    def activate(self) -> None:
        """Reset, and wait until the application answers."""
        ecu, slots = self._ecu, self._ecu.slots
        if self.was_running or (slots is not None and slots.state() is ImageState.PENDING_VERIFY):
            # It has been started already: an image on trial that is reset goes back to the former one.
            log.info("flasher.image_runs_already")
            return
        slot = None if slots is None else slots.running()
        with ecu.quieted(needed=False):
            for left in reversed(range(ecu.profile.timing.silent_tries)):
                is_answered = ecu.reset()
                last = ecu.await_application(patient=is_answered or not left)
                if last is None and (is_answered or slots is None or slots.running() != slot):
                    return
                if last is not None and (is_answered or not left or last != STAYS):
                    raise not_booted(ecu, last)
                # The request was lost, not its answer: the ECU still is what it was before.
                log.info("flasher.reset_repeated")

    def verify(self, image: FirmwareImage) -> Identity:
        """Compare the running ECU's own word with the image."""
        ecu, spec = self._ecu, image.spec
        identity = ecu.identify()
        ecu.check_identity(identity)
        if identity.in_bootloader:
            raise NotProved("the ECU waits in its bootloader; the application does not run")
        if ecu.profile.dids.image_sha256 is None:
            return self._verify_content(image, identity)
        if (identity.sha256, identity.version) != (spec.sha256, spec.version):
            said = (
                f"the ECU runs {identity.version} ({identity.sha256 or 'no whole image'}), "
                f"not {spec.version} ({spec.sha256})"
            )
            raise NotProved(said) if ecu.slots is None else _rolled_back(said)
        if ecu.slots is not None and ecu.slots.state() in {ImageState.INVALID, ImageState.ABORTED}:
            raise _rolled_back("the ECU has given up the image that it runs")
        return identity

    def _verify_content(self, image: FirmwareImage, identity: Identity) -> Identity:
        """For an ECU that can't say what it holds: its memory itself is the proof."""
        ecu = self._ecu
        with ecu.opened(in_bootloader_before=False):
            ecu.memory.prove(ecu.place().slot.start, ecu.padded(image.data))
        if (last := ecu.await_application()) is not None:
            raise not_booted(ecu, last)
        return replace(identity, version=image.spec.version, sha256=image.spec.sha256)

    def confirm(self) -> None:
        """Make the running image permanent, where it runs on trial."""
        ecu, slots = self._ecu, self._ecu.slots
        if slots is None or slots.state() in {ImageState.VALID, ImageState.UNDEFINED}:
            return
        try:
            ecu.session.enter_extended()
            ecu.session.unlock()
            slots.confirm()
            if (state := slots.state()) is not ImageState.VALID:
                raise NotProved(f"the ECU confirmed its image, which still is {state.name.lower()}")
        finally:
            ecu.session.let_go(in_bootloader_before=False)

    def revert(self) -> None:
        """Give up the image on trial, or the one that waits for its start; the former one runs afterwards."""
        slots = self._ecu.slots
        assert slots is not None
        self.touched = False
        if self._is_reverted:
            return
        if slots.state() is not ImageState.PENDING_VERIFY:
            if self.staged_from is None:
                raise FlashError(
                    "the image that runs is permanent: nothing is on trial",
                    code="nothing_to_revert",
                    retryable=False,
                    advice="Flash the former image again.",
                    touched=False,
                )
            if slots.running() == self.staged_from:
                self._unstage(slots)
                return
        self._roll_back(slots)

    def _unstage(self, slots: Slots) -> None:
        """The staged image was not started: without its document it never will be."""
        with self._ecu.opened(in_bootloader_before=False):
            self._ecu.write_fingerprint("revert")
            document = slots.place().document
            assert document is not None
            self.touched = True
            self._ecu.memory.erase(document)
        self._is_reverted = True

    def _roll_back(self, slots: Slots) -> None:
        ecu = self._ecu
        slot = slots.running()
        for left in reversed(range(ecu.profile.timing.silent_tries)):
            ecu.session.enter_extended()
            ecu.session.unlock()
            self.touched = True
            try:
                slots.roll_back()
                is_answered = True
            except (NoAnswer, BadAnswer):
                # It may have reset before its answer left; which slot runs afterwards tells.
                is_answered = False
            if (last := ecu.await_application()) is not None:
                raise not_booted(ecu, last)
            if slots.running() != slot:
                self._is_reverted = True
                return
            if is_answered or not left:
                raise FlashError("the ECU still runs the image that it was to give up", code="not_reverted")


def not_booted(ecu: UdsEcu, why: str) -> FlashError:
    """The ECU was reset and its application did not come."""
    return FlashError(
        f"the application does not run {ecu.profile.timing.boot_s:.0f} s after the reset: {why}",
        code="not_booted",
        advice="Flash it again; if it repeats, the image does not start on this part.",
    )


def _rolled_back(message: str) -> NotProved:
    return NotProved(
        message,
        code=ROLLED_BACK,
        advice="The new image did not start or gave itself up, and the former one runs: "
        "read the ECU's log, then flash an image that is corrected.",
    )
