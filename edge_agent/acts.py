"""The acts of an update: each does one thing to the disk or an ECU and says what happened.

Every act may be repeated from its start after a crash at any moment. Errors become the machine's
`Fault` here, at one place, with what is known about the ECU: touched or surely not.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, assert_never

from edge_agent.clock import Clock
from edge_agent.errors import ImageMissing, LinkLost, OverBudget, UnknownComponent, UrlExpired
from edge_agent.interlocks import Interlocks
from edge_agent.journal import Entry, error_of
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
from edge_agent.watch import watched
from firmware_flashers.base import Flasher, FlashError, Identity, NoAnswer, NotNow, NotProved
from shared.errors import BadMessage, OtaError
from shared.logs import get_log
from shared.messages import CommandTarget, Delta, Installed, TargetResult
from shared.release import FirmwareSpec, Incompatible
from shared.states import Step
from shared.trust.document import WrongImage

log = get_log("edge_agent.acts")

OnStep = Callable[[str, int, int], None]
"""Takes a step's name and bytes done and in all."""


@dataclass(frozen=True, kw_only=True)
class ComponentAccess:
    """How to reach one component, and what it is by the truck's configuration."""

    kind: str
    hardware: str
    open: Callable[[], AbstractAsyncContextManager[Flasher]]


