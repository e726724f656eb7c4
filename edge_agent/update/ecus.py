"""The truck's ECUs as the acts reach them: one at a time, in bounds, and what each said last."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

from edge_agent.clock import boot_s
from edge_agent.errors import UnknownComponent
from firmware_flashers.base import FirmwareImage, Flasher, FlashError, Identity, NoAnswer, NotProved
from shared.errors import BadMessage, OtaError
from shared.logs import get_log
from shared.messages import Installed, TargetResult
from shared.release import FirmwareSpec, Incompatible
from shared.since_310 import timeout

log = get_log("edge_agent.acts")


@dataclass(frozen=True, kw_only=True)
class ComponentAccess:
    """How to reach one component, and what it is by the truck's configuration."""

    kind: str
    hardware: str
    open: Callable[[], AbstractAsyncContextManager[Flasher]]


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


class Ecus:
    """Every component of this truck. One ECU is spoken to at a time."""

    def __init__(self, components: Mapping[str, ComponentAccess], limits: Limits) -> None:
        self._components = components
        self._limits = limits
        self._bus = asyncio.Lock()
        self._seen: dict[str, Installed] = {}
        self._asked_at: dict[str, float] = {}
        self._asking = asyncio.Lock()

    def access(self, component: str) -> ComponentAccess:
        """Raises UnknownComponent."""
        access = self._components.get(component)
        if access is None:
            raise UnknownComponent(f"this truck has no component {component!r}")
        return access

    @asynccontextmanager
    async def reach(self, component: str, limit_s: float) -> AsyncIterator[Flasher]:
        """One ECU at a time, for so long at the most. Raises NoAnswer when it takes longer."""
        async with self._bus:
            try:
                async with timeout(limit_s), self.access(component).open() as flasher:
                    yield flasher
            except TimeoutError as error:
                raise NoAnswer(f"the ECU was not ready after {limit_s:g} s") from error

    async def identify(self, component: str, flasher: Flasher) -> Identity:
        """What it says of itself, which is remembered. Raises FlashError."""
        try:
            async with timeout(self._limits.identify_s):
                identity = await flasher.identify()
        except TimeoutError as error:
            raise NoAnswer(f"{component} did not say who it is", touched=False) from error
        self.remember(component, identity)
        return identity

    async def known(self, component: str, flasher: Flasher) -> Identity:
        """As `identify`, and it is the configured one. Raises FlashError and Incompatible."""
        identity = await self.identify(component, flasher)
        self.check(component, identity)
        return identity

    def check(self, component: str, identity: Identity) -> None:
        """Raises Incompatible when another ECU answers than is configured."""
        access = self.access(component)
        if (identity.kind, identity.hardware) != (access.kind, access.hardware):
            raise Incompatible(
                f"{component} is configured as {access.kind} {access.hardware}, "
                f"the ECU says {identity.kind} {identity.hardware}"
            )

    async def untouched(self, component: str, flasher: Flasher) -> Identity:
        """As `known`; its errors say that nothing was touched."""
        try:
            return await self.known(component, flasher)
        except FlashError as error:
            error.touched = False
            raise

    async def proved(self, component: str, flasher: Flasher, image: FirmwareImage) -> None:
        """Read back that it runs the image. Raises NotProved and other FlashErrors."""
        identity = await flasher.verify(image)
        self.remember(component, identity)
        if not runs(identity, image.spec):
            raise NotProved(
                f"{component} says version {identity.version}, sha256 {identity.sha256}, "
                f"in bootloader: {identity.in_bootloader}"
            )

    def remember(self, component: str, identity: Identity) -> None:
        """For the manifest."""
        self._asked_at[component] = boot_s()
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

    async def installed(self, *, oldest_s: float = 0.0) -> list[Installed]:
        """What every component says it holds. While an ECU is being flashed: what was seen last.

        A component that can't answer is left out, with a log line. One that was asked less than `oldest_s`
        ago is not asked again.
        """
        # Who asks at the same time is waited for: its turn on the bus is no flash, and hides nothing.
        async with self._asking:
            for component in self._components:
                if self._bus.locked():
                    break
                asked_at = self._asked_at.get(component)
                if asked_at is not None and boot_s() - asked_at < oldest_s:
                    continue
                try:
                    async with self.reach(component, self._limits.identify_s) as flasher:
                        await self.identify(component, flasher)
                except OtaError as error:
                    self._forget(component)
                    log.warning("acts.component_silent", component=component, why=error.message)
                except Exception:
                    self._forget(component)
                    log.exception("acts.component_failed", component=component)
        return [self._seen[component] for component in self._components if component in self._seen]

    def _forget(self, component: str) -> None:
        """It did not answer."""
        self._seen.pop(component, None)
        self._asked_at[component] = boot_s()


def holds(identity: Identity, spec: FirmwareSpec) -> bool:
    """Whether the ECU holds exactly this firmware, by its own word."""
    return (identity.version, identity.sha256) == (spec.version, spec.sha256)


def runs(identity: Identity, spec: FirmwareSpec) -> bool:
    """Whether it runs it, too."""
    return holds(identity, spec) and not identity.in_bootloader


def result_of(component: str, spec: FirmwareSpec) -> TargetResult:
    """The ECU's own answer, which was compared with `spec`."""
    return TargetResult(component=component, version=spec.version, sha256=spec.sha256)
