"""One locked job while it changes: every change leaves its history line and its events.

Pure, apart from the clock that dates an event. The service locks jobs, changes them through `Edit`
and writes everything in one transaction, so that no state is ever reached without its story.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from control_plane.errors import Conflict
from control_plane.jobs.merge import Progress, merge
from control_plane.jobs.model import Job, Line
from control_plane.outbox.service import job_event
from control_plane.outbox.store import NewEvent
from shared.messages import CommandKind, Error, Status
from shared.states import JOB_LIVE, JOB_MOVES, JOB_TERMINAL, JobState, Step, TruckStatus
from shared.topics import DEVICE_COMMANDS, JOB_EVENTS, BusTopic

BEFORE_DISPATCH = frozenset({JobState.SCHEDULED, JobState.READY})
"""The truck has been told nothing yet, so the office may end the job by itself."""


class Edit:
    """A job that its caller has locked. `job` is how it is now, `before` how it was.

    `lines` and `events` are what has to be written with it.
    """

    def __init__(self, job: Job) -> None:
        self.before = job
        self.job = job
        self.lines: list[Line] = []
        self.events: list[NewEvent] = []

    def move(
        self, to: JobState, *, cause: str, reason: str | None = None, error: Error | None = None
    ) -> None:
        """The office's own move. Raises Conflict when JOB_MOVES has no such move."""
        now = self.job.now
        if to not in JOB_MOVES[now.state]:
            raise Conflict(
                f"job {self.job.job_id} is {now.state} and can't become {to}", code="not_allowed_now"
            )
        self._change(replace(now, state=to, reason=reason, causes=(), error=error))
        self._line(now.state, cause=cause, reason=reason, error=error)
        self._entered(now.state)

    def revise(self, kind: CommandKind) -> None:
        """The truck has to be told something new; belongs to the change just made."""
        self.job = replace(self.job, revision=self.job.revision + 1, command_kind=kind)
        self._event("job.command_due", DEVICE_COMMANDS, {"kind": kind})

    def apply(self, status: Status, store_no: int) -> bool:
        """Merge a truck's status; False when it came too late to count and only stays as history."""
        before = self.job.now
        after = merge(before, self.job.wanted, status, store_no)
        if after is not None:
            self._change(after)
        self.lines.append(
            Line(
                job_id=self.job.job_id,
                attempt=status.attempt,
                version=self.job.version,
                cause="truck",
                from_state=before.state,
                to_state=self.job.state,
                applied=after is not None,
                status=status.status,
                step=status.step,
                progress=status.progress,
                reason=status.reason,
                causes=status.causes or (),
                error=after.error if after is not None else status.error,
                message_id=status.message_id,
                store_no=store_no,
                seq=status.seq,
                device_at=status.at,
            )
        )
        if after is None:
            return False
        self._entered(before.state)
        asks_url = status.status is TruckStatus.DOWNLOADING and status.step == Step.URL_EXPIRED
        # A cancel stays the newest word: a truck that is to stop needs no URL.
        if asks_url and self.job.command_kind is not CommandKind.CANCEL:
            self.revise(CommandKind.URL)
        return True

    def _change(self, now: Progress) -> None:
        self.job = replace(self.job, now=now, version=self.job.version + 1)

    def _line(
        self, from_state: JobState, *, cause: str, reason: str | None = None, error: Error | None = None
    ) -> None:
        self.lines.append(
            Line(
                job_id=self.job.job_id,
                attempt=self.job.now.attempt,
                version=self.job.version,
                cause=cause,
                from_state=from_state,
                to_state=self.job.state,
                reason=reason,
                error=error,
            )
        )

    def _entered(self, from_state: JobState) -> None:
        """The event of a change of state; a status within a state has none."""
        state = self.job.state
        if state is from_state:
            return
        data = {"from": from_state, "state": state}
        if state in JOB_TERMINAL:
            self._event("job.completed", JOB_EVENTS, data)
        elif state is JobState.READY:
            # Keyed by device: by type, one partition would carry every command of the fleet.
            self._event("job.ready_to_execute", DEVICE_COMMANDS, data)
        else:
            assert state in JOB_LIVE
            self._event("job.state_changed", JOB_EVENTS, data)

    def _event(self, event_type: str, topic: BusTopic, data: dict[str, Any]) -> None:
        job = self.job
        self.events.append(
            job_event(
                event_type,
                job_id=job.job_id,
                device_id=job.device_id,
                version=job.version,
                data={**data, "attempt": job.now.attempt, "revision": job.revision},
                topic=topic,
            )
        )


def created(job: Job) -> tuple[Line, NewEvent]:
    """The first line of a job's history and its first event."""
    line = Line(
        job_id=job.job_id,
        attempt=job.now.attempt,
        version=job.version,
        cause=job.created_by,
        to_state=job.state,
    )
    event = job_event(
        "job.created",
        job_id=job.job_id,
        device_id=job.device_id,
        version=job.version,
        data={
            "state": job.state,
            "scheduled_at": job.scheduled_at.isoformat(),
            "targets": [{"component": t.component, "version": t.version} for t in job.targets],
            **({} if job.release_path is None else {"release": job.release_path}),
        },
        topic=JOB_EVENTS,
    )
    return line, event
