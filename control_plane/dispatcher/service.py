"""The commands table for the worker beside it and for the event processor.

Rows are always locked after their jobs, as every room does it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from control_plane.db import Connection
from control_plane.devices.service import DeviceService
from control_plane.dispatcher import store
from control_plane.dispatcher.store import CommandRow
from control_plane.firmware.service import Firmware, FirmwareService
from control_plane.jobs.model import Job
from control_plane.jobs.service import JobService, Outcome, Verdict
from shared.backoff import Backoff
from shared.ids import new_id
from shared.logs import get_log
from shared.messages import CommandKind, Error
from shared.states import JOB_TERMINAL, STATUS_TO_JOB, Step

log = get_log("control_plane.dispatcher")

OFFLINE_RECHECK_S = 60.0
"""How long a command of a truck that is offline is let be; its hello ends that at once."""


@dataclass(frozen=True, kw_only=True)
class Outgoing:
    """A command that goes out now, with what it is built from."""

    row: CommandRow
    job: Job
    firmwares: Mapping[str, Firmware]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What goes out now. `looked_at` counts all that were due, also those that stay."""

    outgoing: tuple[Outgoing, ...]
    looked_at: int
    wrote_events: bool


class CommandService:
    """What trucks must be told: written by events and a sweep, read by the sender."""

    def __init__(
        self, jobs: JobService, devices: DeviceService, firmware: FirmwareService, *, resend: Backoff
    ) -> None:
        self._jobs = jobs
        self._devices = devices
        self._firmware = firmware
        self._resend = resend

    async def take_over(
        self, connection: Connection, limit: int, job_ids: Sequence[str] | None = None
    ) -> int:
        """Write rows for jobs (of `job_ids`, when given) whose newest revision has none; how many."""
        jobs = await self._jobs.take_uncommanded(connection, limit, job_ids)
        await store.put(
            connection,
            [
                CommandRow(
                    job_id=job.job_id,
                    device_id=job.device_id,
                    command_id=new_id(),
                    attempt=job.now.attempt,
                    revision=job.revision,
                    kind=job.command_kind,
                    tries=0,
                )
                for job in jobs
            ],
        )
        return len(jobs)

    async def claim(self, connection: Connection, limit: int) -> Claim:
        """Decide about at most `limit` due commands; those that go out count as sent from here on.

        The job is marked dispatched before its command leaves: a cancel that comes in between must
        ask the truck. A firmware that was withdrawn since the job was made is not sent.
        """
        ids = await store.due(connection, limit)
        jobs = await self._jobs.lock(connection, ids)
        rows = await store.lock_due(connection, ids)
        # Asked after the rows were locked: a hello that comes now waits for them and then wakes them.
        online = await self._devices.which_online(connection, [row.device_id for row in rows])
        ended = [row.job_id for row in rows if jobs[row.job_id].ended]
        away = [r.job_id for r in rows if r.device_id not in online and r.job_id not in ended]
        left = [
            row
            for row in rows
            # A row that lags behind its job is replaced by the sweep first.
            if row.job_id not in {*ended, *away} and row.revision == jobs[row.job_id].revision
        ]
        firmwares = await self._firmware.of_ids(
            connection, {t.firmware_id for row in left for t in jobs[row.job_id].targets}
        )
        refused = {
            row.job_id: error
            for row in left
            if row.kind is not CommandKind.CANCEL and (error := _withdrawn(jobs[row.job_id], firmwares))
        }
        going = [row for row in left if row.job_id not in refused]
        await self._jobs.refuse(connection, refused)
        await self._jobs.mark_dispatched(connection, [row.job_id for row in going])
        await store.remove(connection, ended)
        await store.postpone(connection, [*away, *refused], OFFLINE_RECHECK_S)
        await store.sent(connection, {row.job_id: self._resend.delay_s(row.tries) for row in going})
        return Claim(
            outgoing=tuple(
                Outgoing(
                    row=row,
                    job=jobs[row.job_id],
                    firmwares={t.firmware_id: firmwares[t.firmware_id] for t in jobs[row.job_id].targets},
                )
                for row in going
            ),
            looked_at=len(ids),
            wrote_events=bool(going or refused),
        )

    async def next_due_s(self, connection: Connection) -> float | None:
        """Seconds until the next command is due; None when none waits."""
        return await store.next_due_s(connection)

    async def unsent(self, connection: Connection, command_ids: Sequence[str], delay_s: float) -> None:
        """These did not go out after all: they are due again after `delay_s`."""
        await store.unsent(connection, command_ids, delay_s)

    async def remove(self, connection: Connection, job_ids: Sequence[str]) -> None:
        """These jobs have ended: there is nothing more to tell."""
        await store.remove(connection, job_ids)

    async def heard(self, connection: Connection, device_id: str, revisions: Mapping[str, int]) -> None:
        """A truck said at hello which revision it has of which job: what it lacks is due at once."""
        await store.heard(connection, device_id, revisions)

    async def answered(self, connection: Connection, outcomes: Sequence[Outcome]) -> None:
        """Statuses arrived: what they show the truck to have is not sent again."""
        answers = [
            (outcome.report.status.job_id, kinds) for outcome in outcomes if (kinds := _answers(outcome))
        ]
        await store.answered(connection, sorted(answers))


def _answers(outcome: Outcome) -> tuple[CommandKind, ...]:
    """The kinds of command that a status answers, whatever else it says."""
    status = outcome.report.status
    if outcome.verdict is Verdict.REJECTED:
        return ()
    if STATUS_TO_JOB[status.status] in JOB_TERMINAL:
        return (CommandKind.INSTALL, CommandKind.CANCEL, CommandKind.URL)
    if status.step == Step.TOO_LATE:
        return (CommandKind.INSTALL, CommandKind.CANCEL)
    # Only what is newer than the asking shows that the fresh URL has come.
    if outcome.verdict is Verdict.APPLIED and status.step != Step.URL_EXPIRED:
        return (CommandKind.INSTALL, CommandKind.URL)
    return (CommandKind.INSTALL,)


def _withdrawn(job: Job, firmwares: Mapping[str, Firmware]) -> Error | None:
    """Why a job's firmware must not be sent; None when it may."""
    for target in job.targets:
        firmware = firmwares.get(target.firmware_id)
        if firmware is not None and firmware.state == "published":
            continue
        why = (firmware.withdrawn_why if firmware is not None else None) or "no reason given"
        log.warning("dispatcher.withdrawn_not_sent", job_id=job.job_id, firmware_id=target.firmware_id)
        return Error(
            code="withdrawn",
            advice="Choose another version.",
            text=f"{target.kind} {target.version} was withdrawn: {why}"[:2000],
        )
    return None