class Downloader(Protocol):
    """Brings an image to the disk; see `edge_agent.downloader`."""

    async def fetch(
        self,
        url: str,
        *,
        sha256: str,
        length: int,
        keep: Collection[str] = (),
        progress: Callable[[int, int], None] = ...,
        job_id: str = "",
        urgent: bool = False,
        delta: Delta | None = None,
    ) -> Path:
        """Raises LinkLost, UrlExpired, NoRoom, OverBudget and WrongImage; resumes by itself."""
        ...

    async def note_installed(self, component: str, sha256: str) -> None:
        """The component runs this image now."""
        ...


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long an ECU's steps may take at the most, in seconds; a flasher's own time-outs are shorter.

    `watch_s` parts two looks at the interlocks while an image is written.
    """

    identify_s: float = 60.0
    stage_s: float = 2 * 3600.0
    activate_s: float = 300.0
    check_s: float = 600.0
    watch_s: float = 1.0


class Acts:
    """Performs acts. One ECU is spoken to at a time."""

    def __init__(
        self,
        *,
        downloader: Downloader,
        verifier: Verifier,
        components: Mapping[str, ComponentAccess],
        interlocks: Interlocks,
        clock: Clock,
        limits: Limits,
    ) -> None:
        self._downloader = downloader
        self._verifier = verifier
        self._components = components
        self._interlocks = interlocks
        self._clock = clock
        self._limits = limits
        self._bus = asyncio.Lock()
        self._seen: dict[str, Installed] = {}

    async def perform(
        self, act: Act, entry: Entry, *, keep: Collection[str], takes_over: bool, on_step: OnStep
    ) -> Event:
        """Do it; never raises but for a cancellation. `keep`: hashes of images that others need."""
        changes = act in {Act.FLASH, Act.ACTIVATE}
        try:
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
                case Act.NOTHING:
                    raise ValueError("an update that ended has no act")  # noqa: TRY301
                case _:
                    assert_never(act)
        except UrlExpired:
            return NeedsUrl()
        except OtaError as error:
            return _fault_of(act, error)
        except Exception as error:
            # One unforeseen error must neither stop the loop nor leave an ECU behind.
            log.exception("acts.failed", act=act, job_id=entry.job_id)
            wrapped = OtaError(f"{type(error).__name__}: {error}", retryable=True)
            return Fault(error=error_of(wrapped), touched=changes)

    async def installed(self) -> list[Installed]:
        """What every component says it holds. While an ECU is being flashed: what was seen last.

        A component that can't answer is left out, with a log line.
        """
        for component, access in self._components.items():
            if self._bus.locked():
                break
            try:
                async with self._reach(access, self._limits.identify_s) as flasher:
                    await self._identify(component, flasher)
            except OtaError as error:
                self._seen.pop(component, None)
                log.warning("acts.component_silent", component=component, why=error.message)
            except Exception:
                self._seen.pop(component, None)
                log.exception("acts.component_failed", component=component)
        return [self._seen[component] for component in self._components if component in self._seen]

    # --- the acts -----------------------------------------------------------------------------

    async def _look(self, entry: Entry) -> Event:
        target = entry.target
        access = self._access(target)
        spec = self._verifier.check_target(target, kind=access.kind, hardware=access.hardware)
        try:
            async with self._reach(access, self._limits.identify_s) as flasher:
                identity = await self._identify(target.component, flasher)
        except FlashError as error:
            # It may sleep: what it is will be asked again before it is flashed.
            log.warning("acts.component_silent", component=target.component, why=error.message)
            return Fits()
        _check_identity(target.component, access, identity)
        if _holds(identity, spec) and not identity.in_bootloader:
            await self._verifier.ran(target.component, spec)
            await self._downloader.note_installed(target.component, spec.sha256)
            return Holds(_result(target.component, spec))
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
        unsafe = self._outside_window(entry) or await self._unsafe(entry, begun=False)
        if unsafe is not None:
            return unsafe
        await self._check_again(entry)
        return Ready(takes_over=takes_over)

    async def _flash(self, entry: Entry, on_step: OnStep) -> Event:
        target = entry.target
        access = self._access(target)
        image = await self._verifier.load(_image_path(entry), target, self._signed(entry))
        # Asked once more, since loading took its time and a repeat comes here directly.
        unsafe = await self._unsafe(entry, begun=entry.touched)
        if unsafe is not None:
            return unsafe
        touched = False
        try:
            async with self._reach(access, self._limits.stage_s) as flasher:
                identity = await self._identify(target.component, flasher)
                _check_identity(target.component, access, identity)
                if _holds(identity, image.spec):
                    return (
                        Staged() if identity.in_bootloader else Holds(_result(target.component, image.spec))
                    )
                # The last moment before the first erase: the ECU took its time to say who it is.
                unsafe = await self._unsafe(entry, begun=entry.touched)
                if unsafe is not None:
                    return unsafe
                touched = True
                stage = flasher.stage(
                    image, progress=lambda at: on_step(at.step, at.done_bytes, at.total_bytes)
                )
                unsafe = await watched(
                    stage,
                    lambda: self._unsafe(entry, begun=True),
                    every_s=self._limits.watch_s,
                    may_suspend=flasher.capabilities.slots > 1,
                )
                if unsafe is not None:
                    return unsafe
        except FlashError as error:
            return _fault_of(Act.FLASH, error, touched=touched and error.touched)
        except OtaError as error:
            return _fault_of(Act.FLASH, error, touched=touched)
        return Staged()

    async def _activate(self, entry: Entry) -> Event:
        unsafe = await self._unsafe(entry, begun=True)
        if unsafe is not None:
            return unsafe
        async with self._reach(self._access(entry.target), self._limits.activate_s) as flasher:
            await flasher.activate()
        return Activated()

    async def _check(self, entry: Entry) -> Event:
        target = entry.target
        spec = self._signed(entry)
        image = await self._verifier.load(_image_path(entry), target, spec)
        async with self._reach(self._access(target), self._limits.check_s) as flasher:
            identity = await flasher.verify(image)
            self._remember(target.component, identity)
            if not _holds(identity, spec) or identity.in_bootloader:
                raise NotProved(
                    f"{target.component} says version {identity.version}, sha256 {identity.sha256}, "
                    f"in bootloader: {identity.in_bootloader}"
                )
            await flasher.confirm()
        await self._verifier.ran(target.component, spec)
        await self._downloader.note_installed(target.component, spec.sha256)
        return Proved(_result(target.component, spec))

    # --- what they share ----------------------------------------------------------------------

    def _access(self, target: CommandTarget) -> ComponentAccess:
        access = self._components.get(target.component)
        if access is None:
            raise UnknownComponent(f"this truck has no component {target.component!r}")
        return access

    @asynccontextmanager
    async def _reach(self, access: ComponentAccess, limit_s: float) -> AsyncIterator[Flasher]:
        """One ECU at a time, for so long at the most. Raises NoAnswer when it takes longer."""
        async with self._bus:
            try:
                async with asyncio.timeout(limit_s), access.open() as flasher:
                    yield flasher
            except TimeoutError as error:
                raise NoAnswer(f"the ECU was not ready after {limit_s:g} s") from error

    def _signed(self, entry: Entry) -> FirmwareSpec:
        access = self._access(entry.target)
        return self._verifier.check_target(
            entry.target, kind=access.kind, hardware=access.hardware, begun=entry.touched
        )

    async def _unsafe(self, entry: Entry, *, begun: bool) -> Unsafe | None:
        no = await self._interlocks.against(
            component=entry.target.component, job_id=entry.job_id, begun=begun
        )
        return None if no is None else Unsafe(no.why)

    def _outside_window(self, entry: Entry) -> Unsafe | None:
        window = entry.command.window if entry.command is not None else None
        now = self._clock.now()
        if window is None or window.opens_at <= now < window.closes_at:
            return None
        if now < window.opens_at:
            return Unsafe(f"the window for flashing opens at {window.opens_at.isoformat()}")
        return Unsafe(f"the window for flashing closed at {window.closes_at.isoformat()}")

    async def _identify(self, component: str, flasher: Flasher) -> Identity:
        try:
            async with asyncio.timeout(self._limits.identify_s):
                identity = await flasher.identify()
        except TimeoutError as error:
            raise NoAnswer(f"{component} did not say who it is", touched=False) from error
        self._remember(component, identity)
        return identity

    def _remember(self, component: str, identity: Identity) -> None:
        said = Installed(
            component=component,
            kind=identity.kind,
            hardware=identity.hardware,
            version=identity.version,
            sha256=identity.sha256,
            in_bootloader=identity.in_bootloader,
        )
        try:
            self._seen[component] = Installed.from_obj(said.to_obj())
        except BadMessage as error:
            # One ECU's strange word must not make the whole manifest unreadable.
            self._seen.pop(component, None)
            log.warning("acts.identity_unreadable", component=component, why=error.message)


def _image_path(entry: Entry) -> Path:
    if entry.image is None:
        raise ImageMissing("the image was not downloaded yet")
    return Path(entry.image)


def _check_identity(component: str, access: ComponentAccess, identity: Identity) -> None:
    if (identity.kind, identity.hardware) != (access.kind, access.hardware):
        raise Incompatible(
            f"{component} is configured as {access.kind} {access.hardware}, "
            f"the ECU says {identity.kind} {identity.hardware}"
        )


def _holds(identity: Identity, spec: FirmwareSpec) -> bool:
    return (identity.version, identity.sha256) == (spec.version, spec.sha256)


def _result(component: str, spec: FirmwareSpec) -> TargetResult:
    """The ECU's own answer, which was compared with `spec`."""
    return TargetResult(component=component, version=spec.version, sha256=spec.sha256)


def _fault_of(act: Act, error: OtaError, *, touched: bool = False) -> Fault:
    match error:
        case NotNow() | OverBudget():
            kind = FaultKind.NOT_NOW
        case LinkLost():
            kind = FaultKind.LINK
        case ImageMissing():
            kind = FaultKind.IMAGE
        # After the download a wrong image is the office's; later, one that was right, the disk's.
        case WrongImage() if act in {Act.ASK, Act.FLASH, Act.CHECK}:
            kind = FaultKind.IMAGE
        case _:
            kind = FaultKind.PLAIN
    log.warning("acts.act_failed", act=act, code=error.code, why=error.message, touched=touched)
    return Fault(error=error_of(error), kind=kind, touched=touched)
