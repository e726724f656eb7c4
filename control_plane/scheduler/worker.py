"""Sweeps due jobs by the database's clock; `job.created` only wakes it.

A lost or late event delays nothing for ever, since each rest is bounded: the table is the truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from control_plane.bus.base import BusMessage
from control_plane.jobs.service import JobService
from control_plane.loops import Wake
from shared.topics import JOB_EVENTS

GROUP = "scheduler-group"
TOPICS = (JOB_EVENTS.name,)


@dataclass(kw_only=True)
class Scheduler:
    """Moves jobs from scheduled to ready. `step` is run by `control_plane.loops`.

    `wake` ends this loop's own rest; `outbox` is woken when events were written.
    """

    jobs: JobService
    wake: Wake
    outbox: Wake
    batch: int = 200
    most_rest_s: float = 5.0

    async def handle(self, messages: Sequence[BusMessage]) -> None:
        """The consumer of job events: a new job may be due before the present rest ends."""
        if any(message.key == "job.created" for message in messages):
            self.wake.set()

    async def step(self) -> float:
        """Move one batch; returns the seconds to rest."""
        moved, due_s = await self.jobs.move_due(self.batch)
        if moved:
            self.outbox.set()
        if moved == self.batch:
            return 0.0
        return self.most_rest_s if due_s is None else min(self.most_rest_s, max(0.01, due_s))
