"""How an ECU of a release is brought back to what it held: by its other slot, or by the kept image."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from edge_agent.errors import ImageMissing
from edge_agent.store.journal import Entry
from edge_agent.store.release import Former
from edge_agent.update.authority import Order
from edge_agent.update.ecus import holds
from edge_agent.update.tools import OnStep, Tools, release_of, stage_and_start
from edge_agent.update.update_events import Event, Restored, Unsafe
from firmware_flashers.base import FirmwareImage, Flasher, FlashError, Identity
from shared.logs import get_log
from shared.release import Incompatible
from shared.trust.document import TrustError

log = get_log("edge_agent.acts")


class WayBack:
    """Finds the way back before an ECU is touched, and goes it."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._ecus = tools.ecus

    async def former(self, order: Order, identity: Identity) -> Former:
        """What the ECU is brought back to: what it holds, or what it was given last when that is gone."""
        if holds(identity, order.spec):
            return Former(version=order.spec.version, sha256=order.spec.sha256, is_kept=True)
        with suppress(ImageMissing):
            image = await self._kept_image(order.component, identity.sha256)
            return Former(version=image.spec.version, sha256=image.spec.sha256, is_kept=True)
        return Former(version=identity.version, sha256=identity.sha256, is_kept=False)

    async def restore(self, entry: Entry, on_step: OnStep) -> Event:
        """Bring one ECU back to what it held. Raises ImageMissing when that is lost from the gateway."""
        release = release_of(entry)
        if release.at is None:
            return Restored()
        component, slots = release.at, release.plan.target(release.at).slots
        former = release.state(component).former
        assert former is not None, "it was written before the first touch"
        orders = await self._tools.authority.again(entry)
        new = orders.of(component).spec
        async with self._ecus.reach(component, self._tools.limits.stage_s) as flasher:
            identity = await self._ecus.untouched(component, flasher)
            if is_former(identity, former) and (slots == 1 or former.sha256 == new.sha256):
                return Restored()

            async def look() -> Unsafe | None:
                return await self._tools.unsafe(entry, component, begun=True, signed=orders.safety)

            unsafe = await look()
            if unsafe is not None:
                return unsafe
            if slots == 2 and former.sha256 != new.sha256:
                identity = await self._back_by_slot(component, flasher, former)
                if is_former(identity, former):
                    return Restored()
                if not former.is_kept:
                    raise FlashError(
                        f"{component} runs {identity.version}, not {former.version} as before",
                        code="not_reverted",
                    )
            image = await self._kept_image(component, former.sha256)
            unsafe = await stage_and_start(
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
        return Restored()

    async def _back_by_slot(self, component: str, flasher: Flasher, former: Former) -> Identity:
        """Give up the image on trial, or the one that waits for its start; returns what runs then.

        A flasher that does not remember the stage finds nothing on trial while the former image runs, though
        the new one may wait for the next reset: so that reset is made, and what it started is given up.
        """
        try:
            await flasher.revert()
        except FlashError as error:
            if error.retryable or error.touched:
                raise
            log.info("acts.nothing_on_trial", component=component, why=error.message)
            identity = await self._ecus.known(component, flasher)
            if not is_former(identity, former):
                return identity
            try:
                await flasher.activate()
            except FlashError as second:
                if second.retryable or second.touched:
                    raise
            identity = await self._ecus.known(component, flasher)
            if not is_former(identity, former):
                await flasher.revert()
        return await self._ecus.known(component, flasher)

    async def _kept_image(self, component: str, sha256: str | None) -> FirmwareImage:
        """The component's kept image, verified: this hash may return for now.

        Raises ImageMissing, for whatever reason it can't be had.
        """
        kept = None if self._tools.kept is None else await self._tools.kept.of(component)
        if kept is None or (sha256 is not None and kept.sha256 != sha256):
            raise ImageMissing(f"the image that {component} held is not kept on this truck")
        try:
            order = await self._tools.authority.way_back(component, kept)
            return await self._tools.verifier.load(Path(kept.image), order.spec, order.document)
        except (TrustError, Incompatible) as error:
            raise ImageMissing(
                f"the image that is kept of {component} is not good: {error.message}"
            ) from error


def is_former(identity: Identity, former: Former) -> bool:
    """Whether the ECU runs what it ran before."""
    return not identity.in_bootloader and (identity.version, identity.sha256) == (
        former.version,
        former.sha256,
    )
