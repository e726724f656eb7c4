"""What the acts of updates work with, and what they share."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edge_agent.clock import Clock
from edge_agent.ecus import Ecus, Limits
from edge_agent.errors import StoreFailed
from edge_agent.journal import Entry
from edge_agent.kept import KeptImages
from edge_agent.release import Release
from edge_agent.release_plan import Planner
from edge_agent.update_events import Unsafe
from edge_agent.verifier import Verifier
from edge_agent.watch import Look, watched
from firmware_flashers.base import FirmwareImage, Flasher, Progress
from shared.logs import get_log
from shared.messages import CommandTarget, Delta
from shared.release import FirmwareSpec

log = get_log("edge_agent.acts")

OnStep = Callable[[str, int, int], None]
"""Takes a step's name and bytes done and in all."""


class AskVehicle(Protocol):
    """Asks whether a component may be touched now; `begun` where an ECU of the entry may be changed."""

    async def __call__(self, entry: Entry, component: str, *, begun: bool) -> Unsafe | None: ...


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
class Tools:
    """What the acts work with. `unsafe` asks the vehicle; `kept` None: nothing is kept on this truck.

    `journal_id` is another one when the journal was lost and begun anew.
    """

    ecus: Ecus
    downloader: Downloader
    verifier: Verifier
    kept: KeptImages | None
    planner: Planner
    unsafe: AskVehicle
    clock: Clock
    limits: Limits
    journal_id: str

    def signed(self, target: CommandTarget, *, begun: bool = False) -> FirmwareSpec:
        """What was signed for this target; see Verifier.check_target."""
        access = self.ecus.access(target.component)
        return self.verifier.check_target(target, kind=access.kind, hardware=access.hardware, begun=begun)


async def keep_image(kept: KeptImages | None, target: CommandTarget, image: str | None) -> None:
    """Remember what was installed; a failure only costs later releases their way back."""
    if kept is None or image is None:
        return
    try:
        await kept.keep(target, image)
    except StoreFailed as error:
        log.warning("acts.image_not_kept", component=target.component, why=error.message)


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
        stage(flasher, image, on_step), look, every_s=every_s, may_suspend=flasher.capabilities.slots > 1
    )


def release_of(entry: Entry) -> Release:
    """The release that it is about."""
    assert entry.release is not None, "only releases come here"
    return entry.release


def at_of(entry: Entry) -> str:
    """The one component that the act is about."""
    at = release_of(entry).at
    assert at is not None, "the act is about one ECU"
    return at


def target_of(entry: Entry, component: str) -> CommandTarget:
    """What the command brings to a component."""
    return next(one for one in entry.targets if one.component == component)
