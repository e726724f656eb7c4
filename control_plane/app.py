"""The composition root: opens every resource of the office, wires the rooms, runs the loops.

    async with Office(config) as office:
        ...  # everything answers: office.url, office.mqtt_port

Embedded mode: PostgreSQL, the MQTT broker, the bus and all roles in one process, its state in one
data folder that belongs to one office at a time. Whatever is opened is closed in reverse order, each
within its own time-out.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

from control_plane.access.accounts import OfficeAccount, load_office_account
from control_plane.access.authority import load_authority
from control_plane.access.broker_tls import BrokerCertificates, BrokerWatch, own_host
from control_plane.access.certificates import CertificateService
from control_plane.access.certificates_api import BrokerForTrucks
from control_plane.access.service import AccessService
from control_plane.bus.in_process import InProcessBus
from control_plane.config import OfficeConfig
from control_plane.data_folder import check_free, endpoints_told, listen, own_folder
from control_plane.db import Database
from control_plane.dead_letters.service import DeadLetterService
from control_plane.devices.service import DeviceService
from control_plane.director.room import DirectorRoom, Trust, make_room, read_trust
from control_plane.dispatcher import worker as dispatcher
from control_plane.dispatcher.pace import Pace
from control_plane.dispatcher.service import CommandService
from control_plane.embedded.nats import EmbeddedNats
from control_plane.embedded.postgres import EmbeddedPostgres
from control_plane.errors import Unavailable
from control_plane.event_processor import worker as event_processor
from control_plane.firmware.service import FirmwareService
from control_plane.http_app import Rooms, make_app, serving
from control_plane.jobs.service import JobService
from control_plane.local_installs.service import LocalInstallService
from control_plane.loops import Loop, Wake
from control_plane.metrics import Metrics
from control_plane.migrate import migrate
from control_plane.mqtt import Mqtt
from control_plane.mqtt_bridge.bridge import MqttBridge
from control_plane.outbox.leases import Lease
from control_plane.outbox.service import SOURCE as OUTBOX_SOURCE
from control_plane.outbox.service import OutboxService
from control_plane.outbox.worker import OutboxWorker
from control_plane.scheduler import worker as scheduler
from control_plane.storage.folder import FolderFiles
from control_plane.storage.urls import UrlSigner, load_url_key
from shared.backoff import Backoff
from shared.certificates import OFFICE_URI
from shared.errors import ConfigError
from shared.logs import get_log
from shared.topics import CENTRE_READS
from shared.trust.keys import BadKey, key_ring

log = get_log("control_plane.app")

CONNECTED_WITHIN_S = 20.0
GIVE_BACK_WITHIN_S = 2.0
CANCEL_AGAIN_AFTER_S = 2.0
MOST_CANCELS = 5
MOST_KEY_BYTES = 16 * 1024


@dataclass(frozen=True, kw_only=True)
class _Servers:
    """What this process brings along; `certificates` where the broker speaks TLS."""

    db: Database
    nats: EmbeddedNats
    account: OfficeAccount
    access: AccessService
    certificates: BrokerCertificates | None


class Office:
    """One office process as a resource: when it is entered, everything answers.

    `url` is how trucks and operators reach it, `token_file` holds the admin's token.
    """

    def __init__(self, config: OfficeConfig) -> None:
        self.config = config
        self.metrics = Metrics()
        self.url = ""
        self.mqtt_host = config.mqtt_host
        self.mqtt_port = 0
        self.token_file = config.data / "admin-token"
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Raises ConfigError, FolderBusy, ServerFailed, MigrationError or Unavailable; nothing runs then."""
        async with AsyncExitStack() as stack:
            await self._open(stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *error: Any) -> None:
        log.info("app.stopping")
        await self._stack.__aexit__(*error)

    async def _open(self, stack: AsyncExitStack) -> None:
        config = self.config
        # Read before anything is started: what is wrong with it must be said at once.
        trust = read_trust(config)
        stack.enter_context(own_folder(config.data))
        listener = listen("http_port", config.http_host, config.http_port)
        stack.callback(listener.close)
        self.url = config.public_url.rstrip("/") or _url(listener)
        if config.mqtt_port:
            check_free("mqtt_port", config.mqtt_host, config.mqtt_port)
        servers = await self._servers(stack)
        self.mqtt_port = servers.nats.port
        db = servers.db

        signer = UrlSigner(load_url_key(config.data / "url-key"), self.url)
        files = FolderFiles(config.data / "firmware", signer)
        await files.prepare()
        letters = DeadLetterService(db)
        outbox = OutboxService()
        letters.register(OUTBOX_SOURCE, outbox)
        devices = DeviceService(db)
        firmware = FirmwareService(db, files, keys=key_ring(_read_keys(config)))
        jobs = JobService(db, devices, firmware, outbox)
        director = self._director(trust, db=db, files=files, firmware=firmware, devices=devices, jobs=jobs)
        servers.access.gateway_keys = None if director is None else director.director
        commands = CommandService(
            jobs,
            devices,
            firmware,
            resend=Backoff(first_s=config.resend_first_s, most_s=config.resend_most_s, jitter=0.3),
            releases=None if director is None else director.release_jobs,
        )

        bus = InProcessBus(db, letters, most_waiting=config.bus_most_waiting)
        bridge = MqttBridge(bus=bus, db=db, dead_letters=letters, metrics=self.metrics)
        mqtt = Mqtt(
            host=own_host(servers.nats.host),
            port=servers.nats.port,
            username=servers.account.user,
            password=servers.account.password,
            client_id=servers.account.client_id,
            subscriptions=CENTRE_READS,
            handler=bridge.handle,
            metrics=self.metrics,
            tls=None if servers.certificates is None else servers.certificates.office_context,
        )
        lease = Lease(db=db, name="outbox")
        rooms = Rooms(
            db=db,
            access=servers.access,
            devices=devices,
            firmware=firmware,
            jobs=jobs,
            local_installs=LocalInstallService(db),
            letters=letters,
            files=files,
            signer=signer,
            metrics=self.metrics,
            outbox=Wake(),
            broker=BrokerForTrucks(
                host=config.mqtt_public_host or servers.nats.host,
                port=servers.nats.port,
                tls=servers.certificates is not None,
                ca="" if servers.certificates is None else servers.certificates.trucks_ca,
            ),
            director=director,
        )
        loops = self._wire(rooms, bus=bus, mqtt=mqtt, commands=commands, lease=lease)
        if servers.certificates is not None:
            watch = BrokerWatch(servers.certificates, servers.access)
            loops["broker.certificate"] = Loop(name="broker.certificate", step=watch.step)

        def parts() -> dict[str, bool]:
            return {
                **{name: loop.healthy for name, loop in loops.items()},
                **bus.health(),
                "mqtt": mqtt.connected,
            }

        stack.push_async_callback(_give_back, lease)
        works = {f"loop.{name}": loop.run for name, loop in loops.items()}
        await stack.enter_async_context(running({**works, "bus": bus.run, "mqtt": mqtt.run}))
        await _connected(mqtt)
        await stack.enter_async_context(serving(make_app(rooms, parts), listener))
        stack.enter_context(
            endpoints_told(
                config.data / "endpoints.json",
                url=self.url,
                mqtt_host=self.mqtt_host,
                mqtt_port=self.mqtt_port,
            )
        )
        log.info("app.started", url=self.url, mqtt_port=self.mqtt_port)

    async def _servers(self, stack: AsyncExitStack) -> _Servers:
        """PostgreSQL with this program's schema, and the broker with the accounts of that database."""
        config = self.config
        postgres = await stack.enter_async_context(EmbeddedPostgres(config.data / "postgres"))
        await migrate(postgres.dsn)
        db = await stack.enter_async_context(
            Database(postgres.dsn, most_connections=config.database_connections)
        )
        account = load_office_account(config.data / "office-mqtt.json")
        required = config.mqtt_client_certificates == "required"
        user = account.broker_user(OFFICE_URI if required else None)
        authority = load_authority(config)
        certificates = BrokerCertificates(config, authority) if config.mqtt_tls else None
        if certificates is not None:
            certificates.prepare()
        nats = await stack.enter_async_context(
            EmbeddedNats(
                config.data / "nats",
                users=[user],
                host=config.mqtt_host,
                port=config.mqtt_port or None,
                tls=None if certificates is None else certificates.tls,
            )
        )
        access = AccessService(
            db,
            nats,
            office=user,
            certificates=CertificateService(
                authority,
                life=timedelta(seconds=config.certificate_life_s),
                grace=timedelta(seconds=config.certificate_grace_s),
            ),
            by_certificate=required,
        )
        await access.ensure_admin_token(self.token_file)
        await access.load_accounts()
        return _Servers(db=db, nats=nats, account=account, access=access, certificates=certificates)

    def _director(
        self,
        trust: Trust | None,
        *,
        db: Database,
        files: FolderFiles,
        firmware: FirmwareService,
        devices: DeviceService,
        jobs: JobService,
    ) -> DirectorRoom | None:
        if trust is None:
            return None
        life = timedelta(seconds=self.config.director_life_s)
        return make_room(
            trust,
            db=db,
            files=files,
            deltas=firmware.deltas,
            devices=devices,
            jobs=jobs,
            metrics=self.metrics,
            life=life,
        )

    def _wire(
        self, rooms: Rooms, *, bus: InProcessBus, mqtt: Mqtt, commands: CommandService, lease: Lease
    ) -> dict[str, Loop]:
        """The workers and their loops by name; consumers are subscribed to the bus."""
        config = self.config
        scheduler_wake, dispatcher_wake = Wake(), Wake()
        outbox = OutboxWorker(
            db=rooms.db,
            bus=bus,
            dead_letters=rooms.letters,
            lease=lease,
            metrics=self.metrics,
            keep_sent_s=config.keep_sent_events_s,
            reached=config.reached,
        )
        scheduling = scheduler.Scheduler(jobs=rooms.jobs, wake=scheduler_wake, outbox=rooms.outbox)
        dispatching = dispatcher.Dispatcher(
            db=rooms.db,
            service=commands,
            files=rooms.files,
            mqtt=mqtt,
            pace=Pace(rate_per_s=config.send_rate_per_s, burst=config.send_burst),
            metrics=self.metrics,
            wake=dispatcher_wake,
            outbox=rooms.outbox,
            url_for_s=config.url_for_s,
            command_for_s=config.command_for_s,
            reached=config.reached,
        )
        processing = event_processor.EventProcessor(
            db=rooms.db,
            devices=rooms.devices,
            jobs=rooms.jobs,
            local_installs=rooms.local_installs,
            commands=commands,
            dead_letters=rooms.letters,
            mqtt=mqtt,
            metrics=self.metrics,
            outbox=rooms.outbox,
            dispatcher=dispatcher_wake,
            director=None if rooms.director is None else rooms.director.director,
            reached=config.reached,
        )
        bus.subscribe(scheduler.GROUP, scheduler.TOPICS, scheduling.handle)
        bus.subscribe(dispatcher.GROUP, dispatcher.TOPICS, dispatching.handle)
        bus.subscribe(event_processor.GROUP, event_processor.TOPICS, processing.handle)
        loops = (
            Loop(name="outbox", step=outbox.step, wake=rooms.outbox),
            Loop(name="outbox.clean", step=outbox.clean),
            Loop(name="scheduler", step=scheduling.step, wake=scheduler_wake),
            Loop(name="dispatcher", step=dispatching.step, wake=dispatcher_wake),
        )
        return {loop.name: loop for loop in loops}


