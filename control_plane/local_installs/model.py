"""PURE: what the statuses of a job that began at a truck make of it.

The merge is that of the office's own jobs (control_plane.jobs.merge), so any order, any repetition and any
split into batches give the same row. What is shown is taken from the status that won, its targets too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from control_plane.jobs.merge import Progress, Wanted, merge
from control_plane.jobs.service import Verdict
from shared.messages import Status, WantedTarget
from shared.states import JobState

Word = tuple[int, Status]
"""The number of the store that a status comes from, and the status."""

_NOTHING_SAID = Progress(state=JobState.READY, attempt=0)


@dataclass(frozen=True, kw_only=True)
class Said:
    """What the winning status says; `said_at` is the truck's clock and orders nothing."""

    now: Progress
    wanted: tuple[WantedTarget, ...]
    said_at: datetime


@dataclass(frozen=True, kw_only=True)
class LocalInstall:
    """One job that began at a truck. It is named by device and job: the truck chose the id."""

    device_id: str
    job_id: str
    said: Said
    first_seen_at: datetime
    updated_at: datetime


def merge_words(before: Said | None, words: Sequence[Word]) -> tuple[Said, list[Verdict]]:
    """The row after at least one status more, and what became of each."""
    said, verdicts = before, []
    for store_no, status in words:
        now = _NOTHING_SAID if said is None else said.now
        wanted = status.wanted or ()
        after = merge(
            now,
            {one.component: Wanted(version=one.version, sha256=one.sha256) for one in wanted},
            status,
            store_no,
        )
        if after is not None:
            said = Said(now=after, wanted=wanted, said_at=status.at)
            verdicts.append(Verdict.APPLIED)
        else:
            same = (store_no, status.seq, status.message_id)
            is_repeat = same == (now.key.store_no, now.key.seq, now.key.message_id)
            verdicts.append(Verdict.DUPLICATE if is_repeat else Verdict.LATE)
    assert said is not None, "there is no such thing as a job of which nothing was said"
    return said, verdicts
