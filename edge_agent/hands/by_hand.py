"""PURE: what a person at the truck may ask of a job, and what they are told where they may not.

`retry` tries a job again that goes on and rests between two tries. A job that ended is not begun anew on the
truck: only the office knows whether it gave the truck another one since, and a truck has one live job. What
was installed from a file is the truck's own and may be begun again.
"""

from __future__ import annotations

from dataclasses import dataclass

from edge_agent.store.journal import Asked, Entry
from shared.ids import LOCAL_JOB, is_local_job, new_id
from shared.states import UpdateState


@dataclass(frozen=True, kw_only=True)
class No:
    """Why not: a code for programs, a sentence for people."""

    code: str
    text: str


NO_SUCH_JOB = "no_such_job"


def new_local_job() -> str:
    """The id of a job that a person at the truck begins."""
    return f"{LOCAL_JOB}{new_id()}"


def judge_abort(job_id: str, entry: Entry | None) -> No | None:
    """May the job be cancelled? None: yes."""
    if entry is None:
        return No(code=NO_SUCH_JOB, text=f"this truck knows no job {job_id}")
    if entry.ended:
        return No(code="ended", text=f"job {job_id} ended already: {entry.state}")
    if entry.begun:
        return No(
            code="too_late",
            text=f"job {job_id} is at {entry.state}: the ECU is finished, since a stop would strand it",
        )
    return None


def judge_retry(job_id: str, entry: Entry | None) -> No | None:
    """May the job be tried at once? None: yes."""
    if entry is None:
        return No(code=NO_SUCH_JOB, text=f"this truck knows no job {job_id}")
    if entry.ended:
        return No(code="ended", text=f"job {job_id} ended: {entry.state}. {_what_then(entry)}")
    if entry.asked is Asked.CANCEL and not entry.begun:
        return No(code="ended", text=f"job {job_id} is being cancelled")
    return None


def may_begin_again(entry: Entry) -> bool:
    """Whether a job that ended may be begun anew here: one of a person's own, with nothing touched."""
    failed = entry.state in {UpdateState.ERROR, UpdateState.CANCELLED}
    return is_local_job(entry.job_id) and failed and entry.command is not None


def _what_then(entry: Entry) -> str:
    if entry.state is UpdateState.DONE:
        return "There is nothing to try again"
    return "Ask the office for a new job: it alone knows what else this truck is to do"
