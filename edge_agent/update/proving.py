"""An ECU of a release proves itself after its start: its identity, and what its release asks for besides.

It is asked again and again within its bounds; the last reason against it is what the release fails by.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AbstractContextManager

from edge_agent.errors import HealthUnknown
from edge_agent.store.release import Release
from edge_agent.store.release_plan import PlannedTarget, ReleasePlan
from edge_agent.update.health import Watched, check_can_tell, watching
from edge_agent.update.tools import Tools
from firmware_flashers.base import FirmwareImage, Flasher, FlashError, Identity, ReadsFaults
from shared.logs import get_log

log = get_log("edge_agent.acts")


class Proving:
    """The questions, with the truck's own means to ask them."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._ecus = tools.ecus

    # --- before the first touch -----------------------------------------------------------------

    def check_plan(self, plan: ReleasePlan, reads_faults: Mapping[str, bool]) -> None:
        """Raise HealthUnknown where this truck can't tell what the release asks for."""
        for target in plan.targets:
            check_can_tell(
                target,
                reads_faults=reads_faults[target.component],
                hears=self._tools.hears is not None,
                addresses=self._tools.addresses,
            )

    async def faults_before(
        self, target: PlannedTarget, flasher: Flasher, identity: Identity
    ) -> tuple[int, ...] | None:
        """The trouble codes that the ECU has already; None: nobody asks, or no application runs to say.

        Raises HealthUnknown, and FlashErrors that a repeat may mend.
        """
        bounds = target.health.faults
        if bounds is None or identity.in_bootloader:
            return None
        if not isinstance(flasher, ReadsFaults):
            raise HealthUnknown(f"the trouble codes of {target.component} can't be read")
        try:
            codes = await flasher.trouble_codes(bounds.status_mask)
        except FlashError as error:
            if error.retryable:
                raise
            raise HealthUnknown(f"the trouble codes of {target.component}: {error.message}") from error
        return tuple(sorted({one.code for one in codes}))

    # --- after its start ------------------------------------------------------------------------

    def listening(
        self, release: Release, only: str | None = None
    ) -> AbstractContextManager[Mapping[str, Watched]]:
        """For the time of the block: the ECUs of a release, or one of them, as they are listened to."""
        targets = [one for one in release.plan.targets if only in {None, one.component}]
        formers = {one.component: one.former for one in release.states}
        return watching(
            targets,
            before={name: None if former is None else former.faults for name, former in formers.items()},
            hears=self._tools.hears,
            addresses=self._tools.addresses,
        )

    async def within_bounds(self, watched: Watched, image: FirmwareImage) -> None:
        """Ask until it is well. Raises FlashError: what spoke against it last when its time is over."""
        clock, bounds = self._tools.clock, watched.bounds
        deadline = clock.boot_s() + bounds.within_s
        while True:
            try:
                against = await self._ask(watched, image)
            except FlashError as error:
                if error.code == "rolled_back" or not error.retryable:
                    raise
                watched.doubt()
                against = error
            if against is None:
                return
            if clock.boot_s() + bounds.every_s >= deadline:
                raise against
            log.info("acts.not_healthy_yet", component=watched.component, why=against.message)
            await asyncio.sleep(bounds.every_s)

    async def still(self, watched: Watched, image: FirmwareImage) -> None:
        """Once more at the end, beside all others. What is proved over time gets its bounds again.

        Raises FlashError.
        """
        if watched.bounds.asks_more:
            await self.within_bounds(watched, image)
            return
        against = await self._ask(watched, image)
        assert against is None, "identity alone was asked for"

    async def _ask(self, watched: Watched, image: FirmwareImage) -> FlashError | None:
        async with self._ecus.reach(watched.component, self._tools.limits.check_s) as flasher:
            await self._ecus.proved(watched.component, flasher, image)
            return await watched.ask(flasher, self._tools.clock.boot_s())
