"""The rooms that carry a job, on a real database; the broker is a list unless a test starts one."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiomqtt
import httpx
import pytest

from control_plane.access.certificates_api import BrokerForTrucks
from control_plane.access.service import AccessService
from control_plane.app import Office
from control_plane.bus.base import BusMessage
from control_plane.config import OfficeConfig
from control_plane.db import Database
from control_plane.dead_letters.service import DeadLetterService
from control_plane.devices.service import DeviceService, NewComponent
from control_plane.dispatcher.pace import Pace
from control_plane.dispatcher.service import CommandService
from control_plane.dispatcher.worker import Dispatcher
from control_plane.errors import Unavailable
from control_plane.event_processor.worker import EventProcessor
from control_plane.firmware.service import Firmware, FirmwareService
from control_plane.http_app import Rooms, make_app
from control_plane.jobs.model import Job
from control_plane.jobs.service import JobService
from control_plane.local_installs.service import LocalInstallService
from control_plane.loops import Wake
from control_plane.metrics import Metrics
from control_plane.outbox.service import SOURCE as OUTBOX_SOURCE
from control_plane.outbox.service import OutboxService
from control_plane.storage.folder import FolderFiles
from control_plane.storage.urls import UrlSigner
from shared import topics
from shared.backoff import Backoff
from shared.ids import new_id
from shared.messages import (
    Ack,
    Command,
    Error,
    FromDevice,
    Hello,
    Status,
    StatusBatch,
    TargetResult,
)
from shared.release import FirmwareSpec
from shared.states import TruckStatus
from shared.trust.document import make_document
from shared.trust.keys import load_signer, new_key
from shared.wire import Wire

KIND, HARDWARE, COMPONENT = "brake-controller", "rev-b", "brakes"


@dataclass(kw_only=True)
class Air:
    """What went out by MQTT, in order; `connected` and `failing` say how the broker does."""

    connected: bool = True
    failing: bool = False
    sent: list[tuple[str, bytes]] = field(default_factory=list)
    before_publish: Callable[[], Awaitable[None]] | None = None

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        if self.before_publish is not None:
            await self.before_publish()
        if self.failing or not self.connected:
            raise Unavailable("the broker is away")
        self.sent.append((topic, payload))

    def commands(self, device_id: str = "truck-001") -> list[Command]:
        topic = topics.commands(device_id)
        return [Command.from_json(payload) for to, payload in self.sent if to == topic]

    def acks(self, device_id: str = "truck-001") -> list[Ack]:
        topic = topics.acks(device_id)
        return [Ack.from_json(payload) for to, payload in self.sent if to == topic]


@dataclass(kw_only=True)
class Desk:
    """Everything that a test of these rooms needs, wired as in the office."""

    db: Database
    letters: DeadLetterService
    devices: DeviceService
    firmwares: FirmwareService
    jobs: JobService
    commands: CommandService
    dispatcher: Dispatcher
    processor: EventProcessor
    metrics: Metrics
    air: Air
    outbox: Wake
    folder: Path
    private: bytes

    async def add_truck(self, device_id: str = "truck-001", **component: str) -> None:
        fields = {"component": COMPONENT, "kind": KIND, "hardware": HARDWARE} | component
        async with self.db.transaction() as connection:
            await self.devices.create(
                connection, device_id=device_id, components=[NewComponent(**fields)], by="test"
            )

    async def publish(self, version: str = "1.1.0", **more: Any) -> Firmware:
        image = f"image of {version} {more}".encode()
        fields: dict[str, Any] = {
            "kind": KIND,
            "hardware": (HARDWARE,),
            "version": version,
            "release_counter": 1,
            "length": len(image),
            "sha256": hashlib.sha256(image).hexdigest(),
        }
        spec = FirmwareSpec(**(fields | more))
        path = self.folder / f"{secrets.token_hex(4)}.bin"
        path.write_bytes(image)
        document = make_document(spec, load_signer(self.private), datetime.now(UTC) + timedelta(days=30))
        firmware, _ = await self.firmwares.publish(document, path, notes="", by="test")
        return firmware

    async def order(self, device_id: str = "truck-001", **more: Any) -> Job:
        wanted = {"component": COMPONENT, "version": "1.1.0", "scheduled_at": None, "by": "anna"} | more
        return await self.db.run(lambda c: self.jobs.create(c, device_id=device_id, **wanted))

    async def ready_job(self, device_id: str = "truck-001") -> Job:
        """A truck, a firmware, and a job whose time has come."""
        await self.add_truck(device_id)
        await self.publish()
        job = await self.order(device_id)
        await self.jobs.move_due(10)
        return await self.jobs.get(job.job_id)

    async def hello(
        self,
        device_id: str = "truck-001",
        *,
        online: bool = True,
        store_id: str = "store-1",
        **revisions: int,
    ) -> None:
        hello = Hello(
            online=online,
            store_id=store_id,
            agent_version="0.1.0",
            features=("install", "cancel", "fresh-url", "doc-ed25519"),
            revisions=revisions,
        )
        await self.say("hello", hello, device_id)

    async def say(self, kind: str, message: Wire | bytes, device_id: str = "truck-001") -> None:
        """One message of a truck, straight to the event processor."""
        await self.processor.handle([self.from_device(kind, message, device_id)])

    def from_device(self, kind: str, message: Wire | bytes, device_id: str = "truck-001") -> BusMessage:
        raw = message if isinstance(message, bytes) else message.to_json()
        outer = FromDevice(
            device_id=device_id, kind=kind, payload=raw.decode("latin-1"), received_at=datetime.now(UTC)
        )
        return BusMessage(
            topic=topics.DEVICE_STATUS.name, key=device_id, event_id=new_id(), payload=outer.to_json()
        )

    def status(self, job: Job | str, seq: int, status: str, step: str | None = None, **more: Any) -> Status:
        """A status as an agent writes it; `done` reads back what the job wanted."""
        targets = None
        if status == "done" and isinstance(job, Job):
            targets = tuple(
                TargetResult(component=t.component, version=t.version, sha256=t.sha256) for t in job.targets
            )
        if status == "error":
            more = {"error": Error(code="flash_failed", text="it did not work")} | more
        fields: dict[str, Any] = {
            "message_id": f"m-{seq}-{status}",
            "job_id": job if isinstance(job, str) else job.job_id,
            "attempt": 1,
            "seq": seq,
            "status": TruckStatus(status),
            "step": step or {"done": "finished", "flashing": "writing"}.get(status, status),
            "at": datetime(2026, 11, 25, 4, 0, seq % 60, tzinfo=UTC),
            "targets": targets,
        }
        return Status(**(fields | more))

    async def report(
        self, *statuses: Status, device_id: str = "truck-001", store_id: str = "store-1"
    ) -> None:
        await self.say("update", StatusBatch(store_id=store_id, statuses=statuses), device_id)

    async def events(self, job_id: str) -> list[tuple[str, str, str, int]]:
        """(event_type, topic, key, version) of a job in the order in which they will leave."""
        rows = await self.db.fetch(
            "SELECT event_type, topic, key, job_version FROM event_outbox"
            " WHERE job_id = $1 ORDER BY outbox_id",
            job_id,
        )
        return [tuple(row) for row in rows]

    async def row(self, sql: str, *args: Any) -> dict[str, Any]:
        [row] = await self.db.fetch(sql, *args)
        return dict(row)

    async def make_due(self) -> None:
        """As if every wait of the commands had passed."""
        async with self.db.transaction() as connection:
            await connection.execute("UPDATE commands SET next_try_at = now() - interval '1 s'")

    async def count(self, table: str) -> int:
        count: int = (await self.row(f"SELECT count(*) AS n FROM {table}"))["n"]
        return count


@pytest.fixture
def desk(
    database: Database,
    devices: DeviceService,
    firmwares: FirmwareService,
    files: FolderFiles,
    tmp_path: Path,
) -> Desk:
    outbox = OutboxService()
    letters = DeadLetterService(database)
    letters.register(OUTBOX_SOURCE, outbox)
    jobs = JobService(database, devices, firmwares, outbox)
    commands = CommandService(jobs, devices, firmwares, resend=Backoff(first_s=5.0, most_s=300.0))
    air, metrics, wake, dispatcher_wake = Air(), Metrics(), Wake(), Wake()
    private, _ = new_key()
    return Desk(
        db=database,
        letters=letters,
        devices=devices,
        firmwares=firmwares,
        jobs=jobs,
        commands=commands,
        dispatcher=Dispatcher(
            db=database,
            service=commands,
            files=files,
            mqtt=air,
            pace=Pace(rate_per_s=1000.0, burst=1000),
            metrics=metrics,
            wake=dispatcher_wake,
            outbox=wake,
        ),
        processor=EventProcessor(
            db=database,
            devices=devices,
            jobs=jobs,
            local_installs=LocalInstallService(database),
            commands=commands,
            dead_letters=letters,
            mqtt=air,
            metrics=metrics,
            outbox=wake,
            dispatcher=dispatcher_wake,
        ),
        metrics=metrics,
        air=air,
        outbox=wake,
        folder=tmp_path,
        private=private,
    )


@pytest.fixture
async def office_api(
    desk: Desk, access: AccessService, files: FolderFiles, signer: UrlSigner, admin_token: str
) -> AsyncIterator[httpx.AsyncClient]:
    """The office's whole HTTP application, asked by its operator."""
    rooms = Rooms(
        db=desk.db,
        access=access,
        devices=desk.devices,
        firmware=desk.firmwares,
        jobs=desk.jobs,
        local_installs=desk.processor.local_installs,
        letters=desk.letters,
        files=files,
        signer=signer,
        metrics=desk.metrics,
        outbox=desk.outbox,
        broker=BrokerForTrucks(host="broker.test", port=1883),
    )
    transport = httpx.ASGITransport(app=make_app(rooms, lambda: {"outbox": True}))
    async with httpx.AsyncClient(
        transport=transport,
        base_url="http://office.test",
        headers={"Authorization": f"Bearer {admin_token}"},
    ) as client:
        yield client


