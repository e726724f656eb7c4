"""Bootloader and application of the simulated STM32: the server side of the "stm32-uds" profile.

The application knows sessions, identification, preconditions, silence and reset; the bootloader also
programs. After every reset the application runs if, and only if, the bootloader's verification of the flash
passes (see boot).
"""

from __future__ import annotations

from collections.abc import Mapping

from sim.mcu.boot import Bootloader, Installed, Verdict
from sim.mcu.pending import Pending
from sim.mcu.profile import Access, Did, EcuIdentity, Nrc, Routine, Session, Timing, require_length
from sim.mcu.programming import Programmer
from sim.mcu.trouble_codes import TroubleCodes
from sim.mcu.uds_server import EXTENDED, PROGRAMMING, Surroundings, UdsServer

_ROUTINES = {
    Routine.CHECK_PRECONDITIONS: EXTENDED,
    Routine.ERASE: PROGRAMMING,
    Routine.CHECK_MEMORY: PROGRAMMING,
    Routine.CHECK_DEPENDENCIES: PROGRAMMING,
}


class Stm32Uds(UdsServer):
    """See UdsServer. `in_bootloader` says what runs."""

    routines: Mapping[Routine, frozenset[Session]] = _ROUTINES

    def __init__(
        self,
        *,
        bootloader: Bootloader,
        access: Access,
        programmer: Programmer,
        pending: Pending,
        identity: EcuIdentity,
        timing: Timing,
        around: Surroundings,
        trouble: TroubleCodes,
    ) -> None:
        self._bootloader = bootloader
        super().__init__(
            access=access,
            access_sessions=PROGRAMMING,
            programmer=programmer,
            pending=pending,
            identity=identity,
            timing=timing,
            around=around,
            trouble=trouble,
        )

    @property
    def state_word(self) -> str:
        """See UdsServer."""
        return f"in its bootloader: {self.installed().verdict.name}" if self.in_bootloader else "application"

    @property
    def running_version(self) -> str | None:
        """See UdsServer."""
        spec = None if self.in_bootloader else self.installed().spec
        return None if spec is None else spec.version

    def boot(self) -> None:
        """The application, if it verifies."""
        self.in_bootloader = self._bootloader.judge().verdict is not Verdict.BOOTABLE

    def installed(self) -> Installed:
        """What the flash holds, as the bootloader judges it."""
        return self._bootloader.judge()

    def enter_programming(self) -> None:
        """The application resets into the bootloader, which answers."""
        if self.in_bootloader:
            return
        self.require_standstill(Nrc.CONDITIONS_NOT_CORRECT, Nrc.CONDITIONS_NOT_CORRECT)
        self._pending.say()
        self.reset()
        self.in_bootloader = True

    def value(self, did: int) -> bytes | None:
        """See UdsServer."""
        spec = self.installed().spec
        match did:
            case Did.IN_BOOTLOADER:
                return bytes([self.in_bootloader])
            case Did.VERSION if spec is not None:
                return spec.version.encode("ascii")
            case Did.SHA256 if spec is not None:
                return bytes.fromhex(spec.sha256)
            case _:
                return None

    def run_routine(self, routine: Routine, options: bytes) -> int:
        """The bootloader's verdict: checkProgrammingDependencies."""
        assert routine is Routine.CHECK_DEPENDENCIES
        require_length(options, 0)
        self._programmer.require_no_download()
        return self.installed().verdict
