"""What may wait in memory before it is written: the newest progress of each step, and samples.

Bounded: more steps than MOST_STEPS push out the one that was told first, more samples the oldest. It
is given to the disk by `store`, at most once in `QueueLimits.write_every_s`, for each write wears the
flash of the gateway.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from edge_agent.store.journal import Report
from shared.logs import get_log
from shared.messages import Sample

log = get_log("edge_agent.pending")

MOST_STEPS = 256
MOST_SAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A thin report of an attempt, and when it was made."""

    job_id: str
    attempt: int
    report: Report
    at: datetime

    @property
    def key(self) -> tuple[str, int, str]:
        """Of equal keys only the newest counts."""
        return (self.job_id, self.attempt, self.report.step)


class Pending:
    """Belongs to the event loop's thread."""

    def __init__(self) -> None:
        self._progress: dict[tuple[str, int, str], Progress] = {}
        self._samples: deque[Sample] = deque(maxlen=MOST_SAMPLES)
        self.dropped = 0

    def __bool__(self) -> bool:
        return bool(self._progress or self._samples)

    def put(self, progress: Progress) -> None:
        """The newest word of its step; it moves behind the others."""
        self._progress.pop(progress.key, None)
        self._progress[progress.key] = progress
        if len(self._progress) > MOST_STEPS:
            del self._progress[next(iter(self._progress))]

    def put_samples(self, samples: Sequence[Sample]) -> None:
        """Append samples; what JSON can't carry (infinite, not a number) is left out."""
        for one in samples:
            if not math.isfinite(one.value):
                continue
            self.dropped += len(self._samples) == MOST_SAMPLES
            self._samples.append(one)

    def take(self, attempts: Collection[tuple[str, int]] | None = None) -> list[Progress]:
        """Progress of these attempts, or of all, in the order in which it was told."""
        taken = [
            one
            for one in self._progress.values()
            if attempts is None or (one.job_id, one.attempt) in attempts
        ]
        for one in taken:
            del self._progress[one.key]
        return taken

    def take_samples(self) -> list[Sample]:
        """All samples, the oldest first."""
        taken = list(self._samples)
        self._samples.clear()
        return taken

    def put_back(self, progress: Sequence[Progress], samples: Sequence[Sample] = ()) -> None:
        """What could not be written, unless something newer came meanwhile."""
        self._progress = {one.key: one for one in progress} | self._progress
        for one in reversed(samples):
            if len(self._samples) == MOST_SAMPLES:
                self.dropped += 1
                continue
            self._samples.appendleft(one)
