"""Takes what trucks say over into the office's database, and only then acknowledges it.

A batch is one transaction: stores, hellos, manifests, statuses, dead letters. One that the database
refuses is halved until the bad item is found, which becomes a dead letter and is acked as rejected,
so that no truck repeats it for ever. Acks follow the commit, for duplicates too; a crash before the
ack costs a repeat, never a status.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from control_plane.bus.base import BusMessage
from control_plane.db import Connection, Database, is_data_error
from control_plane.dead_letters.service import DeadLetter, DeadLetterService
from control_plane.devices.service import DeviceService
from control_plane.director.service import DirectorService
from control_plane.dispatcher.service import CommandService
from control_plane.dispatcher.worker import Publisher
from control_plane.errors import Conflict
from control_plane.event_processor.acks import Acks, send
from control_plane.event_processor.items import Bad, Item, bad_item, take_apart
from control_plane.jobs.service import JobService, Outcome, Report, Verdict
from control_plane.local_installs.service import LocalInstallService
from control_plane.loops import Wake
from control_plane.metrics import Metrics
from shared.errors import BadMessage
from shared.ids import is_local_job
from shared.logs import get_log
from shared.messages import Hello, Manifest, Status
from shared.states import JOB_TERMINAL
from shared.topics import DEVICE_STATUS

log = get_log("control_plane.event_processor")

GROUP = "status-processor-group"
TOPICS = (DEVICE_STATUS.name,)
SOURCE = "status"
"""The source of this room's dead letters."""


@dataclass(kw_only=True)
class _Done:
    """What a committed transaction has taken over; `local`: of jobs that began at trucks."""

    outcomes: list[Outcome] = field(default_factory=list)
    local: list[Outcome] = field(default_factory=list)
    bad: list[Bad] = field(default_factory=list)
    greeted: bool = False


