"""The acts of a release, mostly of several ECUs; each asks its ECU first and may be repeated from its start.

Faults are made of errors by `acts`; here errors only rise. Whether the ECU of an act was touched travels
in FlashError.touched, so that an error of any other kind is one before the first touch.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from edge_agent.errors import ImageMissing, NoWayBack
from edge_agent.store.journal import Entry, error_of
from edge_agent.store.release import Former, Release, TargetState
from edge_agent.update.authority import Order, Orders
from edge_agent.update.ecus import holds, result_of, runs
from edge_agent.update.proving import Proving
from edge_agent.update.tools import (
    OnStep,
    Tools,
    at_of,
    keep_image,
    release_of,
    stage_and_start,
    watched_stage,
)
from edge_agent.update.update_events import (
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
    Unsafe,
    Verified,
)
from edge_agent.update.way_back import WayBack
from firmware_flashers.base import FirmwareImage, FlashError, ReadsFaults
from shared.logs import get_log
from shared.states import Step

log = get_log("edge_agent.acts")


class ReleaseActs:
    """The acts by name; `entry.release.at` says of which ECU, where one is meant."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._ecus = tools.ecus
        self._authority = tools.authority
        self._verifier = tools.verifier
        self._way_back = WayBack(tools)
        self._proving = Proving(tools)

    # --- before the first touch -----------------------------------------------------------------

    async def look(self, entry: Entry) -> Event:
        """Judge every target; ask every ECU what it holds. One that sleeps is asked again later."""
        orders = await self._authority.look(entry)
        slots: dict[str, int] = {}
        reads_faults: dict[str, bool] = {}
        held = []
        for order in orders.targets:
            async with self._ecus.reach(order.component, self._tools.limits.identify_s) as flasher:
                slots[order.component] = flasher.capabilities.slots
                reads_faults[order.component] = isinstance(flasher, ReadsFaults)
                self._tools.check_class(orders, order.component, flasher)
                try:
                    identity = await self._ecus.known(order.component, flasher)
                except FlashError as error:
                    log.warning("acts.component_silent", component=order.component, why=error.message)
                    continue
            if runs(identity, order.spec):
                held.append(order)
        kept = self._tools.kept
        is_lost = kept is not None and await kept.was_begun(entry.key, self._tools.journal_id)
        # Where the journal was lost in the middle of this release, what runs may be on trial only.
        if len(held) == len(orders.targets) and not is_lost:
            for order in held:
                await self._authority.ran(order)
                await self._tools.downloader.note_installed(order.component, order.spec.sha256)
            first, *more = (result_of(order.component, order.spec) for order in held)
            return Holds(first, tuple(more))
        assert entry.command is not None
        plan = orders.plan(self._tools.planner(entry.command, slots), self._tools.rules_of(orders))
        self._proving.check_plan(plan, reads_faults)
        return Fits(Release.of(plan), orders.selection)

    async def download(self, entry: Entry, keep: Collection[str], on_step: OnStep) -> Event:
        """Every image, one after the other; what lies there already costs a look."""
        targets = (await self._authority.again(entry)).targets
        total = sum(one.spec.length for one in targets)
        needed = {*keep, *(one.spec.sha256 for one in targets)}
        before = 0
        images = []
        for target in targets:

            def progress(done: int, _: int, before: int = before) -> None:
                on_step(Step.DOWNLOADING, before + done, total)

            path = await self._tools.downloader.fetch(
                target.url,
                sha256=target.spec.sha256,
                length=target.spec.length,
                keep=needed,
                progress=progress,
                job_id=entry.job_id,
                urgent=entry.begun,
                delta=target.delta,
            )
            images.append((target.component, str(path)))
            before += target.spec.length
        return Fetched("", tuple(images))

    async def verify(self, entry: Entry) -> Event:
        """The authority and every image once more."""
        await self._check_images(entry, await self._authority.again(entry))
        return Verified()

    async def _check_images(self, entry: Entry, orders: Orders) -> None:
        release = release_of(entry)
        for order in orders.targets:
            await self._verifier.check_file(_path(release.state(order.component)), order.spec)

    async def ask(self, entry: Entry, *, takes_over: bool) -> Event:
        """All images and all ECUs; for each single-slot one the way back. The vehicle is asked first.

        Raises NoWayBack, HealthUnknown, FlashError, Incompatible.
        """
        signed = await self._authority.safety(entry)
        for target in entry.targets:
            unsafe = await self._tools.unsafe(entry, target.component, begun=False, signed=signed)
            if unsafe is not None:
                return unsafe
        orders = await self._authority.again(entry)
        await self._check_images(entry, orders)
        release = release_of(entry)
        formers: dict[str, Former] = {}
        for order in orders.targets:
            async with self._ecus.reach(order.component, self._tools.limits.identify_s) as flasher:
                identity = await self._ecus.known(order.component, flasher)
                planned = release.plan.target(order.component)
                faults = await self._proving.faults_before(planned, flasher, identity)
            former = await self._way_back.former(order, identity)
            formers[order.component] = replace(former, faults=faults)
        if self._tools.kept is not None:
            formers = await self._tools.kept.remember_before(entry.key, self._tools.journal_id, formers)
        for planned in release.plan.targets:
            # An ECU that an earlier update has torn already has nothing left to lose.
            needed = planned.slots == 1 and planned.needs_way_back and not takes_over
            if needed and not formers[planned.component].is_kept:
                raise NoWayBack(
                    f"{planned.component} has one slot, and the image that it holds "
                    f"({formers[planned.component].version or 'none'}) is not kept on this truck"
                )
        return Ready(takes_over=takes_over, formers=tuple(formers.items()))

    # --- forward --------------------------------------------------------------------------------

    async def flash(self, entry: Entry, on_step: OnStep) -> Event:
        """Stage the image of one ECU, unless it holds it."""
        component, orders, image = await self._new(entry)
        begun, signed = release_of(entry).touched, orders.safety
        unsafe = await self._tools.unsafe(entry, component, begun=begun, signed=signed)
        if unsafe is not None:
            return unsafe
        async with self._ecus.reach(component, self._tools.limits.stage_s) as flasher:
            identity = await self._ecus.untouched(component, flasher)
            if holds(identity, image.spec):
                return Staged() if identity.in_bootloader else Holds(result_of(component, image.spec))
            self._tools.check_class(orders, component, flasher)
            # The last moment before the first erase: the ECU took its time to say who it is.
            unsafe = await self._tools.unsafe(entry, component, begun=begun, signed=signed)
            if unsafe is not None:
                return unsafe
            unsafe = await watched_stage(
                flasher,
                image,
                on_step,
                look=lambda: self._tools.unsafe(entry, component, begun=True, signed=signed),
                every_s=self._tools.limits.watch_s,
            )
        return unsafe or Staged()

    async def activate(self, entry: Entry) -> Event:
        """Start it."""
        component = at_of(entry)
        orders = await self._authority.again(entry)
        unsafe = await self._tools.unsafe(entry, component, begun=True, signed=orders.safety)
        if unsafe is not None:
            return unsafe
        async with self._ecus.reach(component, self._tools.limits.activate_s) as flasher:
            await flasher.activate()
        return Activated()

    async def check(self, entry: Entry) -> Event:
        """Is one ECU healthy, within its bounds? With none named: is every one, at this moment?"""
        release = release_of(entry)
        if release.at is not None:
            component, _, image = await self._new(entry)
            with self._proving.listening(release, component) as watched:
                await self._proving.within_bounds(watched[component], image)
            return Proved(result_of(component, image.spec))
        orders = await self._authority.again(entry)
        with self._proving.listening(release) as watched:
            for order in orders.targets:
                image = await self._load(entry, order)
                try:
                    await self._proving.still(watched[order.component], image)
                except FlashError as error:
                    log.warning("acts.not_healthy", component=order.component, why=error.message)
                    return Fault(error=error_of(error), component=order.component)
        return AllProved()

    # --- behind the commit ----------------------------------------------------------------------

    async def confirm(self, entry: Entry, on_step: OnStep) -> Event:
        """Make one ECU's image permanent; one that went back by itself is flashed again first."""
        component, orders, image = await self._new(entry)
        async with self._ecus.reach(component, self._tools.limits.stage_s) as flasher:
            identity = await self._ecus.untouched(component, flasher)
            if not runs(identity, image.spec):
                log.warning("acts.committed_image_gone", component=component, version=identity.version)

                async def look() -> Unsafe | None:
                    return await self._tools.unsafe(entry, component, begun=True, signed=orders.safety)

                unsafe = await look() or await stage_and_start(
                    flasher,
                    image,
                    on_step,
                    held=holds(identity, image.spec),
                    look=look,
                    every_s=self._tools.limits.watch_s,
                )
                if unsafe is not None:
                    return unsafe
            await self._ecus.proved(component, flasher, image)
            await flasher.confirm()
        order = orders.of(component)
        await self._authority.ran(order)
        await self._tools.downloader.note_installed(component, image.spec.sha256)
        path = release_of(entry).state(component).image
        await keep_image(self._tools.kept, order, path, selection=orders.selection)
        return Confirmed(result_of(component, image.spec))

    async def restore(self, entry: Entry, on_step: OnStep) -> Event:
        """See WayBack."""
        return await self._way_back.restore(entry, on_step)

    # --- what they share ------------------------------------------------------------------------

    async def _new(self, entry: Entry) -> tuple[str, Orders, FirmwareImage]:
        component, orders = at_of(entry), await self._authority.again(entry)
        return component, orders, await self._load(entry, orders.of(component))

    async def _load(self, entry: Entry, order: Order) -> FirmwareImage:
        path = _path(release_of(entry).state(order.component))
        return await self._verifier.load(path, order.spec, order.document)


def _path(state: TargetState) -> Path:
    if state.image is None:
        raise ImageMissing("the image was not downloaded yet")
    return Path(state.image)
