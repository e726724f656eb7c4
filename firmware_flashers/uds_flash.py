"""A Flasher for ECUs whose bootloader speaks UDS: base.Flasher over uds_download, in its own thread.

The link is opened when the block is entered and closed when it is left, on every path. While no step
runs, an open session is kept by suppressed TesterPresent, so that a pause of the host (the agent waits
for a safe moment between `stage` and `activate`) does not lock the ECU.
"""

from __future__ import annotations

from firmware_flashers.base import Capabilities, FirmwareImage, FlashError, Identity, OnProgress, no_progress
from firmware_flashers.can_link import CanLink, Link
from firmware_flashers.isotp import IsoTpAddress, IsoTpTransport
from firmware_flashers.security import Secret
from firmware_flashers.threaded import ThreadedFlasher
from firmware_flashers.uds import UdsClient
from firmware_flashers.uds_download import UdsDownload
from firmware_flashers.uds_profile import UdsProfile
from shared.logs import get_log

log = get_log("firmware_flashers")


class UdsFlasher(ThreadedFlasher[UdsDownload]):
    """One ECU of a UDS profile; an async context manager. Its steps raise FlashError and nothing else.

    A step may be cancelled: it stops within a frame or two, and the ECU is left as a power cut would
    leave it, so `stage` must be run again.
    """

    def __init__(
        self,
        *,
        component: str,
        kind: str,
        hardware: str,
        profile: UdsProfile,
        address: IsoTpAddress,
        secret: Secret,
        link: Link,
    ) -> None:
        """`kind` and `hardware` are what the ECU must say of itself."""
        super().__init__(
            component=component, link=link, rx_ids=(address.rx_id,), idle_s=profile.timing.tester_present_s
        )
        self._kind = kind
        self._hardware = hardware
        self._profile = profile
        self._address = address
        self._secret = secret

    @property
    def capabilities(self) -> Capabilities:
        """One slot; the bootloader itself verifies."""
        return self._profile.capabilities

    async def identify(self) -> Identity:
        """See base.Flasher; works in the application and in the bootloader."""
        return await self._step(UdsDownload.identify, touched=False)

    async def stage(self, image: FirmwareImage, *, progress: OnProgress = no_progress) -> None:
        """See base.Flasher. `progress` is called on the event loop."""
        report = self._reporter(progress)
        await self._step(lambda steps: steps.stage(image, report), touched=lambda steps: steps.touched)
        log.info("flasher.image_staged", component=self._component, version=image.spec.version)

    async def activate(self) -> None:
        """See base.Flasher: a hard reset, then the application must answer within the profile's boot_s."""
        await self._step(UdsDownload.activate)
        log.info("flasher.ecu_activated", component=self._component)

    async def verify(self, image: FirmwareImage) -> Identity:
        """See base.Flasher."""
        return await self._step(lambda steps: steps.verify(image))

    async def confirm(self) -> None:
        """Nothing to do: what boots in the only slot is permanent."""

    async def revert(self) -> None:
        """Always raises: the only slot holds no image before this one."""
        raise FlashError(
            f"{self._component} has one slot: there is no image before this one to return to",
            code="no_second_slot",
            retryable=False,
            advice="Flash the former image again.",
            touched=False,
        )

    def _converse(self, can_link: CanLink) -> UdsDownload:
        timing = self._profile.timing
        transport = IsoTpTransport(
            can_link,
            self._address,
            interrupt=self._worker.interrupt,
            padding=self._profile.padding,
            flow_control_s=timing.flow_control_s,
            consecutive_s=timing.consecutive_s,
        )
        return UdsDownload(
            UdsClient(transport, timing),
            self._profile,
            self._secret,
            kind=self._kind,
            hardware=self._hardware,
        )

    def _keep_alive(self, steps: UdsDownload) -> None:
        steps.keep_session()
