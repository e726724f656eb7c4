"""The order of a UDS download that never lets a torn image boot. Blocking; run in a worker thread.

The bootloader boots only what its signed document describes. So the document is erased first and
written last: between the two there is nothing that could boot. Every step may be begun again from
the start, whatever state an earlier try has left the ECU in (ISO 14229-1, 15 "non-volatile server
memory programming process").
"""

from __future__ import annotations

import hashlib
import struct
import time

from firmware_flashers import uds
from firmware_flashers.base import (
    AccessDenied,
    BadImage,
    FirmwareImage,
    FlashError,
    Identity,
    MemoryRange,
    NoAnswer,
    NotNow,
    NotProved,
    WrongEcu,
)
from firmware_flashers.isotp import Interrupted
from firmware_flashers.refusals import (
    REQUEST_OUT_OF_RANGE,
    SESSION_LOST,
    TRANSFER_LOST,
    WRONG_SESSION,
    BadAnswer,
    Refused,
)
from firmware_flashers.security import ALGORITHMS, Secret
from firmware_flashers.threaded import Report
from firmware_flashers.uds_profile import UdsProfile
from firmware_flashers.uds_words import (
    CHECK_DEPENDENCIES,
    CHECK_MEMORY,
    DID_FINGERPRINT,
    DID_HARDWARE,
    DID_IMAGE_SHA256,
    DID_IN_BOOTLOADER,
    DID_KIND,
    DID_VERSION,
    ERASE,
    PRECONDITIONS,
    fingerprint,
    not_bootable,
    text,
)
from shared.errors import OtaError
from shared.images.stm32 import BadImageLayout, judge
from shared.logs import get_log
from shared.release import Incompatible
from shared.states import Step
from shared.trust.document import read_unverified

log = get_log("firmware_flashers")

DOCUMENT_LENGTH = struct.Struct("<I")
MOST_BLOCK_BYTES = 4095  # SID and counter included
BLOCK_OVERHEAD = 2
ENTER_TRIES = 3


