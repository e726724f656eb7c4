"""The application of a simulated ESP32: the server side of the "esp32-uds" profile.

It runs from one OTA slot and programs the other one while it runs. Nothing of it answers when no slot holds
an image that verifies: an ESP32 without an application is mute on CAN.

Where the profile says nothing: as long as the running image is not confirmed, the other slot is the way
back and is neither erased nor written (0x22, as esp_ota_begin refuses).
"""

from __future__ import annotations

from collections.abc import Mapping

from shared.release import FirmwareSpec
from sim.mcu.boot import Verdict
from sim.mcu.esp_boot import Chip, EspBootloader, EspMap
from sim.mcu.otadata import Entry, ImageState
from sim.mcu.pending import Pending, Reply
from sim.mcu.profile import Access, Did, EcuIdentity, Nrc, Refused, Routine, Session, Timing, require_length
from sim.mcu.programming import Programmer, Regions
from sim.mcu.trouble_codes import TroubleCodes
from sim.mcu.uds_server import EXTENDED, PROGRAMMING, Surroundings, UdsServer
from sim.mcu.uds_sessions import DIAGNOSTIC

_ROUTINES = {
    Routine.CHECK_PRECONDITIONS: EXTENDED,
    Routine.CONFIRM: EXTENDED,
    Routine.ROLL_BACK: EXTENDED,
    Routine.ERASE: PROGRAMMING,
    Routine.CHECK_MEMORY: PROGRAMMING,
    Routine.CHECK_DEPENDENCIES: PROGRAMMING,
}
_HAS_RUN = {ImageState.VALID, ImageState.UNDEFINED}


class Esp32Uds(UdsServer):
    """See UdsServer. `running` is the slot that runs, with what its document says; None: nothing does."""

    routines: Mapping[Routine, frozenset[Session]] = _ROUTINES

    def __init__(
        self,
        *,
        bootloader: EspBootloader,
        memory: EspMap,
        chip: Chip,
        access: Access,
        programmer: Programmer,
        pending: Pending,
        identity: EcuIdentity,
        timing: Timing,
        around: Surroundings,
        trouble: TroubleCodes,
    ) -> None:
        self._bootloader = bootloader
        self._memory = memory
        self._chip = chip
        self.running: tuple[int, FirmwareSpec] | None = None
        super().__init__(
            access=access,
            access_sessions=DIAGNOSTIC,
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
        return "no application" if self.running is None else f"application in slot {self.running[0]}"

    @property
    def running_version(self) -> str | None:
        """See UdsServer."""
        return None if self.running is None else self.running[1].version

    def boot(self) -> None:
        """What the bootloader chooses; a bad application crashes, and the bootloader chooses again."""
        slot = self._bootloader.boot()
        if self._faults.order.bad_app and slot is not None and self._state(slot) == ImageState.PENDING_VERIFY:
            slot = self._bootloader.boot()
        spec = None if slot is None else self._bootloader.judge(slot).spec
        self.running = None if slot is None or spec is None else (slot, spec)

    def handle(self, request: bytes, *, functional: bool, reply: Reply) -> None:
        """See UdsServer."""
        if self.running is not None:
            super().handle(request, functional=functional, reply=reply)

    def enter_programming(self) -> None:
        """Nothing to do: the application programs."""

    def regions(self) -> Regions:
        """The passive slot and its document."""
        passive = 1 - self._slot
        return Regions(
            slot=self._memory.slots[passive],
            document=self._memory.documents[passive],
            may_change=self._state(self._slot) != ImageState.PENDING_VERIFY,
        )

    def value(self, did: int) -> bytes | None:
        """See UdsServer."""
        assert self.running is not None
        slot, spec = self.running
        match did:
            case Did.IN_BOOTLOADER:
                return b"\x00"
            case Did.VERSION:
                return spec.version.encode("ascii")
            case Did.SHA256:
                return bytes.fromhex(spec.sha256)
            case Did.RUNNING_SLOT:
                return bytes([slot])
            case Did.IMAGE_STATE:
                return bytes([self._state(slot) & 0xFF])
            case Did.SECURE_VERSION:
                return self._bootloader.secure_version.to_bytes(4, "big")
            case Did.CHIP_ID:
                return self._chip.chip_id.to_bytes(2, "big")
            case Did.CHIP_REVISION:
                return self._chip.revision.to_bytes(2, "big")
            case Did.PASSIVE_SLOT:
                areas = (self._memory.slots[1 - slot], self._memory.documents[1 - slot])
                return b"".join(n.to_bytes(4, "big") for area in areas for n in (area.start, area.size))
            case _:
                return None

    def run_routine(self, routine: Routine, options: bytes) -> int:
        """See UdsServer."""
        require_length(options, 0)
        match routine:
            case Routine.CHECK_DEPENDENCIES:
                return self._choose_passive()
            case Routine.CONFIRM:
                self._confirm()
            case Routine.ROLL_BACK:
                self._roll_back()
            case _:
                raise Refused(Nrc.OUT_OF_RANGE)
        return 0x00

    @property
    def _slot(self) -> int:
        assert self.running is not None
        return self.running[0]

    def _state(self, slot: int) -> int:
        return self._bootloader.otadata.state_of(slot)

    def _choose_passive(self) -> int:
        """Verify the passive slot, and let it boot next."""
        self._programmer.require_no_download()
        if not self.regions().may_change:
            raise Refused(Nrc.CONDITIONS_NOT_CORRECT)
        slot = 1 - self._slot
        verdict = self._bootloader.judge(slot).verdict
        if verdict is Verdict.BOOTABLE:
            otadata = self._bootloader.otadata
            self._bootloader.write(*otadata.choosing(slot, keep_slot=self._slot, state=ImageState.NEW))
        return verdict

    def _confirm(self) -> None:
        """esp_ota_mark_app_valid_cancel_rollback: the mark first, then the eFuse."""
        if self._state(self._slot) != ImageState.VALID:
            self._mark_running(ImageState.VALID)
        self._bootloader.raise_secure_version(self._slot)

    def _roll_back(self) -> None:
        """esp_ota_mark_app_invalid_rollback_and_reboot, if the other slot would boot then."""
        self.require_standstill(Nrc.CONDITIONS_NOT_CORRECT, Nrc.CONDITIONS_NOT_CORRECT)
        other = 1 - self._slot
        otadata = self._bootloader.otadata
        # An image that was never confirmed is no way back, nor is one that no entry chooses.
        has_run = otadata.sector_of(other) is not None and otadata.state_of(other) in _HAS_RUN
        if not has_run or not self._bootloader.boots(other):
            raise Refused(Nrc.CONDITIONS_NOT_CORRECT)
        self._mark_running(ImageState.INVALID)
        self.reset_after_answer()

    def _mark_running(self, state: ImageState) -> None:
        otadata = self._bootloader.otadata
        sector = otadata.sector_of(self._slot)
        entry = None if sector is None else otadata.entries[sector]
        if sector is None or entry is None:
            self._bootloader.write(*otadata.choosing(self._slot, keep_slot=1 - self._slot, state=state))
        else:
            self._bootloader.write(sector, Entry(seq=entry.seq, state=state))
