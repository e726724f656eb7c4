"""A truck that trusts, and an office on a real socket that serves a repository, honestly or not.

(Everything hangs on the `fleet` fixture, since helper modules can't be imported here.)
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from securesystemslib.signer import Signer

from edge_agent.clock import boot_s
from edge_agent.delivery.downloader import Downloader
from edge_agent.delivery.transfer import Network, OurOffice
from edge_agent.interlocks.safety import Policy, VehicleState
from edge_agent.store.store import Store
from edge_agent.trust.counters import Counters
from edge_agent.trust.known_images import KnownImages
from edge_agent.trust.manifest_key import load_or_make_key
from edge_agent.trust.manifest_state import ManifestState
from edge_agent.trust.metadata import Metadata
from edge_agent.trust.metadata_source import FetchLimits, OfficeSource
from edge_agent.trust.selection import TruckEcu, TruckEcus
from edge_agent.trust.trust_chain import TrustChain
from edge_agent.trust.trust_config import Roots
from edge_agent.trust.trust_files import TrustFiles
from edge_agent.trust.trust_store import TrustKeeper
from edge_agent.trust.trusted_time import TimeAsker, TrustedTime
from edge_agent.trust.vehicle_manifest import ManifestOffice, VehicleManifests
from edge_agent.trust.verifier import Verifier
from edge_agent.update.directed import DirectedAuthority, bundles_folder
from edge_agent.update.kept import KeptImages
from edge_agent.update.updater import ComponentAccess, Timing, Updater, no_kill
from firmware_flashers.base import (
    Capabilities,
    FirmwareImage,
    Flasher,
    FlashError,
    Identity,
    OnProgress,
    TrustClass,
    no_progress,
)
from shared.backoff import Backoff
from shared.messages import Command, CommandTarget, Installed, Status
from shared.release import FirmwareSpec
from shared.trust.document import make_document
from shared.trust.keys import key_ring, load_signer, new_key
from shared.trust.uptane.manifest_check import Alarm, KnownEcu, KnownVehicle, Verdict, verify_manifest
from shared.trust.uptane.matching import served_name
from shared.trust.uptane.store import TrustedStore
from shared.trust.uptane.time_policy import TimePolicy
from shared.trust.uptane.time_token import make_time_token
from shared.trust.uptane.vehicle import Vehicle
from sim.uptane_world import BUILT_AT, UptaneWorld, image_bytes

TOKEN = "t" * 40
GATEWAY = "gateway-7"

Answer = Callable[[bytes], list[bytes]]
"""Makes the raw blocks of an answer of the honest body."""


def whole(body: bytes) -> list[bytes]:
    return [f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n".encode(), body]


def status(code: int) -> Answer:
    return lambda _: [f"HTTP/1.1 {code} X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode()]


class Office:
    """Serves `served` below /repo for our token, takes manifests, and says what time it is.

    `answers` by name replaces the honest answer of a file; `endless` goes on with a block for ever after
    it, and `silent` keeps the connection open and says nothing more. `cut_after` bytes of everything that
    is sent, the connections are reset.
    """

    def __init__(self, served: dict[Any, bytes]) -> None:
        self.served = served
        self.answers: dict[str, Answer] = {}
        self.base = ""
        self.endless: bytes | None = None
        self.silent = False
        self.cut_after: int | None = None
        self.asked: list[str] = []
        self.sent = 0
        self.manifests: list[bytes] = []
        self.manifest_answers: list[bytes] = []
        self.time: Callable[[str], bytes] | None = None
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.base = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._serving):
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        await self._server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            for block in await self._answer(head, reader):
                if self.cut_after is not None and self.sent + len(block) > self.cut_after:
                    writer.write(block[: self.cut_after - self.sent])
                    await writer.drain()
                    self.sent = self.cut_after
                    return
                writer.write(block)
                self.sent += len(block)
                await writer.drain()
            if self.silent:
                await reader.read()
            while self.endless is not None:
                writer.write(self.endless)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._serving.discard(task)
            writer.close()

    async def _answer(self, head: str, reader: asyncio.StreamReader) -> list[bytes]:
        verb, target, _ = head.split("\r\n", 1)[0].split(" ")
        headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
        url = urlsplit(target)
        if url.path == "/time":
            assert self.time is not None
            return whole(self.time(parse_qs(url.query)["nonce"][0]))
        if headers.get("authorization") != f"bearer {TOKEN}":
            return status(401)(b"")
        if verb == "POST":
            assert url.path == "/api/v1/devices/truck-7/vehicle-manifest"
            self.manifests.append(await reader.readexactly(int(headers["content-length"])))
            return [self.manifest_answers.pop(0)] if self.manifest_answers else status(204)(b"")
        repository, _, name = url.path.removeprefix("/repo/").partition("/")
        if repository == "director":
            whose, _, name = name.partition("/")
            assert whose == "truck-7"
        self.asked.append(f"{repository}/{name}")
        body = self.served.get((repository, name))
        answer = self.answers.get(f"{repository}/{name}")
        if answer is not None:
            return answer(body or b"")
        return status(404)(b"") if body is None else whole(body)


class Fleet:
    """One truck of a world, with its office. `wall` and `boot` are its clocks."""

    def __init__(self, world: UptaneWorld, data: Path) -> None:
        self.world = world
        self.data = data
        self.folder = data / "trust"
        self.wall = world.now
        self.boot = 1000.0
        self.policy = TimePolicy(built_at=BUILT_AT)
        self.office = Office(world.served)
        self.limits = FetchLimits(idle_s=5.0, file_s=20.0)
        self.run_s = 100.0
        self.with_time = False
        self.vehicle = world.vehicle
        self.gateway = TruckEcu(component="", serial=GATEWAY, kind="gateway", hardware="gateway")
        self.ecus = TruckEcus(
            ecus=tuple(
                TruckEcu(component=f"c{n}", serial=one.serial, kind=one.kind, hardware=one.hardware)
                for n, one in enumerate(world.vehicle.ecus)
            ),
            gateway=self.gateway,
        )
        self.installed: list[Installed] = []
        self.inventory = KnownVehicle(
            vehicle_id="truck-7",
            primary=GATEWAY,
            gateway=load_or_make_key(data).public_key,
            ecus={
                GATEWAY: KnownEcu(kind="gateway", hardware="gateway"),
                **{e.serial: KnownEcu(kind=e.kind, hardware=e.hardware) for e in world.vehicle.ecus},
            },
        )

    async def start_truck(self) -> None:
        """As a process begins: everything from the disk."""
        director, image = self.world.director.published, self.world.image.published
        roots = Roots(director=director["1.root.json"], image=image["1.root.json"])
        self.keeper = await TrustKeeper.open(self.folder, roots)
        self.known = await KnownImages.open(self.folder)
        self.state = await ManifestState.open(self.folder)
        self.time = TrustedTime(self.keeper, self.policy, wall=lambda: self.wall, boot_s=lambda: self.boot)
        self.files = TrustFiles(self.folder)
        office = ManifestOffice(
            base=self.office.base, device_id="truck-7", token=TOKEN, tls=lambda: False, within_s=20.0
        )

        async def installed() -> list[Installed]:
            return self.installed

        async def vehicle() -> Vehicle:
            return self.vehicle

        self.manifests = VehicleManifests(
            vehicle_id="truck-7",
            ecus=self.ecus,
            signer=load_or_make_key(self.data),
            state=self.state,
            known=self.known,
            installed=installed,
            now=self.time.now,
            send=office.send,
            backoff=Backoff(first_s=0.001, most_s=0.01),
            boot_s=lambda: self.boot,
        )
        self.source = OfficeSource(
            base=self.office.base, device_id="truck-7", token=TOKEN, tls=lambda: False, limits=self.limits
        )
        self.metadata = Metadata(
            keeper=self.keeper,
            files=self.files,
            office=self.source,
            time=self.time,
            vehicle=vehicle,
            alarm=self.manifests.alarm,
            learn=self.known.learn,
            asker=TimeAsker(f"{self.office.base}/time", self.keeper, self.time) if self.with_time else None,
            run_s=self.run_s,
        )

    async def refused(self) -> str | None:
        """One run's refusal; whatever happened, the store on the disk is whole and is the one in memory."""
        done = await self.metadata.refresh()
        assert TrustedStore.load(self.on_disk()) == self.keeper.store == done.outcome.store
        refused = done.outcome.refused
        if refused is not None:
            assert done.outcome.selection is None
            assert done.selection_id is None
        return None if refused is None else refused.code

    def on_disk(self) -> bytes:
        """The store's file without its sum."""
        return (self.folder / "store.json").read_bytes().split(b"\n", 1)[1]

    async def alarms(self) -> set[str]:
        """What the office reads of attacks in the next manifest."""
        verdict = self.judge(await self.manifests.make())
        assert verdict.report is not None
        return {one.text for one in verdict.alarms if one.alarm is Alarm.ATTACK_REPORTED}

    def judge(self, manifest: bytes) -> Verdict:
        """As the office does, and it remembers."""
        verdict = verify_manifest(manifest, self.inventory, now=self.world.now)
        self.inventory = verdict.vehicle
        return verdict

    def runs(self, version: str, counter: int) -> None:
        """Every ECU says that it runs this version."""
        self.installed = [
            Installed(
                component=ecu.component,
                kind=ecu.kind,
                hardware=ecu.hardware,
                version=version,
                sha256=self.world.spec(one, version, counter).sha256,
            )
            for ecu, one in zip(self.ecus.ecus, self.world.vehicle.ecus, strict=True)
        ]

    def says_time(self, at: datetime, signers: tuple[Signer, ...] | None = None) -> None:
        """The office answers questions for the time with this one."""
        made = self.world.signers("director/time") if signers is None else signers
        self.office.time = lambda nonce: make_time_token(nonce, at, made)

    def later(self, **more: float) -> None:
        """Time passes for the truck and the office."""
        self.world.now += timedelta(**more)
        self.wall = self.world.now

    async def renew(self, version: str, counter: int) -> None:
        """The office publishes and directs another release, and serves it."""
        self.world.direct(self.world.release(version, counter))

    @staticmethod
    def image(kind: str, version: str) -> bytes:
        return image_bytes(kind, version)


