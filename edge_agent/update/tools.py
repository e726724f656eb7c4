"""What the acts of updates work with, and what they share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from edge_agent.clock import Clock
from edge_agent.errors import GatewayOnly, StoreFailed
from edge_agent.store.journal import Entry
from edge_agent.store.release import Release
from edge_agent.store.release_plan import Planner
from edge_agent.trust.verifier import Verifier
from edge_agent.update.authority import Authority, Order, Orders
from edge_agent.update.ecus import Ecus, Limits
from edge_agent.update.health import HearsBeats
from edge_agent.update.kept import KeptImages
from edge_agent.update.update_events import Unsafe
from edge_agent.update.watch import Look, watched
from firmware_flashers.base import FirmwareImage, Flasher, Progress, TrustClass
from shared.logs import get_log
from shared.messages import Delta
from shared.trust.uptane.safety_policy import SafetyPolicy

log = get_log("edge_agent.acts")


class OnStep(Protocol):
    """Is told what an act does, from any thread; see `edge_agent.update.telling`."""

    def __call__(self, step: str, done: int, total: int) -> None:
        """A step's name and its bytes done and in all."""
        ...

    def goes_on_against(self, unsafe: Unsafe | None) -> None:
        """What forbids it, and can't stop it any more; None: nothing does."""
        ...


class AskVehicle(Protocol):
    """Asks whether a component may be touched now; `begun` where an ECU of the entry may be changed.

    `signed` is the policy of what is to be flashed.
    """

    async def __call__(
        self, entry: Entry, component: str, *, begun: bool, signed: SafetyPolicy | None
    ) -> Unsafe | None: ...


class Downloader(Protocol):
    """Brings an image to the disk; see `edge_agent.delivery.downloader`."""

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
class Tools:
    """What the acts work with. `authority` says what may be brought, `unsafe` asks the vehicle, `rules` makes
    a signed policy this truck's; `kept` None: nothing is kept on this truck. `hears` None: no bus is there on
    which heartbeats could be heard; `addresses` are the components' own on it.

    `journal_id` is another one when the journal was lost and begun anew.
    """

    ecus: Ecus
    downloader: Downloader
    authority: Authority
    verifier: Verifier
    kept: KeptImages | None
    planner: Planner
    unsafe: AskVehicle
    rules: Callable[[SafetyPolicy], SafetyPolicy]
    clock: Clock
    limits: Limits
    journal_id: str
    hears: HearsBeats | None = None
    addresses: Mapping[str, int] = field(default_factory=dict)

    def rules_of(self, orders: Orders) -> SafetyPolicy | None:
        """The release's policy as it holds on this truck."""
        return None if orders.safety is None else self.rules(orders.safety)

    def check_class(self, orders: Orders, component: str, flasher: Flasher) -> None:
        """Raises GatewayOnly for an ECU that checks nothing itself, unless the policy says that it may be."""
        rules = self.rules_of(orders)
        if rules is None or rules.may_flash_gateway_only:
            return
        if flasher.capabilities.trust_class is not TrustClass.VERIFIES:
            raise GatewayOnly(
                f"{component} does not check what it boots, and the release does not permit that"
            )


async def keep_image(
    kept: KeptImages | None, order: Order, image: str | None, *, selection: str | None = None
) -> None:
    """Remember what was installed; a failure only costs later releases their way back."""
    if kept is None or image is None:
        return
    try:
        await kept.keep(order.target, image, selection=selection)
    except StoreFailed as error:
        log.warning("acts.image_not_kept", component=order.component, why=error.message)


async def stage(flasher: Flasher, image: FirmwareImage, on_step: OnStep) -> None:
    """Stage an image and tell its steps. Raises FlashError."""

    def progress(at: Progress) -> None:
        on_step(at.step, at.done_bytes, at.total_bytes)

    await flasher.stage(image, progress=progress)


async def watched_stage(
    flasher: Flasher, image: FirmwareImage, on_step: OnStep, *, look: Look, every_s: float
) -> Unsafe | None:
    """As `stage`, looking at the interlocks. Returns why it was suspended; None: it is staged."""
    return await watched(
        stage(flasher, image, on_step),
        look,
        every_s=every_s,
        may_suspend=flasher.capabilities.slots > 1,
        tell=on_step.goes_on_against,
    )


async def stage_and_start(
    flasher: Flasher, image: FirmwareImage, on_step: OnStep, *, held: bool, look: Look, every_s: float
) -> Unsafe | None:
    """Write an image, unless the ECU holds it, and start it. Returns what it waits for, None when it runs.

    What was written meanwhile stays, so that the next try has it to start only. Raises FlashError.
    """
    if not held:
        unsafe = await watched_stage(flasher, image, on_step, look=look, every_s=every_s) or await look()
        if unsafe is not None:
            return unsafe
    await flasher.activate()
    return None


def release_of(entry: Entry) -> Release:
    """The release that it is about."""
    assert entry.release is not None, "only releases come here"
    return entry.release


def at_of(entry: Entry) -> str:
    """The one component that the act is about."""
    at = release_of(entry).at
    assert at is not None, "the act is about one ECU"
    return at
