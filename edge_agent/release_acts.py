"""The acts of a release of several ECUs; each asks its ECU first and may be repeated from its start.

Faults are made of errors by `acts`; here errors only rise. Whether the ECU of an act was touched travels
in FlashError.touched, so that an error of any other kind is one before the first touch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from pathlib import Path

from edge_agent.ecus import holds, result_of, runs
from edge_agent.errors import ImageMissing, NoWayBack
from edge_agent.journal import Entry, error_of
from edge_agent.release import Former, Release, TargetState
from edge_agent.release_plan import HealthBounds
from edge_agent.tools import OnStep, Tools, at_of, keep_image, release_of, stage, target_of, watched_stage
from edge_agent.update_events import (
    Activated,
    AllProved,
    Confirmed,
    Event,
    Fault,
    Fetched,
    Fits,
    Holds,
    Proved,
    Ready,
    Staged,
    Verified,
)
from edge_agent.way_back import WayBack
from firmware_flashers.base import FirmwareImage, FlashError
from shared.logs import get_log
from shared.messages import CommandTarget
from shared.states import Step, UpdateState

log = get_log("edge_agent.acts")


class ReleaseActs:
    """The acts by name; `entry.release.at` says of which ECU, where one is meant."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._ecus = tools.ecus
        self._verifier = tools.verifier
        self._way_back = WayBack(tools)

    # --- before the first touch -----------------------------------------------------------------

    async def look(self, entry: Entry) -> Event:
        """Judge every document; ask every ECU what it holds. One that sleeps is asked again later."""
        slots: dict[str, int] = {}
        held = []
        for target in entry.targets:
            spec = self._tools.signed(target)
            async with self._ecus.reach(target.component, self._tools.limits.identify_s) as flasher:
                slots[target.component] = flasher.capabilities.slots
                try:
                    identity = await self._ecus.known(target.component, flasher)
                except FlashError as error:
                    log.warning("acts.component_silent", component=target.component, why=error.message)
                    continue
            if runs(identity, spec):
                held.append((target, spec))
        kept = self._tools.kept
        is_lost = kept is not None and await kept.was_begun(entry.key, self._tools.journal_id)
        # Where the journal was lost in the middle of this release, what runs may be on trial only.
        if len(held) == len(entry.targets) and not is_lost:
            for target, spec in held:
                await self._verifier.ran(target.component, spec)
                await self._tools.downloader.note_installed(target.component, spec.sha256)
            first, *more = (result_of(target.component, spec) for target, spec in held)
            return Holds(first, tuple(more))
        assert entry.command is not None
        return Fits(Release.of(self._tools.planner(entry.command, slots)))

    async def download(self, entry: Entry, keep: Collection[str], on_step: OnStep) -> Event:
        """Every image, one after the other; what lies there already costs a look."""
        total = sum(target.length for target in entry.targets)
        needed = {*keep, *(target.sha256 for target in entry.targets)}
        before = 0
        images = []
        for target in entry.targets:

            def progress(done: int, _: int, before: int = before) -> None:
                on_step(Step.DOWNLOADING, before + done, total)

            path = await self._tools.downloader.fetch(
                target.url,
                sha256=target.sha256,
                length=target.length,
                keep=needed,
                progress=progress,
                job_id=entry.job_id,
                urgent=entry.begun,
                delta=target.delta,
            )
            images.append((target.component, str(path)))
            before += target.length
        return Fetched("", tuple(images))

    async def verify(self, entry: Entry) -> Event:
        """Every document and every image once more."""
        release = release_of(entry)
        for target in entry.targets:
            await self._verifier.check_file(
                _path(release.state(target.component)), self._tools.signed(target, begun=release.touched)
            )
        return Verified()

    async def ask(self, entry: Entry) -> Event:
        """All images and all ECUs; for each single-slot one the way back. The vehicle is asked first.

        Raises NoWayBack, FlashError, Incompatible.
        """
        for target in entry.targets:
            unsafe = await self._tools.unsafe(entry, target.component, begun=False)
            if unsafe is not None:
                return unsafe
        await self.verify(entry)
        release = release_of(entry)
        formers: dict[str, Former] = {}
        for target in entry.targets:
            async with self._ecus.reach(target.component, self._tools.limits.identify_s) as flasher:
                identity = await self._ecus.known(target.component, flasher)
            formers[target.component] = await self._way_back.former(target, identity)
        if self._tools.kept is not None:
            formers = await self._tools.kept.remember_before(entry.key, self._tools.journal_id, formers)
        for planned in release.plan.targets:
            if planned.slots == 1 and planned.needs_way_back and not formers[planned.component].is_kept:
                raise NoWayBack(
                    f"{planned.component} has one slot, and the image that it holds "
                    f"({formers[planned.component].version or 'none'}) is not kept on this truck"
                )
        return Ready(formers=tuple(formers.items()))

    # --- forward --------------------------------------------------------------------------------

    async def flash(self, entry: Entry, on_step: OnStep) -> Event:
        """Stage the image of one ECU, unless it holds it."""
        component, image = await self._new(entry)
        begun = release_of(entry).touched
        unsafe = await self._tools.unsafe(entry, component, begun=begun)
        if unsafe is not None:
            return unsafe
        async with self._ecus.reach(component, self._tools.limits.stage_s) as flasher:
            identity = await self._ecus.untouched(component, flasher)
            if holds(identity, image.spec):
                return Staged() if identity.in_bootloader else Holds(result_of(component, image.spec))
            # The last moment before the first erase: the ECU took its time to say who it is.
            unsafe = await self._tools.unsafe(entry, component, begun=begun)
            if unsafe is not None:
                return unsafe
            unsafe = await watched_stage(
                flasher,
                image,
                on_step,
                look=lambda: self._tools.unsafe(entry, component, begun=True),
                every_s=self._tools.limits.watch_s,
            )
        return unsafe or Staged()

    async def activate(self, entry: Entry) -> Event:
        """Start it."""
        component = at_of(entry)
        unsafe = await self._tools.unsafe(entry, component, begun=True)
        if unsafe is not None:
            return unsafe
        async with self._ecus.reach(component, self._tools.limits.activate_s) as flasher:
            await flasher.activate()
        return Activated()

    async def check(self, entry: Entry) -> Event:
        """Is one ECU healthy, within its bounds? With none named: is every one, at this moment?"""
        release = release_of(entry)
        if release.at is not None:
            component, image = await self._new(entry)
            await self._healthy(component, image, release.plan.target(component).health)
            return Proved(result_of(component, image.spec))
        for target in entry.targets:
            image = await self._load(entry, target)
            try:
                await self._prove(target.component, image)
            except FlashError as error:
                log.warning("acts.not_healthy", component=target.component, why=error.message)
                return Fault(error=error_of(error), component=target.component)
        return AllProved()

    async def _healthy(self, component: str, image: FirmwareImage, bounds: HealthBounds) -> None:
        clock = self._tools.clock
        deadline = clock.boot_s() + bounds.within_s
        while True:
            try:
                return await self._prove(component, image)
            except FlashError as error:
                hopeless = error.code == "rolled_back" or not error.retryable
                if hopeless or clock.boot_s() + bounds.every_s >= deadline:
                    raise
                log.info("acts.not_healthy_yet", component=component, why=error.message)
            await asyncio.sleep(bounds.every_s)

    async def _prove(self, component: str, image: FirmwareImage) -> None:
        async with self._ecus.reach(component, self._tools.limits.check_s) as flasher:
            await self._ecus.proved(component, flasher, image)

    # --- behind the commit ----------------------------------------------------------------------

    async def confirm(self, entry: Entry, on_step: OnStep) -> Event:
        """Make one ECU's image permanent; one that went back by itself is flashed again first."""
        component, image = await self._new(entry)
        async with self._ecus.reach(component, self._tools.limits.stage_s) as flasher:
            identity = await self._ecus.untouched(component, flasher)
            if not runs(identity, image.spec):
                log.warning("acts.committed_image_gone", component=component, version=identity.version)
                unsafe = await self._tools.unsafe(entry, component, begun=True)
                if unsafe is not None:
                    return unsafe
                if not holds(identity, image.spec):
                    await stage(flasher, image, on_step)
                await flasher.activate()
            await self._ecus.proved(component, flasher, image)
            await flasher.confirm()
        target = target_of(entry, component)
        await self._verifier.ran(component, image.spec)
        await self._tools.downloader.note_installed(component, image.spec.sha256)
        await keep_image(self._tools.kept, target, release_of(entry).state(component).image)
        return Confirmed(result_of(component, image.spec))

    async def restore(self, entry: Entry, on_step: OnStep) -> Event:
        """See WayBack."""
        return await self._way_back.restore(entry, on_step)

    # --- what they share ------------------------------------------------------------------------

    async def _new(self, entry: Entry) -> tuple[str, FirmwareImage]:
        component = at_of(entry)
        return component, await self._load(entry, target_of(entry, component))

    async def _load(self, entry: Entry, target: CommandTarget) -> FirmwareImage:
        release = release_of(entry)
        # What has begun is not asked for its time or for newer releases any more.
        begun = release.touched or entry.state in {UpdateState.CONFIRMING, UpdateState.RESTORING}
        spec = self._tools.signed(target, begun=begun)
        return await self._verifier.load(_path(release.state(target.component)), target, spec)


def _path(state: TargetState) -> Path:
    if state.image is None:
        raise ImageMissing("the image was not downloaded yet")
    return Path(state.image)