class RawTruck:
    """A truck that is only an MQTT client and a token: what it says is up to the test."""

    def __init__(self, device_id: str, api: httpx.AsyncClient) -> None:
        self.device_id = device_id
        self.api = api
        self.password = secrets.token_urlsafe(32)
        self.host, self.port = "", 0
        self.commands: list[Command] = []
        self.acks: list[Ack] = []
        self._client: aiomqtt.Client | None = None

    async def enrol(self) -> None:
        component = {"component": COMPONENT, "kind": KIND, "hardware": HARDWARE}
        made = await self.api.post(
            "/api/v1/devices", json={"device_id": self.device_id, "components": [component]}
        )
        assert made.status_code == 201, made.text
        token = (await self.api.post(f"/api/v1/devices/{self.device_id}/enrolment-tokens")).json()["token"]
        answer = await self.api.post(
            "/api/v1/enrolments",
            json={
                "enrolment_token": token,
                "http_token": secrets.token_urlsafe(32),
                "mqtt_password": self.password,
            },
        )
        assert answer.status_code == 200, answer.text
        self.host, self.port = answer.json()["mqtt_host"], answer.json()["mqtt_port"]

    @asynccontextmanager
    async def online(self, **revisions: int) -> AsyncIterator[RawTruck]:
        will = Hello(online=False, store_id="store-1", agent_version="0.1.0")
        async with aiomqtt.Client(
            self.host,
            self.port,
            username=self.device_id,
            password=self.password,
            identifier=self.device_id,
            will=aiomqtt.Will(topics.status(self.device_id, "hello"), will.to_json(), qos=1, retain=True),
        ) as self._client:
            for topic in topics.truck_reads(self.device_id):
                await self._client.subscribe(topic, qos=1)
            reading = asyncio.create_task(self._read())
            hello = Hello(online=True, store_id="store-1", agent_version="0.1.0", revisions=revisions)
            await self.say("hello", hello, retain=True)
            try:
                yield self
            finally:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)

    async def lose_link(self) -> None:
        """The connection breaks without a word, so that the broker speaks the last will."""
        assert self._client is not None
        sock = self._client._client.socket()
        assert isinstance(sock, socket.socket)
        sock.shutdown(socket.SHUT_RDWR)
        await asyncio.wait({self._client._disconnected}, timeout=20)

    async def _read(self) -> None:
        assert self._client is not None
        async for message in self._client.messages:
            if str(message.topic) == topics.commands(self.device_id):
                self.commands.append(Command.from_json(bytes(message.payload)))
            else:
                self.acks.append(Ack.from_json(bytes(message.payload)))

    async def say(self, kind: str, message: Wire | bytes, *, retain: bool = False) -> None:
        assert self._client is not None
        raw = message if isinstance(message, bytes) else message.to_json()
        topic = topics.telemetry(self.device_id) if kind == "telemetry" else None
        await self._client.publish(topic or topics.status(self.device_id, kind), raw, qos=1, retain=retain)

    async def report(self, *statuses: Status) -> None:
        await self.say("update", StatusBatch(store_id="store-1", statuses=statuses))

    @property
    def accepted(self) -> set[str]:
        return {one for ack in self.acks for one in ack.accepted}

    @property
    def rejected(self) -> dict[str, str]:
        return {one.message_id: one.reason for ack in self.acks for one in ack.rejected}


