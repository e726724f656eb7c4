"""PURE: what a truck's status changes in a job.

Statuses travel at-least-once and in any order. The promise: a job is always what it would be if all
statuses that were ever received had come once, in the order of their keys. In that order a status
of a newer attempt begins anew, the first final word of an attempt stands, and before it the newest
word counts. So of two statuses

- the greater attempt wins;
- within an attempt a final one wins over any other;
- of two final ones the smaller key wins (the first final word), of two others the greater.

That is a total order, hence any order of arrival, any repetition and any split into batches give
the same job (CONTRACTS: "A job's life"). Everything that a job shows of a status is taken from the
one that won, never put together from several. What the centre itself ended (abandoned, or cancelled
before a command went out) no status moves. States: `shared.states.JOB_MOVES`; the one move beside
that table is the correction of a final word by an earlier final word that arrived late.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shared.messages import Error, Status, TargetResult, ToldCause
from shared.states import JOB_TERMINAL, STATUS_TO_JOB, JobState


@dataclass(frozen=True, kw_only=True, order=True)
class StatusKey:
    """The place of a status among all of its job. `message_id` only breaks ties, the same everywhere.

    `store_no` is the centre's number of the agent database that wrote it; `seq` grows within one.
    """

    attempt: int = 0
    store_no: int = 0
    seq: int = 0
    message_id: str = ""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a target's component must answer when it is read back after the update."""

    version: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The part of a job that statuses decide. `key` is that of the status that won so far."""

    state: JobState
    attempt: int
    key: StatusKey = StatusKey()
    step: str | None = None
    progress: int | None = None
    reason: str | None = None
    causes: tuple[ToldCause, ...] = ()
    error: Error | None = None
    read_back: tuple[TargetResult, ...] = ()


def merge(job: Progress, wanted: Mapping[str, Wanted], status: Status, store_no: int) -> Progress | None:
    """The job after a status; None when the status changes nothing but the history.

    `wanted` is by component. A `done` whose read-back differs makes the job an error.
    """
    key = StatusKey(attempt=status.attempt, store_no=store_no, seq=status.seq, message_id=status.message_id)
    if not _counts(job, key, final=STATUS_TO_JOB[status.status] in JOB_TERMINAL):
        return None
    state, error = _judged(wanted, status)
    return Progress(
        state=state,
        attempt=max(job.attempt, key.attempt),
        key=key,
        step=status.step,
        progress=status.progress,
        reason=status.reason,
        causes=status.causes or (),
        error=error,
        read_back=status.targets or (),
    )


def _counts(job: Progress, key: StatusKey, *, final: bool) -> bool:
    ended = job.state in JOB_TERMINAL
    by_centre = job.state is JobState.ABANDONED or (ended and job.key.attempt < job.attempt)
    if by_centre or key.attempt < job.attempt:
        return False
    if key.attempt > job.key.attempt:
        return True
    match (ended, final):
        case (True, True):
            return key < job.key
        case (True, False):
            return False
        case (False, True):
            return True
        case _:
            return key > job.key


def _judged(wanted: Mapping[str, Wanted], status: Status) -> tuple[JobState, Error | None]:
    """The state that a status means. `done` is believed only when every target was read back right."""
    state = STATUS_TO_JOB[status.status]
    if state is not JobState.DONE:
        return state, status.error
    answers = {(one.component, one.version, one.sha256) for one in status.targets or ()}
    named = [one.component for one in status.targets or ()]
    wrong = sorted(
        component
        for component, want in wanted.items()
        if (component, want.version, want.sha256) not in answers or named.count(component) != 1
    )
    if not wrong:
        return state, None
    return JobState.ERROR, Error(
        code="read_back_mismatch",
        retryable=True,
        advice="Read the components of this truck again; if they differ, start a new job.",
        text=f"the truck says done, but did not read back what was sent to: {', '.join(wrong)[:1500]}",
    )