class UdsDownload:
    """One ECU's steps. `touched` says whether the last `stage` may have begun to erase."""

    def __init__(
        self, client: uds.UdsClient, profile: UdsProfile, secret: Secret, *, kind: str, hardware: str
    ) -> None:
        self._client = client
        self._profile = profile
        self._timing = profile.timing
        self._memory = profile.memory
        self._secret = secret
        self._kind = kind
        self._hardware = hardware
        self._left_application = False
        self.touched = False

    # -- steps of the Flasher protocol

    def identify(self) -> Identity:
        """What the ECU says of itself, in whatever session it is."""
        sha256 = self._optional(DID_IMAGE_SHA256, "the image's SHA-256")
        version = self._optional(DID_VERSION, "the version")
        if sha256 is not None and len(sha256) != hashlib.sha256().digest_size:
            raise BadAnswer(f"the ECU's SHA-256 has {len(sha256)} bytes")
        return Identity(
            kind=text(self._client.read(DID_KIND, "the kind"), "kind"),
            hardware=text(self._client.read(DID_HARDWARE, "the hardware"), "hardware"),
            version=None if version is None else text(version, "version"),
            sha256=None if sha256 is None else sha256.hex(),
            in_bootloader=self._in_bootloader(),
        )

    def stage(self, image: FirmwareImage, report: Report) -> None:
        """Judge, unlock, erase, write and have it checked; see the module for the order."""
        self.touched = self._left_application = False
        total = len(image.data)
        report(Step.PREPARING, 0, total)
        self._judge(image)
        before = self.identify()
        self.check_identity(before)
        try:
            self._open_and_write(image, report)
        except OtaError:
            if not self.touched:
                self._let_go(in_bootloader_before=before.in_bootloader)
            raise

    def _open_and_write(self, image: FirmwareImage, report: Report) -> None:
        """From the session on; once more when a reset or its time-out (S3) closed the session meanwhile."""
        for left in reversed(range(self._timing.download_tries)):
            try:
                self._enter_bootloader()
                self._unlock()
                self._client.write(DID_FINGERPRINT, fingerprint(image), "the fingerprint")
                self._write_all(image, report)
                return
            except Refused as error:
                if not left or error.code != SESSION_LOST:
                    raise
                log.warning("flasher.session_reopened", error=error.message)

    def activate(self) -> None:
        """Reset, and wait until the application answers."""
        try:
            self._client.reset()
        except (NoAnswer, BadAnswer):
            # It may have reset before its answer left; what it runs afterwards tells.
            log.info("flasher.reset_unanswered")
        deadline = time.monotonic() + self._timing.boot_s
        time.sleep(self._timing.reset_pause_s)
        last = "it is silent"
        while time.monotonic() < deadline:
            try:
                if not self._in_bootloader(tries=1):
                    return
                last = "it stays in its bootloader"
                time.sleep(self._timing.reset_pause_s)
            except (NoAnswer, BadAnswer, Refused) as error:
                last = error.message
        raise FlashError(
            f"the application does not run {self._timing.boot_s:.0f} s after the reset: {last}",
            code="not_booted",
            advice="Flash it again; if it repeats, the image does not start on this part.",
        )

    def verify(self, image: FirmwareImage) -> Identity:
        """Compare the running ECU's own word with the image."""
        identity = self.identify()
        self.check_identity(identity)
        spec = image.spec
        if identity.in_bootloader:
            raise NotProved("the ECU waits in its bootloader; the application does not run")
        if (identity.sha256, identity.version) != (spec.sha256, spec.version):
            raise NotProved(
                f"the ECU runs {identity.version} ({identity.sha256 or 'no whole image'}), "
                f"not {spec.version} ({spec.sha256})"
            )
        return identity

    def check_identity(self, identity: Identity) -> None:
        """Raise WrongEcu unless the configured component answers."""
        if (identity.kind, identity.hardware) != (self._kind, self._hardware):
            raise WrongEcu(
                f"the ECU says it is {identity.kind} {identity.hardware}; "
                f"configured is {self._kind} {self._hardware}"
            )

    def keep_session(self) -> None:
        """While no step runs: keep the ECU from falling back (S3)."""
        self._client.keep_session()

    # -- before the first erase

    def _judge(self, image: FirmwareImage) -> None:
        spec = image.spec
        try:
            spec.check_fits(kind=self._kind, hardware=self._hardware)
        except Incompatible as error:
            raise WrongEcu(error.message) from error
        if (len(image.data), hashlib.sha256(image.data).hexdigest()) != (spec.length, spec.sha256):
            raise BadImage("the image's bytes are not the ones that its document describes")
        try:
            judge(image.data, self._memory.layout)
            # Whose signature it carries is the bootloader's to judge; that it speaks of these bytes, ours.
            claimed = read_unverified(image.document)
        except BadImageLayout as error:
            raise BadImage(error.message, advice=error.advice) from error
        except OtaError as error:
            raise BadImage(error.message) from error
        if claimed != spec:
            raise BadImage("the document describes another firmware than the image's")
        room = self._memory.document.end - self._memory.document.start - DOCUMENT_LENGTH.size
        if len(image.document) > room:
            raise BadImage(f"the document has {len(image.document)} bytes, the ECU keeps {room}")

    def _enter_bootloader(self) -> None:
        for left in reversed(range(ENTER_TRIES)):
            try:
                self._extended_session()
                status = self._client.routine(PRECONDITIONS, b"", "the check of preconditions")
                if status != b"\x00":
                    raise NotNow(f"the ECU's preconditions are not met (status {status.hex() or 'none'})")
                self._programming_session()
                return
            except (NoAnswer, BadAnswer):
                if not left:
                    raise

    def _extended_session(self) -> None:
        try:
            self._client.change_session(uds.EXTENDED_SESSION)
        except Refused as error:
            if error.nrc not in WRONG_SESSION:
                raise
            # Some bootloaders leave their programming session through the default one only.
            self._client.change_session(uds.DEFAULT_SESSION)
            self._client.change_session(uds.EXTENDED_SESSION)

    def _programming_session(self) -> None:
        try:
            self._client.change_session(uds.PROGRAMMING_SESSION, tries=1)
        except (NoAnswer, BadAnswer):
            # A running application resets into the bootloader, and only the answer may be lost.
            self._left_application = True
            raise
        self._left_application = True

    def _unlock(self) -> None:
        level = self._profile.security_level
        algorithm = ALGORITHMS[self._profile.security]
        seed = self._client.request_seed(level)
        if len(seed) != algorithm.seed_bytes:
            raise AccessDenied(
                f"the ECU's seed has {len(seed)} bytes, {self._profile.security} takes {algorithm.seed_bytes}"
            )
        if any(seed):
            try:
                self._client.send_key(level, algorithm.key(seed, self._secret.value))
            except (NoAnswer, BadAnswer):
                # Asking is harmless and tells whether the key was taken; sending it again is not.
                if any(self._client.request_seed(level)):
                    raise
        self._client.unlocked = True

    def _let_go(self, *, in_bootloader_before: bool) -> None:
        """Nothing was erased: send the ECU back to what it ran before."""
        reset = self._left_application and not in_bootloader_before
        try:
            # An answer is waited for, since a lost request would leave it in its bootloader.
            if reset and self._is_reset():
                return
            self._client.leave(reset=reset)
        except OtaError as error:
            log.warning("flasher.ecu_not_released", code=error.code, error=error.message)

    def _is_reset(self) -> bool:
        for _ in range(self._timing.silent_tries):
            try:
                self._client.reset()
                return True
            except (NoAnswer, BadAnswer):
                continue
            except Interrupted:
                break
        return False

    # -- from the first erase on

    def _write_all(self, image: FirmwareImage, report: Report) -> None:
        memory = self._memory
        total = len(image.data)
        document = self._padded(DOCUMENT_LENGTH.pack(len(image.document)) + image.document)
        self.touched = True
        report(Step.ERASING, 0, total)
        self._erase(memory.document)
        self._region(memory.slot, self._padded(image.data), total, report)
        self._region(memory.document, document, total, lambda *_: None)
        report(Step.CHECKING, total, total)
        status = self._client.routine(
            CHECK_DEPENDENCIES, b"", "the check of dependencies", most_s=self._timing.check_s
        )
        if status != b"\x00":
            raise not_bootable(status)

    def _region(self, where: MemoryRange, data: bytes, total: int, report: Report) -> None:
        """Erase, write and check one region; from its erase on again when the ECU lost its place."""
        for left in reversed(range(self._timing.download_tries)):
            try:
                self._erase_for(where, len(data), total, report)
                self._download(where.start, data, total, report)
                break
            except (Refused, NoAnswer, BadAnswer) as error:
                lost = isinstance(error, NoAnswer | BadAnswer) or error.nrc in TRANSFER_LOST
                if not left or not lost:
                    raise
                log.warning("flasher.download_restarted", code=error.code, error=error.message)
        report(Step.CHECKING, total, total)
        status = self._client.routine(
            CHECK_MEMORY,
            uds.area(where.start, len(data)) + hashlib.sha256(data).digest(),
            "the check of its memory",
            most_s=self._timing.check_s,
        )
        if status != b"\x00":
            raise NotProved(
                f"the ECU finds other bytes at {where.start:#010x} than were sent (status {status.hex()})"
            )

    def _erase_for(self, where: MemoryRange, length: int, total: int, report: Report) -> None:
        if where == self._memory.document:
            self._erase(where)
            return
        for sector in self._memory.sectors_of(where, length):
            report(Step.ERASING, min(sector.start - where.start, total), total)
            self._erase(sector)

    def _erase(self, what: MemoryRange) -> None:
        status = self._client.routine(
            ERASE,
            uds.area(what.start, what.end - what.start),
            f"the erase of {what.start:#010x}",
            most_s=self._timing.erase_s,
        )
        if status not in {b"", b"\x00"}:
            raise FlashError(f"the ECU could not erase {what.start:#010x} (status {status.hex()})")

    def _download(self, start: int, data: bytes, total: int, report: Report) -> None:
        most = min(self._client.request_download(start, len(data)), MOST_BLOCK_BYTES) - BLOCK_OVERHEAD
        # Whole flash words, so that a part which programs block by block needs no memory between them.
        block = most // self._memory.word_bytes * self._memory.word_bytes
        if block <= 0:
            raise BadAnswer(f"the ECU takes blocks of {most} bytes: too small to write a word")
        for number, at in enumerate(range(0, len(data), block), start=1):
            report(Step.WRITING, min(at, total), total)
            self._client.transfer(number & 0xFF, data[at : at + block])
        report(Step.WRITING, total, total)
        try:
            self._client.transfer_exit()
        except Refused as error:
            # After a lost answer the ECU may have ended the download already: its content decides.
            if error.nrc not in TRANSFER_LOST:
                raise

    def _padded(self, data: bytes) -> bytes:
        return data + b"\xff" * (-len(data) % self._memory.word_bytes)

    # -- small questions

    def _optional(self, did: int, what: str) -> bytes | None:
        """A value that an ECU without a whole image does not have."""
        try:
            return self._client.read(did, what)
        except Refused as error:
            if error.nrc != REQUEST_OUT_OF_RANGE:
                raise
            return None

    def _in_bootloader(self, *, tries: int | None = None) -> bool:
        state = self._client.read(DID_IN_BOOTLOADER, "whether the application runs", tries=tries)
        if state not in {b"\x00", b"\x01"}:
            raise BadAnswer(f"the ECU's state is {state[:8].hex()}, neither application nor bootloader")
        return state == b"\x01"
