"""The job service: creates jobs, moves them, and tells their whole story.

Every method that takes a `connection` joins its caller's transaction; whoever opened it wakes the
outbox after the commit. Many jobs are always locked in the order of their ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

import asyncpg

from control_plane.db import Connection, Database
from control_plane.devices.service import DeviceService
from control_plane.errors import Conflict, Invalid, NotFound, StaleVersion
from control_plane.firmware.service import FirmwareService
from control_plane.jobs import store
from control_plane.jobs.changes import BEFORE_DISPATCH, Edit, created
from control_plane.jobs.model import Job, Line, Target
from control_plane.outbox.service import OutboxService
from shared.ids import new_id
from shared.logs import get_log
from shared.messages import CommandKind, Error, Status
from shared.states import JobState

log = get_log("control_plane.jobs")

MOST_HISTORY = 500
"""Lines of history in one answer; a job's answer says how many there are in all."""
FARTHEST_SCHEDULE = timedelta(days=366)
STOPPABLE = frozenset({JobState.DISPATCHED, JobState.DOWNLOADING, JobState.SILENT})
"""Dispatched, and as far as the office knows nothing has been erased yet."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """A truck's status as it arrived: who sent it, from which of the truck's stores (its number)."""

    device_id: str
    store_no: int
    status: Status


class Verdict(StrEnum):
    """What became of a status."""

    APPLIED = "applied"
    LATE = "late"  # it is in the history and changed nothing
    DUPLICATE = "duplicate"
    REJECTED = "rejected"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a report. `reason` is set when it was rejected; `entered` is the state that it
    brought the job to, when that changed; `told_anew` that the truck has to be told something.
    """

    report: Report
    verdict: Verdict
    reason: str = ""
    entered: JobState | None = None
    told_anew: bool = False


