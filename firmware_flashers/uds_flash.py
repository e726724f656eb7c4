"""A Flasher for ECUs that speak UDS: base.BenchFlasher over the blocking steps, in a thread of its own.

The conversation is opened when the block is entered and closed when it is left, on every path. While no
step runs, an open session is kept by suppressed TesterPresent, so that a pause of the host (the agent waits
for a safe moment between `stage` and `activate`) does not lock the ECU.
"""

from __future__ import annotations

from firmware_flashers import isotp_kernel, uds_bench
from firmware_flashers.base import (
    Capabilities,
    FirmwareImage,
    FlashError,
    Identity,
    OnProgress,
    TroubleCode,
    no_progress,
)
from firmware_flashers.can_link import CanLink, Link
from firmware_flashers.credentials import Credentials
from firmware_flashers.isotp import IsoTpAddress
from firmware_flashers.isotp_kernel import Prefer
from firmware_flashers.threaded import ThreadedFlasher
from firmware_flashers.uds import UdsClient
from firmware_flashers.uds_download import UdsDownload
from firmware_flashers.uds_ecu import UdsEcu
from firmware_flashers.uds_profile import UdsProfile
from firmware_flashers.uds_quiet import KeptInterrupt, QuietNodes
from firmware_flashers.uds_start import Start
from shared.logs import get_log

log = get_log("firmware_flashers")


class UdsSteps:
    """One ECU's conversation and the steps over it; made and used in the flasher's thread."""

    def __init__(self, ecu: UdsEcu) -> None:
        self.ecu = ecu
        self.start = Start(ecu)
        self.download = UdsDownload(ecu, self.start)


class UdsFlasher(ThreadedFlasher[UdsSteps]):
    """One ECU of a UDS profile; an async context manager. Its steps raise FlashError and nothing else.

    A step may be cancelled: it stops within a frame or two, and the ECU is left as a power cut would
    leave it, so `stage` must be run again. Nodes that were quieted are asked back all the same.
    """

    def __init__(
        self,
        *,
        component: str,
        kind: str,
        hardware: str,
        profile: UdsProfile,
        address: IsoTpAddress,
        secret: Credentials,
        link: Link,
        fd: bool = False,
        isotp: Prefer = "auto",
    ) -> None:
        """`kind` and `hardware` are what the ECU must say of itself, `secret` is what opens it.

        `fd` speaks in CAN FD frames, `isotp` says whose ISO-TP (see isotp_kernel.transport).
        """
        nodes = profile.quiet_nodes
        super().__init__(
            component=component,
            link=link,
            rx_ids=(address.rx_id, *(node.rx_id for node in nodes)),
            idle_s=profile.timing.tester_present_s,
        )
        self._kind = kind
        self._hardware = hardware
        self._profile = profile
        self._address = address
        self._secret = secret
        self._fd = fd
        self._isotp = isotp

    @property
    def capabilities(self) -> Capabilities:
        """What the profile's way of flashing guarantees."""
        return self._profile.capabilities

    async def identify(self) -> Identity:
        """See base.Flasher; works in the application and in the bootloader."""
        return await self._step(lambda steps: steps.ecu.identify(), touched=False)

    async def stage(self, image: FirmwareImage, *, progress: OnProgress = no_progress) -> None:
        """See base.Flasher. `progress` is called on the event loop."""
        report = self._reporter(progress)
        await self._step(
            lambda steps: steps.download.stage(image, report),
            touched=lambda steps: steps.download.touched,
        )
        log.info("flasher.image_staged", component=self._component, version=image.spec.version)

    async def activate(self) -> None:
        """See base.Flasher: a hard reset, then the application must answer within the profile's boot_s."""
        await self._step(lambda steps: steps.start.activate())
        log.info("flasher.ecu_activated", component=self._component)

    async def verify(self, image: FirmwareImage) -> Identity:
        """See base.Flasher. An ECU of two slots that runs its former image has `rolled_back`."""
        return await self._step(lambda steps: steps.start.verify(image))

    async def confirm(self) -> None:
        """See base.Flasher; nothing to do where what boots is permanent."""
        if self._profile.slots == 2:
            await self._step(lambda steps: steps.start.confirm())

    async def revert(self) -> None:
        """See base.Flasher; an ECU of one slot always raises `no_second_slot`."""
        if self._profile.slots == 1:
            raise FlashError(
                f"{self._component} has one slot: there is no image before this one to return to",
                code="no_second_slot",
                retryable=False,
                advice="Flash the former image again.",
                touched=False,
            )
        await self._step(lambda steps: steps.start.revert(), touched=lambda steps: steps.start.touched)

    async def trouble_codes(self, status_mask: int) -> tuple[TroubleCode, ...]:
        """See base.ReadsFaults."""
        return await self._step(lambda steps: steps.ecu.trouble_codes(status_mask), touched=False)

    async def read(self, start: int, length: int, *, progress: OnProgress = no_progress) -> bytes:
        """See base.BenchFlasher. The ECU is programmed with nothing, but resets on its way out."""
        report = self._reporter(progress)
        return await self._step(lambda steps: uds_bench.read(steps.ecu, start, length, report), touched=False)

    async def erase(self, start: int, length: int, *, progress: OnProgress = no_progress) -> None:
        """See base.BenchFlasher. The document goes first, so that what is left never passes for whole."""
        report = self._reporter(progress)
        await self._step(lambda steps: uds_bench.erase(steps.ecu, start, length, report))

    async def reset(self) -> None:
        """See base.BenchFlasher; returns when the ECU answers again."""
        await self._step(lambda steps: uds_bench.reset(steps.ecu), touched=False)

    def _converse(self, can_link: CanLink) -> UdsSteps:
        profile, timing = self._profile, self._profile.timing
        address, fd, interrupt = self._address, self._fd, self._worker.interrupt
        quiet = None
        if profile.quiet_nodes:
            quiet = QuietNodes(
                can_link,
                profile,
                fd=fd,
                functional_id=address.functional_id,
                is_interrupted=interrupt.is_set,
            )
        transport = isotp_kernel.transport(
            self._link,
            can_link,
            address,
            interrupt=interrupt if quiet is None else KeptInterrupt(interrupt, quiet),
            padding=profile.padding,
            flow_control_s=timing.flow_control_s,
            consecutive_s=timing.consecutive_s,
            fd=fd,
            prefer=self._isotp,
        )
        client = UdsClient(transport, timing, clock=can_link.clock)
        return UdsSteps(
            UdsEcu(
                client,
                profile,
                self._secret,
                kind=self._kind,
                hardware=self._hardware,
                clock=can_link.clock,
                masked=can_link.masked,
                quiet=quiet,
            )
        )

    def _keep_alive(self, steps: UdsSteps) -> None:
        steps.ecu.client.keep_session()
