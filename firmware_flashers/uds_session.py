"""How a tester gets to the point where an ECU lets itself be programmed, and how it leaves again.

Extended session, preconditions, programming session (ISO 14229-1, 15.2 "programming step, phase 1"), then
the access by seed and key or by certificate. Nothing here changes what an ECU holds.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from firmware_flashers import uds
from firmware_flashers.base import AccessDenied, NoAnswer, NotNow
from firmware_flashers.clock import Clock
from firmware_flashers.credentials import Credentials
from firmware_flashers.isotp import Interrupted
from firmware_flashers.refusals import SECURITY_DELAY, WRONG_SESSION, BadAnswer, Refused
from firmware_flashers.security import ALGORITHMS, NONE, Secret
from firmware_flashers.security_helper import HelperCommand
from firmware_flashers.uds_auth import ClientCertificate, authenticate, deauthenticate
from firmware_flashers.uds_profile import UdsProfile
from shared.errors import OtaError
from shared.logs import get_log

log = get_log("firmware_flashers")

ENTER_TRIES = 3
DELAY_POLL_S = 0.5


class UdsSession:
    """One ECU's sessions and locks. `left_application`: it may sit in its bootloader because of us."""

    def __init__(
        self,
        client: uds.UdsClient,
        profile: UdsProfile,
        credentials: Credentials,
        *,
        clock: Clock,
        masked: Callable[[], AbstractContextManager[None]],
        keep: Callable[[], None] = lambda: None,
    ) -> None:
        """`masked` blanks what the frames of its block carry in a trace; `keep` is called in long waits."""
        self._client = client
        self._profile = profile
        self._credentials = credentials
        self._clock = clock
        self._masked = masked
        self._keep = keep
        self.left_application = False

    def enter_programming(self) -> None:
        """From whatever session the ECU is in to the programming session."""
        for left in reversed(range(ENTER_TRIES)):
            try:
                self.enter_extended()
                self._check_preconditions()
                self._programming_session()
                return
            except (NoAnswer, BadAnswer):
                if not left:
                    raise

    def enter_extended(self) -> None:
        """The extended session."""
        try:
            self._client.change_session(uds.EXTENDED_SESSION)
        except Refused as error:
            if error.nrc not in WRONG_SESSION:
                raise
            # Some bootloaders leave their programming session through the default one only.
            self._client.change_session(uds.DEFAULT_SESSION)
            self._client.change_session(uds.EXTENDED_SESSION)

    def _check_preconditions(self) -> None:
        routine = self._profile.routines.preconditions
        if routine is None:
            return
        status = self._client.routine(routine, b"", "the check of preconditions")
        if status != b"\x00":
            raise NotNow(f"the ECU's preconditions are not met (status {status.hex() or 'none'})")

    def _programming_session(self) -> None:
        try:
            self._client.change_session(uds.PROGRAMMING_SESSION, tries=1)
        except (NoAnswer, BadAnswer):
            # A running application resets into the bootloader, and only the answer may be lost.
            self.left_application = True
            raise
        self.left_application = True

    def unlock(self) -> None:
        """Be let in. A refused key is never sent again by itself, nor one whose answer was lost.

        Raises AccessDenied, NoAnswer.
        """
        if self._client.unlocked or self._profile.security == NONE:
            return
        if self._credentials is None:
            raise AccessDenied(f"nothing is configured that opens this ECU ({self._profile.security})")
        with self._masked():
            if isinstance(self._credentials, ClientCertificate):
                authenticate(self._client, self._credentials)
            else:
                self._send_key(self._credentials)
        self._client.unlocked = True

    def _send_key(self, credentials: Secret | HelperCommand) -> None:
        level = self._profile.security_level
        seed = self._seed(level)
        if isinstance(credentials, Secret):
            algorithm = ALGORITHMS[self._profile.security]
            if len(seed) != algorithm.seed_bytes:
                raise AccessDenied(
                    f"the ECU's seed has {len(seed)} bytes, "
                    f"{self._profile.security} takes {algorithm.seed_bytes}"
                )
        if not seed:
            raise AccessDenied("the ECU's seed is empty")
        if not any(seed):
            return
        if isinstance(credentials, Secret):
            key = algorithm.key(seed, credentials.value)
        else:
            key = credentials.key(seed, meanwhile=self._keep_waiting)
        try:
            self._client.send_key(level, key)
        except (NoAnswer, BadAnswer):
            # Asking is harmless and tells whether the key was taken; sending it again is not.
            if any(self._client.request_seed(level)):
                raise

    def _seed(self, level: int) -> bytes:
        """A seed. An ECU that lets nobody try yet is waited for, in its session and in the profile's time.

        Coming back later would not help where the delay begins anew with each reset, and so with each
        entry into the bootloader. No key is at stake: none was made.
        """
        deadline = self._clock.now() + self._profile.timing.security_delay_s
        while True:
            try:
                return self._client.request_seed(level)
            except AccessDenied as error:
                if error.code != SECURITY_DELAY or self._clock.now() >= deadline:
                    raise
                log.info("flasher.security_delay_waited_out", error=error.message)
            self._clock.sleep(min(DELAY_POLL_S, max(0.0, deadline - self._clock.now())))
            self._keep_waiting()

    def _keep_waiting(self) -> None:
        self._client.keep_waiting()
        self._keep()

    def let_go(self, *, in_bootloader_before: bool) -> None:
        """Nothing was erased: send the ECU back to what it ran before. Never raises a FlashError."""
        reset = self.left_application and not in_bootloader_before and self._profile.slots == 1
        try:
            if self._client.unlocked and isinstance(self._credentials, ClientCertificate) and not reset:
                deauthenticate(self._client)
        except OtaError as error:
            log.warning("flasher.ecu_not_released", code=error.code, error=error.message)
        try:
            # An answer is waited for, since a lost request would leave it in its bootloader.
            if reset and self._is_reset():
                return
            self._client.leave(reset=reset)
        except OtaError as error:
            log.warning("flasher.ecu_not_released", code=error.code, error=error.message)

    def _is_reset(self) -> bool:
        for _ in range(self._profile.timing.silent_tries):
            try:
                self._client.reset()
                return True
            except (NoAnswer, BadAnswer):
                continue
            except Interrupted:
                break
        return False