@pytest.fixture(scope="session")
def _made() -> UptaneWorld:
    world = UptaneWorld()
    world.direct(world.release("1.1.0", 2))
    return world


@pytest.fixture
async def fleet(_made: UptaneWorld, tmp_path: Path) -> AsyncIterator[Fleet]:
    """A fleet whose director has selected release 1.1.0 (counter 2) for the truck; nothing is installed."""
    world = copy.copy(_made)
    world.served = dict(_made.served)
    world.keys = dict(_made.keys)
    made = Fleet(world, tmp_path)
    await made.office.start()
    await made.start_truck()
    yield made
    await made.office.stop()


class Mcu:
    """An ECU that keeps the Flasher contract; `written` is every version that was ever staged in it."""

    def __init__(self, spec: FirmwareSpec, *, slots: int) -> None:
        self.spec = spec
        self.kind, self.hardware = spec.kind, spec.hardware[0]
        self.runs: tuple[str, str] | None = (spec.version, spec.sha256)
        self.before: tuple[str, str] | None = None
        self.armed: tuple[str, str] | None = None
        self.faults: dict[str, list[Exception]] = {}
        self.written: list[str] = []
        self.documents: list[bytes] = []
        self.on_stage: Callable[[], Awaitable[None]] | None = None
        self.capabilities = Capabilities(
            slots=slots,
            self_reverting=slots == 2,
            anti_rollback=False,
            trust_class=TrustClass.VERIFIES,
            isolated_bus=False,
        )

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Flasher]:
        yield self

    def _step(self, name: str) -> None:
        if self.faults.get(name):
            raise self.faults[name].pop(0)

    async def identify(self) -> Identity:
        self._step("identify")
        version, sha256 = self.runs or (None, None)
        return Identity(
            kind=self.kind,
            hardware=self.hardware,
            version=version,
            sha256=sha256,
            in_bootloader=self.runs is None,
        )

    async def stage(self, image: FirmwareImage, *, progress: OnProgress = no_progress) -> None:
        assert hashlib.sha256(image.data).hexdigest() == image.spec.sha256, "an unverified image"
        self.written.append(image.spec.version)
        self.documents.append(image.document)
        if self.capabilities.slots == 1:
            self.runs = None
        if self.on_stage is not None:
            await self.on_stage()
        self._step("stage")
        self.armed = (image.spec.version, image.spec.sha256)

    async def activate(self) -> None:
        self._step("activate")
        if self.armed is not None:
            self.before, self.runs, self.armed = self.runs, self.armed, None

    async def verify(self, image: FirmwareImage) -> Identity:
        self._step("verify")
        return await self.identify()

    async def confirm(self) -> None:
        self.before = None

    async def revert(self) -> None:
        if self.before is None:
            raise FlashError("nothing on trial", code="nothing_to_revert", retryable=False, touched=False)
        self.runs, self.before = self.before, None


