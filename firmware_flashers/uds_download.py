"""How an image gets into an ECU, in the order that never lets a torn one boot. Blocking; for a worker thread.

The ECU boots only what its signed document describes. So the document is erased first and written last:
between the two there is nothing that could boot, and an ECU that holds a whole document holds a whole
image. The step may be begun again from the start, whatever state an earlier try has left the ECU in
(ISO 14229-1, 15 "non-volatile server memory programming process").
"""

from __future__ import annotations

from collections.abc import Callable

from firmware_flashers.base import FirmwareImage, Identity
from firmware_flashers.refusals import SESSION_LOST, Refused
from firmware_flashers.threaded import Report
from firmware_flashers.uds_ecu import UdsEcu
from firmware_flashers.uds_image import Place, document_bytes, judge_image, judge_part, judge_place
from firmware_flashers.uds_plan import Stretch, stretches
from firmware_flashers.uds_start import Start
from firmware_flashers.uds_words import ImageState, not_bootable
from shared.errors import OtaError
from shared.logs import get_log
from shared.states import Step

log = get_log("firmware_flashers")


class UdsDownload:
    """`touched` says whether the last `stage` may have begun to change what the ECU holds."""

    def __init__(self, ecu: UdsEcu, start: Start) -> None:
        self._ecu = ecu
        self._start = start
        self.touched = False

    def stage(self, image: FirmwareImage, report: Report) -> None:
        """Judge, unlock, erase, write and have it checked; see the module for the order."""
        ecu, start = self._ecu, self._start
        self.touched = ecu.session.left_application = False
        start.forget()
        total = len(image.data)
        report(Step.PREPARING, 0, total)
        judge_image(image, ecu.profile, kind=ecu.kind, hardware=ecu.hardware)
        if ecu.slots is None:
            judge_place(image, ecu.place())
        before = ecu.identify()
        ecu.check_identity(before)
        if (before.sha256, before.version) == (image.spec.sha256, image.spec.version):
            log.info("flasher.image_held", version=image.spec.version, in_bootloader=before.in_bootloader)
            start.was_running = not before.in_bootloader
            report(Step.CHECKING, total, total)
            return
        place = self._passive_place(image) if ecu.slots is not None else ecu.place()
        try:
            with ecu.quieted(needed=True):
                self._open_and_write(image, place, before, report)
        except OtaError:
            if not self.touched or ecu.slots is not None:
                ecu.session.let_go(in_bootloader_before=before.in_bootloader)
            raise
        if ecu.slots is not None:
            ecu.session.let_go(in_bootloader_before=False)

    def _passive_place(self, image: FirmwareImage) -> Place:
        """Where the image goes on an ECU with two slots, once it is judged by what the ECU says of itself."""
        slots = self._ecu.slots
        assert slots is not None
        place = slots.place()
        judge_part(image, self._ecu.profile, slots.target(place))
        if slots.state() is ImageState.PENDING_VERIFY:
            # Nobody confirmed what runs, and its slot is the only one that a third image could go to.
            log.warning("flasher.unconfirmed_image_given_up")
            self.touched = True
            self._start.revert()
            place = slots.place()
            judge_part(image, self._ecu.profile, slots.target(place))
        judge_place(image, place)
        self._start.staged_from = slots.running()
        return place

    def _open_and_write(self, image: FirmwareImage, place: Place, before: Identity, report: Report) -> None:
        """From the session on; once more when a reset or its time-out (S3) closed the session meanwhile."""
        ecu = self._ecu
        plan: list[Stretch] | None = None
        for left in reversed(range(ecu.profile.timing.download_tries)):
            try:
                ecu.session.enter_programming()
                ecu.session.unlock()
                ecu.write_fingerprint(image.spec.sha256[:12])
                if plan is None:
                    plan = self._plan(ecu.padded(image.data), place, before)
                self._write_all(image, place, plan, report)
                return
            except Refused as error:
                if not left or error.code != SESSION_LOST:
                    raise
                log.warning("flasher.session_reopened", error=error.message)

    def _plan(self, data: bytes, place: Place, before: Identity) -> list[Stretch]:
        """What must be written: all sectors of the image, or those that the ECU finds different.

        It is asked only when it held a whole image when the step began: a sector whose erase or write was
        cut is erased again, however it reads.
        """
        profile = self._ecu.profile
        sectors = profile.memory.sectors_of(place.slot, len(data))
        wanted = sectors
        if profile.skips_sectors and before.sha256 is not None:
            filled = data.ljust(sectors[-1].end - place.slot.start, b"\xff")
            base = place.slot.start
            try:
                wanted = [
                    one
                    for one in sectors
                    if not self._ecu.memory.holds(one.start, filled[one.start - base : one.end - base])
                ]
            except Refused as error:
                if error.code == SESSION_LOST:
                    raise
                log.warning("flasher.sectors_not_compared", error=error.message)
        log.info("flasher.sectors_planned", sectors=len(sectors), different=len(wanted))
        return stretches(sectors, wanted, data)

    def _write_all(self, image: FirmwareImage, place: Place, plan: list[Stretch], report: Report) -> None:
        ecu, memory = self._ecu, self._ecu.memory
        total = len(image.data)
        self.touched = True
        report(Step.ERASING, 0, total)
        if place.document is not None:
            memory.erase(place.document)
        for stretch in plan:
            memory.write(stretch, _from(stretch.start - place.slot.start, total, report))
        report(Step.CHECKING, total, total)
        memory.prove(place.slot.start, ecu.padded(image.data))
        if place.document is not None:
            document = ecu.padded(document_bytes(image))
            memory.write(Stretch(sectors=(place.document,), data=document), lambda *_: None, is_erased=True)
            memory.prove(place.document.start, document)
        self._check_dependencies()

    def _check_dependencies(self) -> None:
        routine = self._ecu.profile.routines.check_dependencies
        if routine is None:
            return
        status = self._ecu.client.routine(
            routine, b"", "the check of dependencies", most_s=self._ecu.profile.timing.check_s
        )
        if status != b"\x00":
            raise not_bootable(status)


def _from(base: int, total: int, report: Report) -> Callable[[Step, int], None]:
    """Reports bytes of a stretch that begins at byte `base` of the image."""
    return lambda step, done: report(step, min(base + done, total), total)
