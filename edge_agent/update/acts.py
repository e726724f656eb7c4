"""The acts of an update: each does one thing to the disk or an ECU and says what happened.

Every act may be repeated from its start after a crash at any moment. Errors become the machine's
`Fault` here, at one place, with what is known about the ECU: touched or surely not.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from edge_agent.clock import Clock
from edge_agent.errors import ImageMissing, LinkLost, OverBudget, TooSlow, UrlExpired
from edge_agent.interlocks.interlocks import Interlocks
from edge_agent.store.journal import Entry, error_of
from edge_agent.store.release_plan import Planner
from edge_agent.trust.verifier import Verifier
from edge_agent.update.authority import Authority, Order
from edge_agent.update.ecus import ComponentAccess, Ecus, Limits, holds, result_of, runs
from edge_agent.update.health import HearsBeats
from edge_agent.update.kept import KeptImages
from edge_agent.update.release_acts import ReleaseActs
from edge_agent.update.tools import Downloader, OnStep, Tools, keep_image, watched_stage
from edge_agent.update.update_events import (
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
from firmware_flashers.base import FlashError, NotNow
from shared.causes import Cause
from shared.errors import OtaError
from shared.logs import get_log
from shared.messages import Installed
from shared.since_310 import assert_never
from shared.states import Step
from shared.trust.document import TrustError, WrongImage
from shared.trust.uptane.safety_policy import SafetyPolicy

__all__ = ["Acts", "ComponentAccess", "Downloader", "Limits"]

log = get_log("edge_agent.acts")


class Acts:
    """Performs acts, of a lone document's update here and of releases in `release_acts`."""

    def __init__(
        self,
        *,
        downloader: Downloader,
        authority: Authority,
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
        self._authority = authority
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
                authority=authority,
                verifier=verifier,
                kept=kept,
                planner=planner,
                unsafe=self._unsafe,
                rules=interlocks.rules,
                clock=clock,
                limits=limits,
                journal_id=journal_id,
                hears=interlocks.vehicle if isinstance(interlocks.vehicle, HearsBeats) else None,
                addresses=interlocks.addresses,
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
            if entry.is_release or (act is Act.LOOK and self._authority.by_release):
                return await self._perform_release(act, entry, keep, takes_over, on_step)
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
            made = _fault_of(act, error, touched=touched)
            if isinstance(error, TooSlow) or (isinstance(error, TrustError) and made.kind is FaultKind.PLAIN):
                await self._authority.refused(error)
            return made
        except Exception as error:
            # One unforeseen error must neither stop the loop nor leave an ECU behind.
            log.exception("acts.failed", act=act, job_id=entry.job_id)
            wrapped = OtaError(f"{type(error).__name__}: {error}", retryable=True)
            return Fault(error=error_of(wrapped), touched=changes)

    async def installed(self, *, oldest_s: float = 0.0) -> list[Installed]:
        """What every component says it holds; see Ecus."""
        return await self._ecus.installed(oldest_s=oldest_s)

    async def _perform_release(
        self, act: Act, entry: Entry, keep: Collection[str], takes_over: bool, on_step: OnStep
    ) -> Event:
        match act:
            case Act.LOOK:
                return await self._several.look(entry)
            case Act.DOWNLOAD:
                return await self._several.download(entry, keep, on_step)
            case Act.VERIFY:
                return await self._several.verify(entry)
            case Act.ASK:
                return self._outside_window(entry) or await self._several.ask(
                    entry, takes_over=takes_over and not entry.is_of_several
                )
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
        component = entry.target.component
        order = (await self._authority.look(entry)).of(component)
        spec = order.spec
        try:
            async with self._ecus.reach(component, self._limits.identify_s) as flasher:
                identity = await self._ecus.identify(component, flasher)
        except FlashError as error:
            # It may sleep: what it is will be asked again before it is flashed.
            log.warning("acts.component_silent", component=component, why=error.message)
            return Fits()
        self._ecus.check(component, identity)
        if runs(identity, spec):
            await self._authority.ran(order)
            await self._downloader.note_installed(component, spec.sha256)
            return Holds(result_of(component, spec))
        return Fits()

    async def _download(self, entry: Entry, keep: Collection[str], on_step: OnStep) -> Event:
        order = await self._order(entry)
        path = await self._downloader.fetch(
            order.url,
            sha256=order.spec.sha256,
            length=order.spec.length,
            keep=keep,
            progress=lambda done, total: on_step(Step.DOWNLOADING, done, total),
            job_id=entry.job_id,
            urgent=entry.begun,
            delta=order.delta,
        )
        return Fetched(str(path))

    async def _check_again(self, entry: Entry) -> Event:
        order = await self._order(entry)
        await self._verifier.check_file(_image_path(entry), order.spec)
        return Verified()

    async def _ask(self, entry: Entry, takes_over: bool) -> Event:
        component = entry.target.component
        unsafe = self._outside_window(entry) or await self._unsafe(entry, component, begun=False)
        if unsafe is not None:
            return unsafe
        await self._check_again(entry)
        return Ready(takes_over=takes_over)

    async def _flash(self, entry: Entry, on_step: OnStep) -> Event:
        component = entry.target.component
        order = await self._order(entry)
        image = await self._verifier.load(_image_path(entry), order.spec, order.document)
        # Asked once more, since loading took its time and a repeat comes here directly.
        unsafe = await self._unsafe(entry, component, begun=entry.touched)
        if unsafe is not None:
            return unsafe
        touched = False
        try:
            async with self._ecus.reach(component, self._limits.stage_s) as flasher:
                identity = await self._ecus.known(component, flasher)
                if holds(identity, image.spec):
                    if identity.in_bootloader:
                        return Staged()
                    return Holds(result_of(component, image.spec))
                # The last moment before the first erase: the ECU took its time to say who it is.
                unsafe = await self._unsafe(entry, component, begun=entry.touched)
                if unsafe is not None:
                    return unsafe
                touched = True
                unsafe = await watched_stage(
                    flasher,
                    image,
                    on_step,
                    look=lambda: self._unsafe(entry, component, begun=True),
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
        order = await self._order(entry)
        component, spec = order.component, order.spec
        image = await self._verifier.load(_image_path(entry), spec, order.document)
        async with self._ecus.reach(component, self._limits.check_s) as flasher:
            await self._ecus.proved(component, flasher, image)
            await flasher.confirm()
        await self._authority.ran(order)
        await self._downloader.note_installed(component, spec.sha256)
        await keep_image(self._kept, order, entry.image)
        return Proved(result_of(component, spec))

    # --- what they share ----------------------------------------------------------------------

    async def _order(self, entry: Entry) -> Order:
        return (await self._authority.again(entry)).of(entry.target.component)

    async def _unsafe(
        self, entry: Entry, component: str, *, begun: bool, signed: SafetyPolicy | None = None
    ) -> Unsafe | None:
        no = await self._interlocks.against(
            component=component, job_id=entry.job_id, begun=begun, signed=signed
        )
        return None if no is None else Unsafe(no.why, no.causes)

    def _outside_window(self, entry: Entry) -> Unsafe | None:
        window = entry.command.window if entry.command is not None else None
        now = self._clock.now()
        if window is None or window.opens_at <= now < window.closes_at:
            return None
        if now < window.opens_at:
            return Unsafe.by(Cause("window_opens", window.opens_at.isoformat()))
        return Unsafe.by(Cause("window_closed", window.closes_at.isoformat()))


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
