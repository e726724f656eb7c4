"""What a truck's full verification costs: both repositories, ten ECUs, a thousand targets."""

from __future__ import annotations

import statistics
import time

from cli.benches.report import Row, figure
from shared.trust.uptane.repository_edit import add_target, firmware_target
from shared.trust.uptane.steps import Wanted, drive
from shared.trust.uptane.store import TrustedStore
from shared.trust.uptane.time_policy import Reading, TimePolicy
from shared.trust.uptane.verify import verify
from sim.uptane_world import BUILT_AT, UptaneWorld

ECUS = 10
TARGETS = 1000
RUNS = 7


def verify_release() -> Row:
    """Seconds of one core from the first byte of metadata to a verified selection; files are at hand.

    Raises RuntimeError when it does not end in the selection of all ECUs.
    """
    world, store = _fleet()
    spent: list[float] = []
    for _ in range(RUNS):
        before = time.thread_time()
        selection = world.verify(store).selection
        spent.append(time.thread_time() - before)
        if selection is None or len(selection.assignments) != ECUS:
            raise RuntimeError("the release was not selected")
    read = 0

    def counted(wanted: Wanted) -> bytes | None:
        nonlocal read
        raw = world.fetch(wanted)
        read += len(raw or b"")
        return raw

    drive(verify(store, world.vehicle, Reading(wall=world.now), TimePolicy(built_at=BUILT_AT)), counted)
    return figure(
        "verify.release",
        statistics.median(spent),
        "s",
        apart=f"median of {RUNS}, the thread's CPU time; {ECUS} families, {TARGETS} targets, "
        f"{read // 1024} KiB read, from memory",
    )


def _fleet() -> tuple[UptaneWorld, TrustedStore]:
    world = UptaneWorld(ecus=ECUS)
    # The release's own images and its document are among the thousand.
    for number in range(TARGETS - ECUS - 1):
        spec = world.spec(world.vehicle.ecus[number % ECUS], f"0.{number}.0", 1)
        world.image, _ = add_target(world.image, firmware_target(spec), world.now)
    world.direct(world.release("1.0.0", 2))
    return world, world.store()