class JobService:
    """Jobs: the only way to change one."""

    def __init__(
        self, db: Database, devices: DeviceService, firmware: FirmwareService, outbox: OutboxService
    ) -> None:
        self._db = db
        self._devices = devices
        self._firmware = firmware
        self._outbox = outbox

    async def create(
        self,
        connection: Connection,
        *,
        device_id: str,
        component: str,
        version: str,
        scheduled_at: datetime | None,
        by: str,
    ) -> Job:
        """A job of one target, due at `scheduled_at` (UTC) or at once.

        Raises NotFound (device, component, firmware), Incompatible, Conflict (`withdrawn`, or
        `live_job` naming the job that the device still has), Invalid (a time more than a year ahead).
        """
        _check_schedule(scheduled_at)
        device = await self._devices.lock_for_job(connection, device_id)
        found = next((c for c in device.components if c.component == component), None)
        if found is None:
            has = ", ".join(c.component for c in device.components) or "none"
            raise NotFound(
                f"{device_id} has no component {component}; it has: {has}",
                code="unknown_component",
                fields={"component": "unknown"},
            )
        firmware = await self._firmware.installable(connection, kind=found.kind, version=version)
        firmware.spec.check_fits(kind=found.kind, hardware=found.hardware)
        # Where the truck says otherwise than is registered the firmware has to fit that as well.
        firmware.spec.check_fits(
            kind=found.reported_kind or found.kind, hardware=found.reported_hardware or found.hardware
        )
        target = Target(
            component=component,
            firmware_id=firmware.firmware_id,
            kind=firmware.kind,
            version=firmware.version,
            sha256=firmware.sha256,
            length=firmware.length,
        )
        return await self._insert(
            connection, device_id=device_id, targets=[target], scheduled_at=scheduled_at, by=by
        )

    async def create_of_release(
        self,
        connection: Connection,
        *,
        device_id: str,
        release_path: str,
        targets: Sequence[Target],
        scheduled_at: datetime | None,
        by: str,
    ) -> Job:
        """A job of a whole release, its targets found by the director, who has locked the device's row.

        Raises Conflict (`live_job`) or Invalid (a time more than a year ahead).
        """
        _check_schedule(scheduled_at)
        return await self._insert(
            connection,
            device_id=device_id,
            targets=targets,
            scheduled_at=scheduled_at,
            by=by,
            release_path=release_path,
        )

    async def _insert(
        self,
        connection: Connection,
        *,
        device_id: str,
        targets: Sequence[Target],
        scheduled_at: datetime | None,
        by: str,
        release_path: str | None = None,
    ) -> Job:
        try:
            # A savepoint: the unique index decides, and the transaction can still say which job is live.
            async with connection.transaction():
                job = await store.insert(
                    connection,
                    job_id=new_id(),
                    device_id=device_id,
                    scheduled_at=scheduled_at,
                    created_by=by,
                    targets=targets,
                    release_path=release_path,
                )
        except asyncpg.UniqueViolationError as error:
            live = await store.live_job_of(connection, device_id)
            raise Conflict(
                f"{device_id} already has a live job, {live}",
                code="live_job",
                advice="Wait for it to end, or cancel it.",
            ) from error
        line, event = created(job)
        await store.add_history(connection, [line])
        await self._outbox.add(connection, [event])
        return job

    async def get(self, job_id: str) -> Job:
        """One job. Raises NotFound."""
        async with self._db.transaction() as connection:
            return _found(await store.get(connection, job_id), job_id)

    async def story(self, job_id: str) -> tuple[Job, list[Line], int]:
        """A job, the newest MOST_HISTORY lines of its history, and how many there are. Raises NotFound."""
        async with self._db.transaction() as connection:
            job = _found(await store.get(connection, job_id), job_id)
            lines, total = await store.history(connection, job_id, MOST_HISTORY)
            return job, lines, total

    async def page(
        self,
        *,
        device_id: str | None = None,
        state: JobState | None = None,
        before: tuple[datetime, str] | None = None,
        limit: int = 50,
    ) -> list[Job]:
        """Jobs from the newest to the oldest."""
        async with self._db.transaction() as connection:
            return await store.page(connection, device_id=device_id, state=state, before=before, limit=limit)

    async def newest_of(self, connection: Connection, device_id: str) -> Job | None:
        """The job that was made last for a device: its live one, if it has one."""
        found = await store.page(connection, device_id=device_id, state=None, before=None, limit=1)
        return found[0] if found else None

    async def cancel(self, job_id: str, expected_version: int, by: str) -> Job:
        """End a job that was not dispatched; ask the truck to stop one that was.

        A job that is being cancelled already stays as it is. Raises NotFound, StaleVersion, Conflict.
        """

        async def act(connection: Connection) -> Job:
            edit = await self._locked(connection, job_id, expected_version)
            if edit.job.state is JobState.CANCELLING:
                return edit.job
            if edit.job.state in BEFORE_DISPATCH:
                edit.move(JobState.CANCELLED, cause=by)
            else:
                edit.move(JobState.CANCELLING, cause=by)
                edit.revise(CommandKind.CANCEL)
            return await self._save(connection, edit)

        return await self._db.run(act)

    async def abandon(self, job_id: str, expected_version: int, by: str) -> Job:
        """Give a job up without the truck's word. Raises NotFound, StaleVersion, Conflict."""

        async def act(connection: Connection) -> Job:
            edit = await self._locked(connection, job_id, expected_version)
            edit.move(JobState.ABANDONED, cause=by)
            return await self._save(connection, edit)

        return await self._db.run(act)

    async def move_due(self, limit: int) -> tuple[int, float | None]:
        """Make scheduled jobs ready whose time has come by the database's clock, `limit` at most.

        Returns how many, and the seconds until the next one is due (None: none is scheduled).
        """

        async def act(connection: Connection) -> tuple[int, float | None]:
            edits = [Edit(job) for job in await store.lock_due(connection, limit)]
            for edit in edits:
                edit.move(JobState.READY, cause="scheduler")
            await self._save_all(connection, edits)
            return len(edits), await store.next_due_s(connection)

        return await self._db.run(act)

    async def take_uncommanded(
        self, connection: Connection, limit: int, job_ids: Sequence[str] | None = None
    ) -> list[Job]:
        """Jobs whose newest revision the dispatcher lacks, locked, and from now on counted as taken."""
        jobs = await store.lock_uncommanded(connection, limit, job_ids)
        await store.commanded(connection, [job.job_id for job in jobs])
        return jobs

    async def lock(self, connection: Connection, job_ids: Iterable[str]) -> dict[str, Job]:
        """These jobs as they are now; nobody else changes them before the caller's transaction ends."""
        return await store.lock(connection, list(job_ids))

    async def mark_dispatched(self, connection: Connection, job_ids: Sequence[str]) -> None:
        """A command is about to go out: of these jobs the ready ones become dispatched."""
        locked = await store.lock(connection, job_ids)
        edits = [Edit(job) for job in locked.values() if job.state is JobState.READY]
        for edit in edits:
            edit.move(JobState.DISPATCHED, cause="dispatcher")
        await self._save_all(connection, edits)

    async def refuse(self, connection: Connection, errors: Mapping[str, Error]) -> None:
        """These jobs must not go on, by job_id, with the reason.

        What was not dispatched ends as an error; what was, but does not flash yet, is asked to stop.
        """
        edits = [Edit(job) for job in (await store.lock(connection, list(errors))).values()]
        for edit in edits:
            error = errors[edit.job.job_id]
            if edit.job.state in BEFORE_DISPATCH:
                edit.move(JobState.ERROR, cause="dispatcher", reason=error.text, error=error)
            elif edit.job.state in STOPPABLE:
                edit.move(JobState.CANCELLING, cause="dispatcher", reason=error.text)
                edit.revise(CommandKind.CANCEL)
        await self._save_all(connection, [edit for edit in edits if edit.lines])

    async def apply(self, connection: Connection, reports: Sequence[Report]) -> list[Outcome]:
        """Take trucks' statuses over into their jobs; one outcome a report, in their order.

        Deduplicates, merges, and writes job, history and events. A status of an unknown job, or of
        another truck's, is rejected with the reason and leaves no trace here.
        """
        jobs = await store.lock(connection, [r.status.job_id for r in reports])
        edits = {job_id: Edit(job) for job_id, job in jobs.items()}
        known = [
            r for r in reports if r.status.job_id in jobs and jobs[r.status.job_id].device_id == r.device_id
        ]
        fresh = await store.add_seen(connection, [_identity(r.status) for r in known])
        outcomes = []
        for report in reports:
            edit = edits.get(report.status.job_id)
            if edit is None or edit.job.device_id != report.device_id:
                reason = f"there is no job {report.status.job_id} on {report.device_id}"
                outcomes.append(Outcome(report=report, verdict=Verdict.REJECTED, reason=reason))
            elif _identity(report.status) not in fresh:
                outcomes.append(Outcome(report=report, verdict=Verdict.DUPLICATE))
            else:
                fresh.discard(_identity(report.status))
                outcomes.append(_applied(edit, report))
        await self._save_all(connection, [edit for edit in edits.values() if edit.lines])
        return outcomes

    async def _locked(self, connection: Connection, job_id: str, expected_version: int) -> Edit:
        job = _found((await store.lock(connection, [job_id])).get(job_id), job_id)
        if job.version != expected_version:
            raise StaleVersion(f"job {job_id} has version {job.version}, not {expected_version}")
        if job.ended:
            raise Conflict(
                f"job {job_id} has ended as {job.state}",
                code="job_ended",
                advice="Nothing is left to be done; create a new job if one is needed.",
            )
        return Edit(job)

    async def _save(self, connection: Connection, edit: Edit) -> Job:
        saved = await store.update(connection, edit.job)
        if edit.job.now.read_back != edit.before.now.read_back:
            await store.set_read_back(connection, saved.job_id, edit.job.now.read_back)
        await store.add_history(connection, edit.lines)
        await self._outbox.add(connection, edit.events)
        if saved.state is not edit.before.state:
            log.info(
                "jobs.state_changed",
                job_id=saved.job_id,
                device_id=saved.device_id,
                from_state=edit.before.state,
                state=saved.state,
                version=saved.version,
            )
        return saved

    async def _save_all(self, connection: Connection, edits: Iterable[Edit]) -> None:
        for edit in edits:
            await self._save(connection, edit)


def _check_schedule(scheduled_at: datetime | None) -> None:
    if scheduled_at is not None and scheduled_at > datetime.now(UTC) + FARTHEST_SCHEDULE:
        raise Invalid(
            f"scheduled_at is more than {FARTHEST_SCHEDULE.days} days ahead",
            fields={"scheduled_at": "too far ahead"},
        )


def _identity(status: Status) -> tuple[str, str, str]:
    return status.job_id, status.message_id, status.status.value


def _applied(edit: Edit, report: Report) -> Outcome:
    state, revision = edit.job.state, edit.job.revision
    counted = edit.apply(report.status, report.store_no)
    return Outcome(
        report=report,
        verdict=Verdict.APPLIED if counted else Verdict.LATE,
        entered=edit.job.state if edit.job.state is not state else None,
        told_anew=edit.job.revision != revision,
    )


def _found(job: Job | None, job_id: str) -> Job:
    if job is None:
        raise NotFound(f"there is no job {job_id[:80]}", code="unknown_job")
    return job
