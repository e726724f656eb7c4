"""What reporting costs a truck: bytes written to its flash, how fast a backlog drains, a year offline."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiomqtt
import bcrypt

from cli.benches.report import Row, within
from control_plane.embedded.nats import EmbeddedNats, office_user, truck_user
from edge_agent.errors import OutboxFull
from edge_agent.office.mqtt_connection import NO_DELAY, Broker
from edge_agent.office.mqtt_link import MOST_IN_BATCH, MqttLink
from edge_agent.store.journal import Change, Entry, Report
from edge_agent.store.queue_bounds import QueueLimits
from edge_agent.store.store import Store
from shared import topics
from shared.ids import new_id
from shared.messages import MOST_STATUSES, Ack, Command, CommandTarget, Manifest, Sample, StatusBatch
from shared.states import Step, TruckStatus, UpdateState

DEVICE = "bench-truck"
BACKLOG = 100_000
WANTED_PER_S = 2000
WITHIN_S = 600.0
STATUSES = 1000
DAYS = 365
SAMPLES_A_DAY = 1440
FILE_ALLOWANCE = 8 * 1024 * 1024
"""Beside the queues: the write-ahead log (4 MiB, twice while it is copied) with the journal's pages."""
MIB = 1024 * 1024


@dataclass
class _Now:
    """A clock that the simulation moves."""

    at: datetime = datetime(2027, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.at


def bytes_per_1000_statuses() -> Row:
    """What 1000 step statuses cost from `tell` to the ack, in bytes given to the file system."""

    async def act(folder: Path) -> tuple[int, int]:
        async with Store.open(folder / "agent.db") as store:
            entry = await _job(store, 1)
            before, payload = _written(), 0
            for number in range(STATUSES):
                await store.tell(*entry.key, _step(number))
                if number % MOST_IN_BATCH == MOST_IN_BATCH - 1:
                    batch = await store.next_statuses(MOST_IN_BATCH)
                    payload += sum(len(one.to_json()) for one in batch)
                    await store.acked([one.message_id for one in batch])
            return _written() - before, payload

    with _folder() as folder:
        written, payload = asyncio.run(act(folder))
    return Row(
        case="journal.bytes_per_1000_statuses",
        value=written,
        unit="B",
        limit=payload,
        limit_is="the statuses themselves, as JSON",
        ratio=written / payload,
        goal="none",
        apart="log and database files, each status its own synced commit, acknowledged in batches of "
        f"{MOST_IN_BATCH}; without the file system's own metadata",
    )


def backlog_drain() -> Row:
    """Statuses a second, from the first connect until the last one is acknowledged and deleted."""
    with _folder() as folder:
        seconds = asyncio.run(_drain(folder))
    rate = BACKLOG / seconds
    return Row(
        case="backlog.drain",
        value=rate,
        unit="statuses/s",
        limit=WANTED_PER_S,
        limit_is="what is asked",
        ratio=rate / WANTED_PER_S,
        goal=">= limit",
        met=rate >= WANTED_PER_S,
        apart=f"{BACKLOG} statuses, batches of up to {MOST_STATUSES}, one under way; agent, broker "
        "and an office that only acknowledges share this machine",
    )


async def _drain(folder: Path) -> float:
    password = new_id()
    hashed = bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()
    users = [truck_user(DEVICE, hashed), office_user("office", hashed)]
    limits = QueueLimits(most_statuses=2 * BACKLOG, most_status_bytes=1024 * MIB)
    async with (
        EmbeddedNats(folder / "broker", users=users) as broker,
        Store.open(folder / "agent.db", limits=limits) as store,
        _office(broker.port, password),
    ):
        entry = await _job(store, 1)
        for begin in range(1, BACKLOG, 5000):
            changes = [Change(entry=entry, report=_step(n)) for n in range(begin, min(begin + 5000, BACKLOG))]
            await store.record(*changes)

        async def manifest() -> Manifest:
            seq = await store.next_manifest_seq()
            return Manifest(store_id=store.store_id, seq=seq, components=(), at=datetime.now(UTC))

        link = MqttLink(
            Broker(host="127.0.0.1", port=broker.port, device_id=DEVICE, password=password),
            store,
            agent_version="0",
            features=(),
            manifest=manifest,
        )
        begun_s = time.perf_counter()
        running = asyncio.create_task(link.run())
        try:
            async with asyncio.timeout(WITHIN_S):
                while await store.next_statuses(1):
                    await asyncio.sleep(0.02)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        return time.perf_counter() - begun_s


@asynccontextmanager
async def _office(port: int, password: str) -> AsyncIterator[None]:
    """Acknowledges every batch as soon as it is read."""
    async with aiomqtt.Client(
        "127.0.0.1",
        port,
        username="office",
        password=password,
        identifier=f"office-{new_id()}",
        socket_options=[NO_DELAY],
    ) as client:
        await client.subscribe(topics.status(DEVICE, "update"), qos=1)

        async def listen() -> None:
            async for message in client.messages:
                batch = StatusBatch.from_json(bytes(message.payload))
                ack = Ack(accepted=tuple(one.message_id for one in batch.statuses))
                await client.publish(topics.acks(DEVICE), ack.to_json(), qos=1)

        listening = asyncio.create_task(listen())
        try:
            yield
        finally:
            listening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await listening


def year_offline() -> Row:
    """Bytes on the disk at their most, in a year of jobs, retries and samples with nobody to tell."""
    limits = QueueLimits(write_every_s=3600)
    with _folder() as folder:
        most, lost = asyncio.run(_year(folder, limits))
    if lost:
        raise RuntimeError(f"{lost} ends of jobs were lost")
    bound = limits.disk_bytes + FILE_ALLOWANCE
    return within(
        "queue.year_offline",
        most / MIB,
        "MiB",
        limit=bound / MIB,
        limit_is="the queues' configured bytes, and 8 MiB of log and journal",
        apart=f"{DAYS} days, each 3 jobs, 200 repeated steps, {SAMPLES_A_DAY} samples; database and log "
        "files, all ends of jobs still there",
    )


async def _year(folder: Path, limits: QueueLimits) -> tuple[int, int]:
    now = _Now()
    most = ended = 0
    async with Store.open(folder / "agent.db", now=now, limits=limits) as store:
        for day in range(DAYS):
            for number in range(3):
                try:
                    entry = await _job(store, day * 3 + number)
                except OutboxFull:
                    continue
                steps = [Change(entry=entry, report=_step(n)) for n in range(200 // 3)]
                end = Report(status=TruckStatus.DONE, step=Step.FINISHED, progress=100)
                await store.record(*steps, Change(entry=replace(entry, state=UpdateState.DONE), report=end))
                ended += 1
            for minute in range(SAMPLES_A_DAY):
                at = now.at + timedelta(minutes=minute)
                store.telemetry(Sample(name="battery", value=24.0 + minute % 7, unit="V", at=at))
            await store.flush()
            now.at += timedelta(days=1)
            most = max(most, sum(path.stat().st_size for path in folder.glob("agent.db*")))
        kept = 0
        while batch := await store.next_statuses():
            kept += sum(one.status is TruckStatus.DONE for one in batch)
            await store.acked([one.message_id for one in batch])
    return most, ended - kept


async def _job(store: Store, number: int) -> Entry:
    target = CommandTarget(
        component="brakes", version="2.0.0", sha256="a" * 64, length=65536, document="{}", url="http://o/i"
    )
    job_id = f"{number:032x}"
    command = Command(
        command_id=new_id(), job_id=job_id, attempt=1, revision=1, kind="install", targets=(target,)
    )
    await store.take_command(command)
    entry = await store.entry(job_id, 1)
    if entry is None:
        raise RuntimeError("the store did not take a command")
    return entry


def _step(number: int) -> Report:
    """A step as an update of weeks tells it: each with a sentence."""
    step = (Step.WAITING, Step.RETRYING, Step.STRANDED)[number % 3]
    return Report(
        status=TruckStatus.FLASHING,
        step=step,
        progress=number % 100,
        reason=f"the parking brake is off, the engine runs at {600 + number % 900} 1/min",
    )


def _written() -> int:
    """Bytes that this process gave to write calls (proc(5), io)."""
    for line in Path("/proc/self/io").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(": ")
        if name == "wchar":
            return int(value)
    raise RuntimeError("this kernel does not count what a process writes")


@contextmanager
def _folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="quarry-bench-", dir=os.environ.get("TMPDIR")))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