@dataclass(kw_only=True)
class LiveOffice:
    """A whole office of this process, asked over its sockets."""

    office: Office
    api: httpx.AsyncClient

    def truck(self, device_id: str) -> RawTruck:
        return RawTruck(device_id, self.api)

    async def publish(self, version: str = "1.1.0") -> None:
        private, _ = new_key()
        image = f"image of {version}".encode()
        spec = FirmwareSpec(
            kind=KIND,
            hardware=(HARDWARE,),
            version=version,
            release_counter=1,
            length=len(image),
            sha256=hashlib.sha256(image).hexdigest(),
        )
        document = make_document(spec, load_signer(private), datetime.now(UTC) + timedelta(days=30))
        answer = await self.api.post("/api/v1/firmwares", files={"document": document, "image": image})
        assert answer.status_code == 201, answer.text

    async def order(self, device_id: str, version: str = "1.1.0") -> str:
        order = {"device_id": device_id, "component": COMPONENT, "version": version}
        answer = await self.api.post("/api/v1/jobs", json=order)
        assert answer.status_code == 201, answer.text
        job_id: str = answer.json()["job_id"]
        return job_id

    async def job(self, job_id: str) -> dict[str, Any]:
        job: dict[str, Any] = (await self.api.get(f"/api/v1/jobs/{job_id}")).json()
        return job

    async def until_state(self, job_id: str, state: str) -> None:
        async with asyncio.timeout(60):
            while (await self.job(job_id))["state"] != state:
                await asyncio.sleep(0.02)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.01)


@pytest.fixture
async def live(tmp_path: Path) -> AsyncIterator[LiveOffice]:
    """The office on free ports in a folder of its own."""
    config = OfficeConfig(data=tmp_path / "office", http_port=0, mqtt_port=0, resend_first_s=0.5)
    async with Office(config) as office:
        token = office.token_file.read_text().strip()
        async with httpx.AsyncClient(
            base_url=office.url,
            headers={"Authorization": f"Bearer {token}"},
            timeout=20,
            trust_env=False,
        ) as api:
            yield LiveOffice(office=office, api=api)
