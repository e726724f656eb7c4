"""Erase, write and prove memory of an ECU that has let us in (ISO 14229-1, clauses 14 and 13).

A stretch of sectors is erased, sent in as few and as large blocks as the ECU takes, and begun again where
the ECU lost its place: from the erase of the sector that holds the first byte not acknowledged, since
flash that was written once takes nothing more. Nothing here knows what the bytes mean.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from firmware_flashers import uds
from firmware_flashers.base import FlashError, MemoryRange, NoAnswer, NotProved
from firmware_flashers.clock import Clock
from firmware_flashers.refusals import REQUEST_OUT_OF_RANGE, TRANSFER_LOST, BadAnswer, Refused
from firmware_flashers.uds_plan import Run, Stretch, deflated, runs, together
from firmware_flashers.uds_profile import DEFLATE, READ, UdsProfile
from shared.logs import get_log
from shared.states import Step

log = get_log("firmware_flashers")

BLOCK_OVERHEAD = 2  # service and block counter
DEFLATED = 0x10  # dataFormatIdentifier: the profile's compression, no encryption
REPORT_EVERY_S = 0.1

Report = Callable[[Step, int], None]
"""A step and how many bytes of this memory are through with it."""


class Transfer:
    """One ECU's memory, through its unlocked programming session."""

    def __init__(self, client: uds.UdsClient, profile: UdsProfile, clock: Clock) -> None:
        self._client = client
        self._profile = profile
        self._timing = profile.timing
        self._clock = clock
        self._compress = profile.compression == DEFLATE
        self._next_report = 0.0

    def erase(self, what: MemoryRange) -> None:
        """Erase whole sectors in one request."""
        routine = self._profile.routines.erase
        if routine is None:
            return
        status = self._client.routine(
            routine,
            uds.area(what.start, what.end - what.start),
            f"the erase of {what.start:#010x}",
            most_s=self._timing.erase_s,
        )
        if status.hex() not in self._profile.routines.erase_answers:
            raise FlashError(
                f"the ECU could not erase {what.start:#010x} (status {status.hex()})", code="erase_failed"
            )

    def write(self, stretch: Stretch, report: Report, *, is_erased: bool = False) -> None:
        """Erase a stretch (unless it `is_erased`) and write it, again from where the ECU lost its place.

        Raises FlashError once that has happened more often than the profile says.
        """
        at = 0
        for left in reversed(range(self._timing.download_tries)):
            sent = _Sent()
            try:
                if not is_erased:
                    for one in together(stretch.sectors, self._profile.erase_request_bytes):
                        report(Step.ERASING, at + one.start - stretch.start)
                        self.erase(one)
                self._send(stretch, at, report, sent)
                return
            except (Refused, NoAnswer, BadAnswer) as error:
                lost = isinstance(error, NoAnswer | BadAnswer) or error.nrc in TRANSFER_LOST
                if not left or not lost:
                    raise
                log.warning("flasher.download_restarted", code=error.code, error=error.message)
            rest = stretch.rest(sent.bytes)
            at += rest.start - stretch.start
            stretch, is_erased = rest, False

    def holds(self, start: int, data: bytes) -> bool:
        """Whether the ECU says, by its own check, that its memory from `start` on is `data`."""
        routine = self._profile.routines.check_memory
        assert routine is not None
        status = self._client.routine(
            routine,
            uds.area(start, len(data)) + hashlib.sha256(data).digest(),
            "the check of its memory",
            most_s=self._timing.check_s,
        )
        return status == b"\x00"

    def prove(self, start: int, data: bytes) -> None:
        """Raise NotProved unless the ECU's memory from `start` on is `data`, by the profile's proof."""
        if self._profile.proof == READ:
            found = self.read(start, len(data), lambda *_: None)
            if found != data:
                at = next(n for n, (a, b) in enumerate(zip(found, data, strict=True)) if a != b)
                raise NotProved(f"the ECU holds other bytes from {start + at:#010x} on than were sent")
        elif not self.holds(start, data):
            raise NotProved(f"the ECU finds other bytes at {start:#010x} than were sent")

    def read(self, start: int, length: int, report: Report) -> bytes:
        """`length` bytes of memory from `start` on, by address."""
        most = self._profile.block_bytes - BLOCK_OVERHEAD
        found = bytearray()
        while len(found) < length:
            report(Step.READING_BACK, len(found))
            found += self._client.read_memory(start + len(found), min(most, length - len(found)))
        report(Step.READING_BACK, length)
        return bytes(found)

    def _send(self, stretch: Stretch, at: int, report: Report, sent: _Sent) -> None:
        """Send what is not erased of a stretch; `sent` grows with what was acknowledged."""
        parts = runs(
            stretch.data,
            word_bytes=self._profile.memory.word_bytes,
            erased_run_bytes=self._profile.erased_run_bytes,
        )
        for run in parts:
            sent.bytes = max(sent.bytes, run.offset)
            self._send_run(stretch.start, run, lambda done: self._report(report, at + done), sent)
        report(Step.WRITING, at + len(stretch.data))

    def _send_run(self, start: int, run: Run, report: Callable[[int], None], sent: _Sent) -> None:
        packed = deflated(run.data) if self._compress else None
        address = start + run.offset
        if packed is not None:
            try:
                most = self._client.request_download(address, len(run.data), data_format=DEFLATED)
            except Refused as error:
                if error.nrc != REQUEST_OUT_OF_RANGE:
                    raise
                log.warning("flasher.compression_refused", error=error.message)
                self._compress, packed = False, None
        if packed is None:
            most = self._client.request_download(address, len(run.data))
        most = min(most, self._profile.block_bytes) - BLOCK_OVERHEAD
        word = 1 if packed is not None else self._profile.memory.word_bytes
        # Whole flash words, so that a part which programs block by block needs no memory between them.
        block = most // word * word
        if block <= 0:
            raise BadAnswer(f"the ECU takes blocks of {most} bytes: too small to write a word")
        stream = run.data if packed is None else packed
        # How much of memory a byte of the stream stands for; compressed, an even share is as good a guess.
        share = len(run.data) / len(stream)
        done = 0
        report(run.offset)
        for request in uds.block_requests(stream, block):
            self._client.transfer(request)
            done += len(request) - BLOCK_OVERHEAD
            if packed is None:
                sent.bytes = run.offset + done
            report(run.offset + round(done * share))
        self._exit()
        sent.bytes = run.offset + len(run.data)

    def _exit(self) -> None:
        try:
            self._client.transfer_exit()
        except Refused as error:
            # After a lost answer the ECU may have ended the download already: its content decides.
            if error.nrc not in TRANSFER_LOST:
                raise

    def _report(self, report: Report, done: int) -> None:
        """Now and then only: the bus does not wait for whoever looks on."""
        now = self._clock.now()
        if now >= self._next_report:
            self._next_report = now + REPORT_EVERY_S
            report(Step.WRITING, done)


class _Sent:
    """Bytes of a stretch that surely arrived, sent or left erased."""

    def __init__(self) -> None:
        self.bytes = 0
