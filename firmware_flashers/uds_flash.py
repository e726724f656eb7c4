"""A Flasher for ECUs whose bootloader speaks UDS: base.Flasher over uds_download, in its own thread.

The link is opened when the block is entered and closed when it is left, on every path. While no step
runs, an open session is kept by suppressed TesterPresent, so that a pause of the host (the agent waits
for a safe moment between `stage` and `activate`) does not lock the ECU.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import Self, TypeVar

from firmware_flashers.base import (
    Capabilities,
    FirmwareImage,
    FlashError,
    Identity,
    OnProgress,
    Progress,
    no_progress,
)
from firmware_flashers.can_link import CanLink
from firmware_flashers.isotp import IsoTpAddress, IsoTpTransport
from firmware_flashers.security import Secret
from firmware_flashers.uds import UdsClient
from firmware_flashers.uds_download import Report, UdsDownload
from firmware_flashers.uds_profile import UdsProfile
from firmware_flashers.worker import Worker
from shared.errors import OtaError
from shared.logs import get_log
from shared.states import Step

log = get_log("firmware_flashers")
T = TypeVar("T")

OpenLink = Callable[[], AbstractContextManager[CanLink]]


def _always(_: UdsDownload) -> bool:
    """`activate` and `verify` follow a stage: what the ECU ran before it, it does not run any more."""
    return True


def _never(_: UdsDownload) -> bool:
    return False


class UdsFlasher:
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
        open_link: OpenLink,
    ) -> None:
        """`kind` and `hardware` are what the ECU must say of itself; `open_link` is called in the thread."""
        self._component = component
        self._kind = kind
        self._hardware = hardware
        self._profile = profile
        self._address = address
        self._secret = secret
        self._open_link = open_link
        self._client: UdsClient | None = None
        self._download: UdsDownload | None = None
        self._stack = ExitStack()
        self._worker = Worker(
            f"flasher-{component}",
            idle_s=profile.timing.tester_present_s,
            when_idle=self._keep_session,
            at_end=self._stack.close,
        )

    async def __aenter__(self) -> Self:
        """Open the link. Raises BusDown, or InterfaceBusy that names who holds the interface."""
        self._worker.start()
        try:
            await self._worker.call(self._open)
        except BaseException:
            await self._worker.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the link and end the thread."""
        await self._worker.stop()

    @property
    def capabilities(self) -> Capabilities:
        """One slot; the bootloader itself verifies."""
        return self._profile.capabilities

    async def identify(self) -> Identity:
        """See base.Flasher; works in the application and in the bootloader."""
        return await self._step(UdsDownload.identify, touched=_never)

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

    async def _step(
        self, act: Callable[[UdsDownload], T], *, touched: Callable[[UdsDownload], bool] = _always
    ) -> T:
        """Run one step in the thread; whatever goes wrong leaves as a FlashError that says `touched`."""

        def guarded() -> T:
            steps = self._download
            # The worker runs only between __aenter__, which made it, and __aexit__.
            assert steps is not None
            try:
                return act(steps)
            except FlashError as error:
                error.touched = touched(steps)
                raise
            except Exception as error:
                log.exception("flasher.step_failed_unexpectedly", component=self._component)
                raise FlashError(
                    f"{self._component}: {type(error).__name__}: {error}",
                    code="internal",
                    advice=OtaError.advice,
                    touched=touched(steps),
                ) from error

        return await self._worker.call(guarded)

    def _open(self) -> None:
        try:
            link = self._stack.enter_context(self._open_link())
        except FlashError as error:
            error.touched = False
            raise
        timing = self._profile.timing
        transport = IsoTpTransport(
            link,
            self._address,
            interrupt=self._worker.interrupt,
            padding=self._profile.padding,
            flow_control_s=timing.flow_control_s,
            consecutive_s=timing.consecutive_s,
        )
        self._client = UdsClient(transport, timing)
        self._download = UdsDownload(
            self._client, self._profile, self._secret, kind=self._kind, hardware=self._hardware
        )

    def _keep_session(self) -> None:
        if self._client is None:
            return
        try:
            self._client.keep_session()
        except FlashError as error:
            log.warning("flasher.session_not_kept", component=self._component, error=error.message)

    def _reporter(self, progress: OnProgress) -> Report:
        loop = asyncio.get_running_loop()

        def report(step: Step, done_bytes: int, total_bytes: int) -> None:
            if loop.is_closed():
                return
            loop.call_soon_threadsafe(
                progress, Progress(step=step, done_bytes=done_bytes, total_bytes=total_bytes)
            )

        return report