@asynccontextmanager
async def running(works: Mapping[str, Callable[[], Coroutine[Any, Any, None]]]) -> AsyncIterator[None]:
    """Run these, by their tasks' names, while inside; they end by being cancelled.

    One that ends by an error ends the whole: whoever is inside is cancelled and sees it.
    """
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work(), name=name) for name, work in works.items()]
        try:
            yield
        finally:
            await _cancel(tasks)


async def _cancel(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Cancel tasks until they have ended: a library's wait_for may lose a cancellation (Python 3.11)."""
    for _ in range(MOST_CANCELS):
        for task in tasks:
            task.cancel()
        _, left = await asyncio.wait(tasks, timeout=CANCEL_AGAIN_AFTER_S)
        if not left:
            return
    log.error("app.tasks_not_ended", tasks=sorted(task.get_name() for task in tasks if not task.done()))


async def _connected(mqtt: Mqtt) -> None:
    """Return when the broker connection is up. Raises Unavailable when it is not in time."""
    try:
        async with asyncio.timeout(CONNECTED_WITHIN_S):
            while not mqtt.connected:
                await asyncio.sleep(0.01)
    except TimeoutError as error:
        raise Unavailable(f"the MQTT broker could not be reached in {CONNECTED_WITHIN_S:.0f} s") from error


async def _give_back(lease: Lease) -> None:
    """So that the next office need not wait for the lease to expire; if it can't be, it waits."""
    try:
        async with asyncio.timeout(GIVE_BACK_WITHIN_S):
            await lease.give_back()
    except (Unavailable, TimeoutError) as error:
        log.warning("app.lease_kept", error=str(error))


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _read_keys(config: OfficeConfig) -> list[bytes]:
    """The public keys that sign firmware. Raises ConfigError."""
    pems = []
    for name in config.firmware_keys:
        try:
            with Path(name).open("rb") as file:
                pems.append(file.read(MOST_KEY_BYTES))
        except OSError as error:
            raise ConfigError(f"firmware_keys: {name} can't be read: {error.strerror}") from error
    try:
        key_ring(pems)
    except BadKey as error:
        raise ConfigError(f"firmware_keys: {error.message}") from error
    return pems
