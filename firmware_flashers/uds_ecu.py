"""One ECU as a UDS tester sees it: who it is, what it holds, whether it runs; its session and its memory.

What an ECU has and has not, its profile says; the steps above this (uds_download, uds_start, uds_bench)
are the same for every family.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from firmware_flashers import uds
from firmware_flashers.base import Identity, NoAnswer, TroubleCode, WrongEcu
from firmware_flashers.clock import MONOTONIC, Clock
from firmware_flashers.credentials import Credentials
from firmware_flashers.refusals import REQUEST_OUT_OF_RANGE, BadAnswer, Refused
from firmware_flashers.trouble_codes import read_codes
from firmware_flashers.uds_image import Place
from firmware_flashers.uds_profile import UdsProfile
from firmware_flashers.uds_quiet import QuietNodes
from firmware_flashers.uds_session import UdsSession
from firmware_flashers.uds_slots import Slots
from firmware_flashers.uds_transfer import Transfer
from firmware_flashers.uds_words import fingerprint, text
from shared.logs import get_log

log = get_log("firmware_flashers")

Masked = Callable[[], AbstractContextManager[None]]

SILENT = "it is silent"
STAYS = "it stays in its bootloader"
SURELY = 5
"""So many answers in a row from the bootloader mean that it is not just passing through it."""


class UdsEcu:
    """`slots` is None for an ECU of one slot."""

    def __init__(
        self,
        client: uds.UdsClient,
        profile: UdsProfile,
        credentials: Credentials,
        *,
        kind: str,
        hardware: str,
        clock: Clock = MONOTONIC,
        masked: Masked = nullcontext,
        quiet: QuietNodes | None = None,
    ) -> None:
        """`kind` and `hardware` are what the ECU must say of itself; `masked` hides frames from traces."""
        self.client = client
        self.profile = profile
        self.clock = clock
        self.kind = kind
        self.hardware = hardware
        keep = (lambda: None) if quiet is None else quiet.keep
        self.session = UdsSession(client, profile, credentials, clock=clock, masked=masked, keep=keep)
        self.memory = Transfer(client, profile, clock)
        self.slots = Slots(client, profile) if profile.slots == 2 else None
        self._quiet = quiet

    def identify(self) -> Identity:
        """What the ECU says of itself, in whatever session it is."""
        dids = self.profile.dids
        sha256 = self._optional(dids.image_sha256, "the image's SHA-256")
        version = self._optional(dids.version, "the version")
        if sha256 is not None and len(sha256) != hashlib.sha256().digest_size:
            raise BadAnswer(f"the ECU's SHA-256 has {len(sha256)} bytes")
        return Identity(
            kind=self._word(dids.kind, "kind", self.kind),
            hardware=self._word(dids.hardware, "hardware", self.hardware),
            version=None if version is None else text(version, "version"),
            sha256=None if sha256 is None else sha256.hex(),
            in_bootloader=self.in_bootloader(),
        )

    def check_identity(self, identity: Identity) -> None:
        """Raise WrongEcu unless the configured component answers."""
        if (identity.kind, identity.hardware) != (self.kind, self.hardware):
            raise WrongEcu(
                f"the ECU says it is {identity.kind} {identity.hardware}; "
                f"configured is {self.kind} {self.hardware}"
            )

    def in_bootloader(self, *, tries: int | None = None) -> bool:
        """Whether the application does not run; an ECU that can't say is asked whether it is there."""
        did = self.profile.dids.in_bootloader
        if did is None:
            self.client.is_present(tries=tries)
            return False
        state = self.client.read(did, "whether the application runs", tries=tries)
        if state not in {b"\x00", b"\x01"}:
            raise BadAnswer(f"the ECU's state is {state[:8].hex()}, neither application nor bootloader")
        return state == b"\x01"

    def trouble_codes(self, status_mask: int) -> tuple[TroubleCode, ...]:
        """What the application stores of its faults; a bootloader refuses the question."""
        return read_codes(self.client.read_dtcs(status_mask), status_mask, "the ECU")

    def place(self) -> Place:
        """Where the next image goes."""
        if self.slots is not None:
            return self.slots.place()
        memory = self.profile.memory
        return Place(slot=memory.slot, document=memory.document)

    @contextmanager
    def quieted(self, *, needed: bool) -> Iterator[None]:
        """The profile's other nodes keep quiet for the time of the block (see QuietNodes.held)."""
        with nullcontext() if self._quiet is None else self._quiet.held(needed=needed):
            yield

    @contextmanager
    def opened(self, *, in_bootloader_before: bool) -> Iterator[None]:
        """The programming session, unlocked, for a block that leaves what the ECU runs as it is."""
        self.session.left_application = False
        try:
            self.session.enter_programming()
            self.session.unlock()
            yield
        finally:
            self.session.let_go(in_bootloader_before=in_bootloader_before)

    def write_fingerprint(self, what: str) -> None:
        """Leave a mark of who is about to write; nothing where the ECU keeps none."""
        did = self.profile.dids.fingerprint
        if did is not None:
            self.client.write(did, fingerprint(what), "the fingerprint")

    def reset(self) -> bool:
        """A hard reset; whether it was answered."""
        try:
            self.client.reset()
        except (NoAnswer, BadAnswer):
            # It may have reset before its answer left; what it runs afterwards tells.
            log.info("flasher.reset_unanswered")
            return False
        return True

    def await_application(self, *, any_state: bool = False, patient: bool = True) -> str | None:
        """Wait until the application answers (with `any_state`: anybody); returns why it does not, or None.

        Not `patient`: no longer than until the bootloader has answered a few times.
        """
        timing = self.profile.timing
        deadline = self.clock.now() + timing.boot_s
        self.clock.sleep(timing.reset_pause_s)
        last, stays = SILENT, 0
        while self.clock.now() < deadline:
            try:
                if not self.in_bootloader(tries=1) or any_state:
                    return None
            except (NoAnswer, BadAnswer, Refused) as error:
                last, stays = error.message, 0
                continue
            last, stays = STAYS, stays + 1
            if stays >= SURELY and not patient:
                break
            self.clock.sleep(timing.reset_pause_s)
        return last

    def padded(self, data: bytes) -> bytes:
        """Whole flash words."""
        return data + b"\xff" * (-len(data) % self.profile.memory.word_bytes)

    def _optional(self, did: int | None, what: str) -> bytes | None:
        """A value that an ECU without a whole image does not have."""
        if did is None:
            return None
        try:
            return self.client.read(did, what)
        except Refused as error:
            if error.nrc != REQUEST_OUT_OF_RANGE:
                raise
            return None

    def _word(self, did: int | None, what: str, configured: str) -> str:
        return configured if did is None else text(self.client.read(did, f"the {what}"), what)
