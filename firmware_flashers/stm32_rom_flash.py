"""A Flasher for parts in their ROM loader: base.Flasher and BenchFlasher over rom_steps, in its own thread.

The loader must be alone on its bus; nothing is sent while anybody else is heard. `stage` leaves the part in
its loader, `activate` starts the image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from firmware_flashers.base import Capabilities, FirmwareImage, FlashError, Identity, OnProgress, no_progress
from firmware_flashers.can_link import CanLink, Link
from firmware_flashers.rom_profile import RomProfile
from firmware_flashers.rom_session import RomSession
from firmware_flashers.rom_steps import RomSteps
from firmware_flashers.threaded import ThreadedFlasher
from shared.logs import get_log

log = get_log("firmware_flashers")
T = TypeVar("T")

IDLE_S = 3600.0


class RomFlasher(ThreadedFlasher[RomSteps]):
    """One part of a ROM profile; an async context manager. Its steps raise FlashError and nothing else."""

    def __init__(
        self,
        *,
        component: str,
        kind: str,
        hardware: str,
        profile: RomProfile,
        link: Link,
        enter: tuple[str, ...] = (),
    ) -> None:
        """`kind` and `hardware` are what images must be for; the loader itself knows its product id only.

        `enter` is a command that brings the part into its loader (see rom_enter), empty where there is none.
        """
        super().__init__(component=component, link=link, rx_ids=None, idle_s=IDLE_S)
        self._kind = kind
        self._hardware = hardware
        self._profile = profile
        self._enter = enter

    @property
    def capabilities(self) -> Capabilities:
        """One slot, gateway-only, alone on its bus."""
        return self._profile.capabilities

    async def identify(self) -> Identity:
        """See base.Flasher. With `enter`, a running part is brought into its loader and started again."""
        return await self._do(RomSteps.identify, touched=False)

    async def stage(self, image: FirmwareImage, *, progress: OnProgress = no_progress) -> None:
        """See base.Flasher. The part stays in its loader. `progress` is called on the event loop."""
        report = self._reporter(progress)
        await self._do(lambda steps: steps.stage(image, report))
        log.info("flasher.image_staged", component=self._component, version=image.spec.version)

    async def activate(self) -> None:
        """See base.Flasher: Go to the slot's start; the loader must be gone then."""
        await self._do(RomSteps.activate)
        log.info("flasher.ecu_activated", component=self._component)

    async def verify(self, image: FirmwareImage) -> Identity:
        """See base.Flasher. Behind Go only what this very flasher has read back before counts."""
        return await self._do(lambda steps: steps.verify(image), touched=False)

    async def confirm(self) -> None:
        """Nothing to do: what stands in the only slot is permanent."""

    async def revert(self) -> None:
        """Always raises: the only slot holds no image before this one."""
        raise FlashError(
            f"{self._component} has one slot: there is no image before this one to return to",
            code="no_second_slot",
            retryable=False,
            advice="Flash the former image again.",
            touched=False,
        )

    # -- the bench

    async def read(self, start: int, length: int, *, progress: OnProgress = no_progress) -> bytes:
        """See base.BenchFlasher. Raises ReadoutProtected, FlashError "bad_address"."""
        report = self._reporter(progress)
        return await self._do(lambda steps: steps.read(start, length, report), touched=False)

    async def erase(self, start: int, length: int, *, progress: OnProgress = no_progress) -> None:
        """See base.BenchFlasher."""
        report = self._reporter(progress)
        await self._do(lambda steps: steps.erase(start, length, report))

    async def reset(self) -> None:
        """See base.BenchFlasher: the same as activate."""
        await self.activate()

    async def mass_erase(self, *, allow_mass_erase: bool = False) -> None:
        """Erase all of the flash. Raises FlashError unless the profile and the caller both allow it."""
        self._check_allowed(allow_mass_erase)
        await self._do(RomSteps.mass_erase)

    async def write_protect(self, sectors: list[int]) -> None:
        """Protect sectors by number; the part resets itself."""
        if not sectors or not all(0 <= one < len(self._profile.part.sectors) for one in sectors):
            raise FlashError(
                f"{sectors} are no sectors of {self._profile.family}",
                code="bad_address",
                retryable=False,
                advice="Give numbers of sectors.",
                touched=False,
            )
        await self._do(lambda steps: steps.write_protect(sectors), touched=False)

    async def write_unprotect(self) -> None:
        """Protect no sector any more; the part resets itself."""
        await self._do(RomSteps.write_unprotect, touched=False)

    async def readout_protect(self) -> None:
        """Turn read-out protection (RDP level 1) on: only an erase of everything takes it away again."""
        await self._do(RomSteps.readout_protect, touched=False)

    async def readout_unprotect(self, *, allow_mass_erase: bool = False) -> None:
        """Turn it off, which erases all of the flash; allowed as `mass_erase` is."""
        self._check_allowed(allow_mass_erase)
        await self._do(RomSteps.readout_unprotect)

    def _check_allowed(self, allow_mass_erase: bool) -> None:
        if not (allow_mass_erase and self._profile.mass_erase):
            raise FlashError(
                f"{self._component}: erasing all of the flash is not allowed",
                code="mass_erase_not_allowed",
                retryable=False,
                advice="It needs mass_erase = true in the profile and the explicit option.",
                touched=False,
            )

    async def _do(self, act: Callable[[RomSteps], T], *, touched: bool | None = None) -> T:
        """One step; `touched` is the steps' own word unless it is known."""

        def watched(steps: RomSteps) -> T:
            with steps.watched():
                return act(steps)

        return await self._step(
            watched, touched=(lambda steps: steps.touched) if touched is None else touched
        )

    def _converse(self, can_link: CanLink) -> RomSteps:
        session = RomSession(can_link, self._profile, interrupt=self._worker.interrupt, enter=self._enter)
        return RomSteps(session, self._profile, kind=self._kind, hardware=self._hardware)
