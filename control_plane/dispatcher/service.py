"""The commands table for the worker beside it and for the event processor.

Rows are always locked after their jobs, as every room does it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from control_plane.db import Connection
from control_plane.devices.service import DeviceService
from control_plane.director.release_jobs import ReleaseJobs
from control_plane.dispatcher import store
from control_plane.dispatcher.store import CommandRow
from control_plane.firmware.deltas import DeltaRecord
from control_plane.firmware.service import Firmware, FirmwareService
from control_plane.jobs.model import Job
from control_plane.jobs.service import JobService, Outcome, Verdict
from shared.backoff import Backoff
from shared.ids import new_id
from shared.logs import get_log
from shared.messages import CommandKind, Error, Feature
from shared.states import JOB_TERMINAL, STATUS_TO_JOB, Step

log = get_log("control_plane.dispatcher")

OFFLINE_RECHECK_S = 60.0
"""How long a command of a truck that is offline is let be; its hello ends that at once."""


@dataclass(frozen=True, kw_only=True)
class Outgoing:
    """A command that goes out now, with what it is built from: signed documents by their image's SHA-256,
    and by component the delta from what it was last known to run.
    """

    row: CommandRow
    job: Job
    documents: Mapping[str, bytes]
    deltas: Mapping[str, DeltaRecord] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What goes out now. `looked_at` counts all that were due, also those that stay."""

    outgoing: tuple[Outgoing, ...]
    looked_at: int
    wrote_events: bool


class CommandService:
    """What trucks must be told: written by events and a sweep, read by the sender."""

    def __init__(
        self,
        jobs: JobService,
        devices: DeviceService,
        firmware: FirmwareService,
        *,
        resend: Backoff,
        releases: ReleaseJobs | None = None,
    ) -> None:
        """`releases` is the director's, None in an office that directs none."""
        self._releases = releases
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
        ask the truck. A firmware or release that was withdrawn since the job was made is not sent.
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
        telling = [jobs[row.job_id] for row in left if row.kind is not CommandKind.CANCEL]
        refused, documents = await self._looked_at(connection, telling)
        going = [row for row in left if row.job_id not in refused]
        deltas = await self._deltas(connection, [job for job in telling if job.job_id not in refused])
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
                    documents=documents.get(row.job_id, {}),
                    deltas=deltas.get(row.job_id, {}),
                )
                for row in going
            ),
            looked_at=len(ids),
            wrote_events=bool(going or refused),
        )

    async def _deltas(self, connection: Connection, jobs: Sequence[Job]) -> dict[str, dict[str, DeltaRecord]]:
        """By job_id and component, shorter ways for trucks that said at hello that they can go them."""
        holds = await self._devices.installed_images(
            connection, {job.device_id for job in jobs}, feature=Feature.DELTA
        )
        pairs = {
            (job.job_id, t.component): (base, t.sha256)
            for job in jobs
            for t in job.targets
            if (base := holds.get((job.device_id, t.component))) is not None
        }
        found = await self._firmware.deltas.between(connection, set(pairs.values()))
        offered: dict[str, dict[str, DeltaRecord]] = {}
        for (job_id, component), pair in pairs.items():
            if (delta := found.get(pair)) is not None and delta.format == Feature.DELTA:
                offered.setdefault(job_id, {})[component] = delta
        return offered

    async def _looked_at(
        self, connection: Connection, jobs: Sequence[Job]
    ) -> tuple[dict[str, Error], dict[str, Mapping[str, bytes]]]:
        """By job_id: why it must not be sent (any more), and the documents of those that may be."""
        ids = {t.firmware_id for job in jobs for t in job.targets if t.firmware_id is not None}
        firmwares = await self._firmware.of_ids(connection, ids)
        refused: dict[str, Error] = {}
        documents: dict[str, Mapping[str, bytes]] = {}
        for job in jobs:
            if job.release_path is not None:
                now = None if self._releases is None else await self._releases.now(connection, job)
                why = "this office directs no releases any more" if now is None else now.withdrawn
                if why is not None:
                    refused[job.job_id] = _not_sent(job, why)
                elif now is not None:
                    documents[job.job_id] = now.documents
            elif (error := _withdrawn(job, firmwares)) is not None:
                refused[job.job_id] = error
            else:
                documents[job.job_id] = {
                    t.sha256: firmwares[t.firmware_id].document for t in job.targets if t.firmware_id
                }
        return refused, documents

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
        firmware = firmwares.get(target.firmware_id or "")
        if firmware is not None and firmware.state == "published":
            continue
        why = (firmware.withdrawn_why if firmware is not None else None) or "no reason given"
        return _not_sent(job, f"{target.kind} {target.version} was withdrawn: {why}")
    return None


def _not_sent(job: Job, why: str) -> Error:
    log.warning("dispatcher.withdrawn_not_sent", job_id=job.job_id, why=why[:200])
    return Error(code="withdrawn", advice="Choose another version.", text=why[:2000])
