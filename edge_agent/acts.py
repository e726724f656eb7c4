"""The acts of an update: each does one thing to the disk or an ECU and says what happened.

Every act may be repeated from its start after a crash at any moment. Errors become the machine's
`Fault` here, at one place, with what is known about the ECU: touched or surely not.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import assert_never

from edge_agent.clock import Clock
from edge_agent.ecus import ComponentAccess, Ecus, Limits, holds, result_of, runs
from edge_agent.errors import ImageMissing, LinkLost, OverBudget, UrlExpired
from edge_agent.interlocks import Interlocks
from edge_agent.journal import Entry, error_of
from edge_agent.kept import KeptImages
from edge_agent.release_acts import ReleaseActs
from edge_agent.release_plan import Planner
from edge_agent.tools import Downloader, OnStep, Tools, keep_image, watched_stage
from edge_agent.update_events import (
    Act,
    Activated,
    Event,
    Fault,
    FaultKind,
    Fetched,
    Fits,
    Holds,
    NeedsUrl,
    Proved,
    Ready,
    Staged,
    Unsafe,
    Verified,
)
from edge_agent.verifier import Verifier
from firmware_flashers.base import FlashError, NotNow
from shared.errors import OtaError
from shared.logs import get_log
from shared.messages import Installed
from shared.release import FirmwareSpec
from shared.states import Step
from shared.trust.document import WrongImage

__all__ = ["Acts", "ComponentAccess", "Downloader", "Limits"]

log = get_log("edge_agent.acts")


class Acts:
    """Performs acts, of an update of one ECU here and of several in `release_acts`."""

    def __init__(
        self,
        *,
        downloader: Downloader,
        verifier: Verifier,
        components: Mapping[str, ComponentAccess],
        interlocks: Interlocks,
        clock: Clock,
        limits: Limits,
        kept: KeptImages | None,
        planner: Planner,
        journal_id: str,
    ) -> None:
        self._downloader = downloader
        self._verifier = verifier
        self._interlocks = interlocks
        self._clock = clock
        self._limits = limits
        self._kept = kept
        self._ecus = Ecus(components, limits)
        self._several = ReleaseActs(
            Tools(
                ecus=self._ecus,
                downloader=downloader,
                verifier=verifier,
                kept=kept,
                planner=planner,
                unsafe=self._unsafe,
                clock=clock,
                limits=limits,
                journal_id=journal_id,
            )
        )

    async def perform(
        self, act: Act, entry: Entry, *, keep: Collection[str], takes_over: bool, on_step: OnStep
    ) -> Event:
        """Do it; never raises but for a cancellation. `keep`: hashes of images that others need."""
        changes = act in {Act.FLASH, Act.ACTIVATE, Act.CONFIRM, Act.RESTORE}
        try:
            if self._kept is not None:
                keep = {*keep, *await self._kept.hashes()}
            if entry.is_release:
                return await self._perform_several(act, entry, keep, on_step)
            match act:
                case Act.LOOK:
                    return await self._look(entry)
                case Act.DOWNLOAD:
                    return await self._download(entry, keep, on_step)
                case Act.VERIFY:
                    return await self._check_again(entry)
                case Act.ASK:
                    return await self._ask(entry, takes_over)
                case Act.FLASH:
                    return await self._flash(entry, on_step)
                case Act.ACTIVATE:
                    return await self._activate(entry)
                case Act.CHECK:
                    return await self._check(entry)
                case Act.CONFIRM | Act.RESTORE | Act.NOTHING:
                    raise ValueError(f"an update of one ECU has no act {act}")  # noqa: TRY301
                case _:
                    assert_never(act)
        except UrlExpired:
            return NeedsUrl()
        except OtaError as error:
            touched = entry.is_release and changes and isinstance(error, FlashError) and error.touched
            return _fault_of(act, error, touched=touched)
        except Exception as error:
            # One unforeseen error must neither stop the loop nor leave an ECU behind.
            log.exception("acts.failed", act=act, job_id=entry.job_id)
            wrapped = OtaError(f"{type(error).__name__}: {error}", retryable=True)
            return Fault(error=error_of(wrapped), touched=changes)

    async def installed(self) -> list[Installed]:
        """What every component says it holds; see Ecus."""
        return await self._ecus.installed()

    async def _perform_several(self, act: Act, entry: Entry, keep: Collection[str], on_step: OnStep) -> Event:
        match act:
            case Act.LOOK:
                return await self._several.look(entry)
            case Act.DOWNLOAD:
                return await self._several.download(entry, keep, on_step)
            case Act.VERIFY:
                return await self._several.verify(entry)
            case Act.ASK:
                return self._outside_window(entry) or await self._several.ask(entry)
            case Act.FLASH:
                return await self._several.flash(entry, on_step)
            case Act.ACTIVATE:
                return await self._several.activate(entry)
            case Act.CHECK:
                return await self._several.check(entry)
            case Act.CONFIRM:
                return await self._several.confirm(entry, on_step)
            case Act.RESTORE:
                return await self._several.restore(entry, on_step)
            case Act.NOTHING:
                raise ValueError("an update that ended has no act")
            case _:
                assert_never(act)

    # --- the acts -----------------------------------------------------------------------------

    async def _look(self, entry: Entry) -> Event:
        target = entry.target
        access = self._ecus.access(target.component)
        spec = self._verifier.check_target(target, kind=access.kind, hardware=access.hardware)
        try:
            async with self._ecus.reach(target.component, self._limits.identify_s) as flasher:
                identity = await self._ecus.identify(target.component, flasher)
        except FlashError as error:
            # It may sleep: what it is will be asked again before it is flashed.
            log.warning("acts.component_silent", component=target.component, why=error.message)
            return Fits()
        self._ecus.check(target.component, identity)
        if runs(identity, spec):
            await self._verifier.ran(target.component, spec)
            await self._downloader.note_installed(target.component, spec.sha256)
            return Holds(result_of(target.component, spec))
        return Fits()

    async def _download(self, entry: Entry, keep: Collection[str], on_step: OnStep) -> Event:
        target = entry.target
        path = await self._downloader.fetch(
            target.url,
            sha256=target.sha256,
            length=target.length,
            keep=keep,
            progress=lambda done, total: on_step(Step.DOWNLOADING, done, total),
            job_id=entry.job_id,
            urgent=entry.begun,
            delta=target.delta,
        )
        return Fetched(str(path))

    async def _check_again(self, entry: Entry) -> Event:
        spec = self._signed(entry)
        await self._verifier.check_file(_image_path(entry), spec)
        return Verified()

    async def _ask(self, entry: Entry, takes_over: bool) -> Event:
        component = entry.target.component
        unsafe = self._outside_window(entry) or await self._unsafe(entry, component, begun=False)
        if unsafe is not None:
            return unsafe
        await self._check_again(entry)
        return Ready(takes_over=takes_over)

    async def _flash(self, entry: Entry, on_step: OnStep) -> Event:
        target = entry.target
        image = await self._verifier.load(_image_path(entry), target, self._signed(entry))
        # Asked once more, since loading took its time and a repeat comes here directly.
        unsafe = await self._unsafe(entry, target.component, begun=entry.touched)
        if unsafe is not None:
            return unsafe
        touched = False
        try:
            async with self._ecus.reach(target.component, self._limits.stage_s) as flasher:
                identity = await self._ecus.known(target.component, flasher)
                if holds(identity, image.spec):
                    if identity.in_bootloader:
                        return Staged()
                    return Holds(result_of(target.component, image.spec))
                # The last moment before the first erase: the ECU took its time to say who it is.
                unsafe = await self._unsafe(entry, target.component, begun=entry.touched)
                if unsafe is not None:
                    return unsafe
                touched = True
                unsafe = await watched_stage(
                    flasher,
                    image,
                    on_step,
                    look=lambda: self._unsafe(entry, target.component, begun=True),
                    every_s=self._limits.watch_s,
                )
                if unsafe is not None:
                    return unsafe
        except FlashError as error:
            return _fault_of(Act.FLASH, error, touched=touched and error.touched)
        except OtaError as error:
            return _fault_of(Act.FLASH, error, touched=touched)
        return Staged()

    async def _activate(self, entry: Entry) -> Event:
        component = entry.target.component
        unsafe = await self._unsafe(entry, component, begun=True)
        if unsafe is not None:
            return unsafe
        async with self._ecus.reach(component, self._limits.activate_s) as flasher:
            await flasher.activate()
        return Activated()

    async def _check(self, entry: Entry) -> Event:
        target = entry.target
        spec = self._signed(entry)
        image = await self._verifier.load(_image_path(entry), target, spec)
        async with self._ecus.reach(target.component, self._limits.check_s) as flasher:
            await self._ecus.proved(target.component, flasher, image)
            await flasher.confirm()
        await self._verifier.ran(target.component, spec)
        await self._downloader.note_installed(target.component, spec.sha256)
        await keep_image(self._kept, target, entry.image)
        return Proved(result_of(target.component, spec))

    # --- what they share ----------------------------------------------------------------------

    def _signed(self, entry: Entry) -> FirmwareSpec:
        access = self._ecus.access(entry.target.component)
        return self._verifier.check_target(
            entry.target, kind=access.kind, hardware=access.hardware, begun=entry.touched
        )

    async def _unsafe(self, entry: Entry, component: str, *, begun: bool) -> Unsafe | None:
        no = await self._interlocks.against(component=component, job_id=entry.job_id, begun=begun)
        return None if no is None else Unsafe(no.why)

    def _outside_window(self, entry: Entry) -> Unsafe | None:
        window = entry.command.window if entry.command is not None else None
        now = self._clock.now()
        if window is None or window.opens_at <= now < window.closes_at:
            return None
        if now < window.opens_at:
            return Unsafe(f"the window for flashing opens at {window.opens_at.isoformat()}")
        return Unsafe(f"the window for flashing closed at {window.closes_at.isoformat()}")


def _image_path(entry: Entry) -> Path:
    if entry.image is None:
        raise ImageMissing("the image was not downloaded yet")
    return Path(entry.image)


def _fault_of(act: Act, error: OtaError, *, touched: bool = False) -> Fault:
    match error:
        case NotNow() | OverBudget():
            kind = FaultKind.NOT_NOW
        case LinkLost():
            kind = FaultKind.LINK
        case ImageMissing():
            kind = FaultKind.IMAGE
        # After the download a wrong image is the office's; later, one that was right, the disk's.
        case WrongImage() if act in {Act.ASK, Act.FLASH, Act.CHECK, Act.CONFIRM, Act.RESTORE}:
            kind = FaultKind.IMAGE
        case _:
            kind = FaultKind.PLAIN
    log.warning("acts.act_failed", act=act, code=error.code, why=error.message, touched=touched)
    return Fault(error=error_of(error), kind=kind, touched=touched)