class Gateway:
    """A truck's whole gateway but for its MQTT: the real updater, downloader, store and chain of a `fleet`.

    Its ECUs run 1.0.0 (counter 1); of the one-slot one, c1, that image is kept by its document, from before
    the trust chain was switched on.
    """

    def __init__(self, fleet: Fleet, store: Store, counters: Counters, downloader: Downloader) -> None:
        self.fleet, self.store, self.counters, self.downloader = fleet, store, counters, downloader
        self.folder = fleet.data / "images"
        self.kept = KeptImages(self.folder)
        private, public = new_key()
        self.signer = load_signer(private)
        self.mcus = {
            one.component: Mcu(fleet.world.spec(ecu, "1.0.0", 1), slots=2 - n)
            for n, (one, ecu) in enumerate(zip(fleet.ecus.ecus, fleet.world.vehicle.ecus, strict=True))
        }
        self.vehicle = VehicleState(parked=True, engine_off=True, voltage_v=26.0, age_s=0.0)
        self.policy = Policy()
        self.seen: list[Status] = []
        self.keys = key_ring([public])
        self.kill_point: Callable[[str], None] = no_kill
        self.connect()

    def connect(self) -> None:
        """As a process begins, behind `fleet.start_truck()`."""
        fleet = self.fleet
        self.chain = TrustChain(
            keeper=fleet.keeper,
            time=fleet.time,
            known=fleet.known,
            ecus=fleet.ecus,
            source=fleet.source,
            metadata=fleet.metadata,
            manifests=fleet.manifests,
        )
        # Its intervals are real ones, so that what rests is tried again.
        clock = replace(fleet.time.clock(), boot_s=boot_s)
        self.verifier = Verifier(keys=self.keys, clock=clock, counters=self.counters)
        self.authority = DirectedAuthority(
            self.chain,
            verifier=self.verifier,
            kept=self.kept,
            bundles=bundles_folder(fleet.data),
            installed=self._installed,
        )
        fleet.metadata._needed = self.authority.needed
        self.updater = Updater(
            self.store,
            downloader=self.downloader,
            verifier=self.verifier,
            authority=self.authority,
            components={
                name: ComponentAccess(kind=one.kind, hardware=one.hardware, open=one.open)
                for name, one in self.mcus.items()
            },
            vehicle=self,
            policy=self.policy,
            clock=clock,
            backoff=Backoff(first_s=0.001, most_s=0.01),
            timing=Timing(poll_s=0.01, refused_s=0.01, link_s=0.01, progress_s=0.01, rest_s=0.2),
            kept=self.kept,
            kill_point=self._kill,
        )

    async def _installed(self) -> list[Installed]:
        return await self.updater.installed()

    def _kill(self, name: str) -> None:
        self.kill_point(name)

    async def state(self) -> VehicleState:
        return self.vehicle

    async def keep_old(self) -> None:
        """What c1 runs was installed by this gateway, by its document."""
        old = self.mcus["c1"].spec
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"{old.sha256}.bin"
        path.write_bytes(self.fleet.image(old.kind, old.version))
        document = make_document(old, self.signer, datetime(2030, 1, 1, tzinfo=UTC)).decode()
        await self.kept.keep(self.target("c1", old, document=document), str(path))

    def target(self, component: str, spec: FirmwareSpec, **other: Any) -> CommandTarget:
        """A command's word on one component; its address is the repository's."""
        said: dict[str, Any] = {
            "component": component,
            "version": spec.version,
            "sha256": spec.sha256,
            "length": spec.length,
            "document": "",
            "url": f"{self.fleet.office.base}/repo/image/{served_name(spec.target_path, spec.sha256)}",
        }
        return CommandTarget(**(said | other))

    def command(
        self, version: str = "1.1.0", counter: int = 2, *, job_id: str = "job-1", **other: Any
    ) -> Command:
        """The office's trigger for a release of both ECUs."""
        targets = tuple(
            self.target(one.component, self.fleet.world.spec(ecu, version, counter))
            for one, ecu in zip(self.fleet.ecus.ecus, self.fleet.world.vehicle.ecus, strict=True)
        )
        said: dict[str, Any] = {
            "command_id": f"c-{job_id}",
            "job_id": job_id,
            "attempt": 1,
            "revision": 1,
            "kind": "install",
            "targets": targets,
        }
        return Command(**(said | other))

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Let the updater work for the length of a block."""
        task = asyncio.create_task(self.updater.run())
        try:
            yield
            assert not task.done(), task
        finally:
            task.cancel()
            await asyncio.wait({task})
            if not task.cancelled() and task.exception() is not None:
                await task

    async def told(self, so: Callable[[Status], bool]) -> Status:
        """Acknowledge statuses until one is so; all are kept in `seen`."""
        async with asyncio.timeout(60):
            while True:
                self.store.outbox_wake.clear()
                statuses = await self.store.next_statuses(1)
                for status in statuses:
                    self.seen.append(status)
                    await self.store.acked([status.message_id], [])
                    if so(status):
                        return status
                if not statuses:
                    await self.store.outbox_wake.wait()

    async def ends(self, command: Command | None = None) -> Status:
        """The final status of a command that is taken, or of the one under way."""
        if command is not None:
            await self.store.take_command(command)
        async with self.run():
            return await self.told(lambda one: one.status in {"done", "error", "cancelled"})

    @property
    def runs(self) -> dict[str, str | None]:
        """Versions by component."""
        return {name: None if one.runs is None else one.runs[0] for name, one in self.mcus.items()}

    @property
    def untouched(self) -> bool:
        """Nothing was ever written to any ECU."""
        return all(not one.written and one.armed is None for one in self.mcus.values())


@pytest.fixture
async def gateway(fleet: Fleet, tmp_path: Path) -> AsyncIterator[Gateway]:
    """The fleet's truck with its updater; director and image repository offer release 1.1.0."""
    office = OurOffice(base=fleet.office.base, token=TOKEN)
    async with (
        Store.open(tmp_path / "agent.db") as store,
        Downloader(tmp_path / "images", Network(office=office), progress_every_s=0.0) as downloader,
    ):
        made = Gateway(fleet, store, await Counters.open(tmp_path / "counters.json"), downloader)
        await made.keep_old()
        yield made
