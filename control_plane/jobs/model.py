"""A job as the office keeps it: frozen values between the store and everybody else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from control_plane.jobs.merge import Progress, Wanted
from shared.messages import CommandKind, Error, ToldCause
from shared.states import JOB_TERMINAL, JobState


@dataclass(frozen=True, kw_only=True)
class Target:
    """One component and the firmware that it is to get; what it answered afterwards, once known.

    `firmware_id` is None in a job of a release, whose images are targets of the image repository.
    """

    component: str
    firmware_id: str | None
    kind: str
    version: str
    sha256: str
    length: int
    read_back_version: str | None = None
    read_back_sha256: str | None = None

    @property
    def path(self) -> str:
        """Its name among signed targets (see shared.release)."""
        return f"{self.kind}/{self.version}/{self.sha256}.bin"

    @property
    def read_back_right(self) -> bool | None:
        """Whether it answered that it runs what it was to get; None while it has not answered."""
        if self.read_back_sha256 is None:
            return None
        return (self.read_back_version, self.read_back_sha256) == (self.version, self.sha256)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One release on one device; `release_path` names it where it is one of the image repository.

    `version` grows with every change (the ETag), `revision` with everything that the truck is told;
    `command_kind` is what the newest revision says.
    """

    job_id: str
    device_id: str
    now: Progress
    version: int
    revision: int
    command_kind: CommandKind
    scheduled_at: datetime
    created_by: str
    created_at: datetime
    updated_at: datetime
    dispatched_at: datetime | None
    finished_at: datetime | None
    targets: tuple[Target, ...]
    release_path: str | None = None

    @property
    def state(self) -> JobState:
        return self.now.state

    @property
    def ended(self) -> bool:
        """Nothing more is expected of this attempt."""
        return self.state in JOB_TERMINAL

    @property
    def wanted(self) -> Mapping[str, Wanted]:
        """What each component must read back."""
        return {t.component: Wanted(version=t.version, sha256=t.sha256) for t in self.targets}


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a job's history. `applied` is false for a status that came too late to count."""

    job_id: str
    attempt: int
    version: int
    cause: str
    from_state: str | None = None
    to_state: str | None = None
    applied: bool = True
    status: str | None = None
    step: str | None = None
    progress: int | None = None
    reason: str | None = None
    causes: tuple[ToldCause, ...] = ()
    error: Error | None = None
    message_id: str | None = None
    store_no: int | None = None
    seq: int | None = None
    device_at: datetime | None = None
    received_at: datetime | None = None