@dataclass(kw_only=True)
class EventProcessor:
    """The consumer of device.status. `outbox` and `dispatcher` are woken after a commit; `director`, if
    there is one, hears which metadata trucks trust.

    `reached` is told the names of points where a test may end the process.
    """

    db: Database
    devices: DeviceService
    jobs: JobService
    local_installs: LocalInstallService
    commands: CommandService
    dead_letters: DeadLetterService
    mqtt: Publisher
    metrics: Metrics
    outbox: Wake
    dispatcher: Wake
    director: DirectorService | None = None
    reached: Callable[[str], None] = lambda _: None

    def __post_init__(self) -> None:
        self.dead_letters.register(SOURCE, self)

    async def handle(self, messages: Sequence[BusMessage]) -> None:
        """Take a batch over, then acknowledge it. Raises Unavailable when the database is away."""
        items, bad = take_apart(messages)
        # By device, so that concurrent batches lock in one order; stable, so a device's stays.
        items.sort(key=lambda item: item.device_id)
        done = await self._take_over(items, bad)
        self.reached("event_processor.before_ack")
        self._count(done)
        acks = Acks()
        for one in done.bad:
            if one.message_id is not None:
                acks.reject(one.device_id, one.message_id, one.reason)
        for outcome in (*done.outcomes, *done.local):
            if outcome.verdict is not Verdict.REJECTED:
                acks.accept(outcome.report.device_id, outcome.report.status.message_id)
        if any(outcome.verdict is Verdict.APPLIED for outcome in done.outcomes):
            self.outbox.set()
        if done.greeted or any(outcome.told_anew for outcome in done.outcomes):
            self.dispatcher.set()
        await send(acks, self.mqtt)

    async def replay(self, connection: Connection, letter: DeadLetter) -> None:
        """A dead status is applied once more. Raises Conflict when it still can't be."""
        try:
            status = Status.from_json(letter.raw)
        except BadMessage as error:
            raise Conflict(f"still not readable: {error.message}", code="not_replayable") from error
        store_id = str(letter.reference.get("store_id"))
        item = Item(
            device_id=str(letter.device_id),
            store_id=store_id,
            received_at=letter.created_at,
            content=status,
            raw=letter.raw,
        )
        done = await self._act(connection, [item], [], keep_letters=False)
        if done.bad:
            raise Conflict(done.bad[0].reason, code="not_replayable")

    async def drop(self, connection: Connection, letter: DeadLetter) -> None:
        """Nothing waits behind a dead status."""

    async def _take_over(self, items: Sequence[Item], bad: Sequence[Bad]) -> _Done:
        """Commit items and dead letters; halves what the database refuses until the bad one is found."""
        try:
            return await self.db.run(lambda connection: self._act(connection, items, bad))
        except Exception as error:
            if not is_data_error(error) or not items:
                raise
            reason = f"the database refuses it: {error}"
        if len(items) == 1:
            return await self._take_over([], [*bad, bad_item(items[0], reason)])
        middle = len(items) // 2
        first = await self._take_over(items[:middle], bad)
        second = await self._take_over(items[middle:], [])
        return _Done(
            outcomes=first.outcomes + second.outcomes,
            local=first.local + second.local,
            bad=first.bad + second.bad,
            greeted=first.greeted or second.greeted,
        )

    async def _act(
        self,
        connection: Connection,
        items: Sequence[Item],
        unread: Sequence[Bad],
        *,
        keep_letters: bool = True,
    ) -> _Done:
        """Everything of one transaction. Locks devices and local installs, then jobs, then commands."""
        done = _Done(bad=list(unread))
        numbers = await self.devices.store_numbers(connection, {(i.device_id, i.store_id) for i in items})
        # First, for a new row looks at its device's row, which is locked before any other.
        done.local = await self.local_installs.apply(connection, _local_reports(items, numbers))
        reports: list[Report] = []
        of_report: list[Item] = []
        hellos: list[tuple[str, Hello]] = []
        for item in items:
            store_no = numbers.get((item.device_id, item.store_id))
            if store_no is None:
                done.bad.append(
                    bad_item(item, f"there is no device {item.device_id}, or it has too many stores")
                )
                continue
            match item.content:
                case Status() as status if is_local_job(status.job_id):
                    pass
                case Status() as status:
                    reports.append(Report(device_id=item.device_id, store_no=store_no, status=status))
                    of_report.append(item)
                case Hello() as hello:
                    await self.devices.heard(connection, item.device_id, hello, item.received_at)
                    if self.director is not None and hello.metadata_versions:
                        await self.director.heard(connection, item.device_id, hello.metadata_versions)
                    if hello.online:
                        hellos.append((item.device_id, hello))
                case Manifest() as manifest:
                    await self.devices.take_manifest(connection, item.device_id, manifest)
        done.outcomes = await self.jobs.apply(connection, reports)
        done.bad += [
            bad_item(item, outcome.reason)
            for item, outcome in zip(of_report, done.outcomes, strict=True)
            if outcome.verdict is Verdict.REJECTED
        ]
        await self.commands.answered(connection, done.outcomes)
        for device_id, hello in hellos:
            await self.commands.heard(connection, device_id, hello.revisions)
        done.greeted = bool(hellos)
        if keep_letters:
            for one in done.bad:
                await self._keep(connection, one)
        return done

    async def _keep(self, connection: Connection, bad: Bad) -> None:
        await self.dead_letters.add(
            connection,
            source=SOURCE,
            device_id=bad.device_id,
            job_id=bad.job_id,
            message_id=bad.letter_id,
            reason=bad.reason,
            raw=bad.raw,
            reference={"kind": bad.kind, "store_id": bad.store_id},
        )

    def _count(self, done: _Done) -> None:
        counts = Counter(outcome.verdict.value for outcome in (*done.outcomes, *done.local))
        rejected = sum(bad.message_id is not None for bad in done.bad)
        counts[Verdict.REJECTED.value] = rejected
        for verdict, count in counts.items():
            self.metrics.statuses_total.labels(outcome=verdict).inc(count)
        for outcome in done.outcomes:
            if outcome.entered in JOB_TERMINAL:
                self.metrics.jobs_finished_total.labels(state=outcome.entered.value).inc()


def _local_reports(items: Sequence[Item], numbers: Mapping[tuple[str, str], int]) -> list[Report]:
    """Statuses of jobs that began at trucks; those of stores that have no number become dead letters."""
    return [
        Report(device_id=item.device_id, store_no=store_no, status=item.content)
        for item in items
        if isinstance(item.content, Status)
        and is_local_job(item.content.job_id)
        and (store_no := numbers.get((item.device_id, item.store_id))) is not None
    ]
