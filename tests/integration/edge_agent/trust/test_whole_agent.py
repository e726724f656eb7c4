"""The agent as it is assembled from its configuration, with real ends: a broker, an office's socket, and two
simulated MCUs (one slot, two slots) whose bootloaders verify.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiomqtt
import bcrypt
import msgspec
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from control_plane.embedded.nats import EmbeddedNats, office_user, truck_user
from edge_agent.app import run_agent
from edge_agent.config import load_config
from edge_agent.office.enrol import Credentials, Enrolled, write_credentials
from shared import topics
from shared.messages import Ack, Command, CommandTarget, Hello, Status, StatusBatch
from shared.trust.uptane.manifest import read_manifest
from shared.trust.uptane.matching import served_name
from shared.trust.uptane.release_document import ReleaseSpec
from sim.mcu.esp_images import build_esp_image
from sim.mcu.images import build_image
from sim.mcu.memory import DEFAULT_MAP
from sim.truck import powered
from sim.truck_config import ESP32_UDS, TruckEcu, TruckSettings, TruckTrust, write_agent_config
from sim.uptane_world import UptaneWorld

DEVICE = "truck-7"
TOKEN = "t" * 40
PASSWORD = "p" * 43
IMAGE_BYTES = 16 * 1024
WAIT_S = 90.0


class RealWorld(UptaneWorld):
    """Its first ECU is an STM32 with one slot, its second one an ESP32 with two."""

    def image_of(self, kind: str, version: str) -> bytes:
        if kind == "hoist-controller":
            return build_esp_image(version=version, nbytes=IMAGE_BYTES)
        return build_image(version, IMAGE_BYTES, DEFAULT_MAP.slot.start)

    def add(self, version: str, counter: int, **safety: bool) -> ReleaseSpec:
        """A release whose policy permits this."""

        def change(release: ReleaseSpec) -> ReleaseSpec:
            policy = msgspec.structs.replace(release.safety, **safety)
            return msgspec.structs.replace(release, safety=policy)

        return self.release(version, counter, document=self.ecu_document, change=change)


class Site:
    """The truck that is powered, its office's ends, and the broker between them."""

    def __init__(self, folder: Path, office: type[Any]) -> None:
        self.folder = folder
        self.world = RealWorld(now=datetime.now(UTC))
        self.office = office(self.world.served)
        self.hellos: list[Hello] = []
        self.statuses: list[Status] = []
        self.heard = asyncio.Event()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Site]:
        world = self.world
        for name, content in (
            ("director.json", world.director.published["1.root.json"]),
            ("image.json", world.image.published["1.root.json"]),
            ("key.pem", self._public()),
        ):
            (self.folder / name).write_bytes(content)
        async with AsyncExitStack() as stack:
            await self.office.start()
            stack.push_async_callback(self.office.stop)
            users = [truck_user(DEVICE, hashed(PASSWORD)), office_user("office", hashed("office"))]
            self.broker = await stack.enter_async_context(EmbeddedNats(self.folder / "broker", users=users))
            settings = TruckSettings(
                folder=self.folder / "truck",
                office_url=self.office.base,
                firmware_keys=(self.folder / "key.pem",),
                ecus=tuple(self._ecu(n, name) for n, name in enumerate(("brake", "hoist"))),
                trust=TruckTrust(
                    director_root=self.folder / "director.json", image_root=self.folder / "image.json"
                ),
            )
            self.bench = stack.enter_context(powered(settings))
            self.config = load_config(write_agent_config(settings, self.bench.channel))
            enrolled = Enrolled(
                device_id=DEVICE,
                mqtt_host="127.0.0.1",
                mqtt_port=self.broker.port,
                http_token=TOKEN,
                mqtt_password=PASSWORD,
            )
            write_credentials(self.config.data_dir, Credentials(enrolled=enrolled))
            self._mqtt = await stack.enter_async_context(
                aiomqtt.Client(
                    "127.0.0.1", self.broker.port, username="office", password="office", identifier="office"
                )
            )
            for topic in topics.CENTRE_READS:
                await self._mqtt.subscribe(topic, qos=1)
            listening = asyncio.create_task(self._listen())
            stack.callback(listening.cancel)
            yield self

    def _public(self) -> bytes:
        key = self.world.keys["ecu/document/1"]._private_key.public_key()
        return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def _ecu(self, number: int, name: str) -> TruckEcu:
        ecu = self.world.vehicle.ecus[number]
        spec = self.world.spec(ecu, "1.0.0", 1)
        image, document = self.folder / f"{name}.bin", self.folder / f"{name}.doc"
        image.write_bytes(self.world.image_of(ecu.kind, "1.0.0"))
        document.write_bytes(self.world.ecu_document(spec))
        return TruckEcu(
            component=name,
            kind=ecu.kind,
            hardware=ecu.hardware,
            serial=ecu.serial,
            image=image,
            document=document,
            **({"flasher": ESP32_UDS} if name == "hoist" else {}),
        )

    async def _listen(self) -> None:
        async for message in self._mqtt.messages:
            match message.topic.value.split("/"):
                case ["status", _, "hello"]:
                    self.hellos.append(Hello.from_json(message.payload))
                case ["status", _, "update"]:
                    batch = StatusBatch.from_json(message.payload)
                    self.statuses += batch.statuses
                    ack = Ack(accepted=tuple(one.message_id for one in batch.statuses))
                    await self._mqtt.publish(topics.acks(DEVICE), ack.to_json(), qos=1)
            self.heard.set()

    @asynccontextmanager
    async def agent(self) -> AsyncIterator[None]:
        """The agent runs, and is stopped as its service does it."""
        stop = asyncio.Event()
        running = asyncio.create_task(run_agent(self.config, stop=stop))
        try:
            yield
            assert not running.done(), running
        finally:
            stop.set()
            async with asyncio.timeout(WAIT_S):
                await running

    async def until(self, so: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not so():
                try:
                    async with asyncio.timeout(0.05):
                        await self.heard.wait()
                except TimeoutError:
                    continue
                self.heard.clear()

    async def ordered(self, release: ReleaseSpec, job_id: str) -> Status:
        """The office directs a release and sends its trigger; returns how the job ended."""
        self.world.direct(release)
        command = Command(
            command_id=job_id,
            job_id=job_id,
            attempt=1,
            revision=1,
            kind="install",
            targets=tuple(
                self._target(name, one.spec)
                for name, one in zip(("brake", "hoist"), release.targets, strict=True)
            ),
        )
        await self._mqtt.publish(topics.commands(DEVICE), command.to_json(), qos=1)
        finals = ("done", "error", "cancelled")

        def ended() -> list[Status]:
            return [one for one in self.statuses if one.job_id == job_id and one.status in finals]

        await self.until(lambda: bool(ended()))
        return ended()[-1]

    def _target(self, name: str, spec: Any) -> CommandTarget:
        return CommandTarget(
            component=name,
            version=spec.version,
            sha256=spec.sha256,
            length=spec.length,
            document="",
            url=f"{self.office.base}/repo/image/{served_name(spec.target_path, spec.sha256)}",
        )

    def runs(self, version: str) -> bool:
        return all(
            self.bench.running_content(IMAGE_BYTES, name)
            == self.world.image_of(f"{name}-controller", version)
            for name in ("brake", "hoist")
        )

    def reported(self) -> dict[str, Any]:
        """What the newest vehicle manifest says is installed, by serial."""
        signed = read_manifest(self.office.manifests[-1]).signed
        return {one.signed.serial: one.signed.installed for one in signed.ecus}


def hashed(password: str) -> str:
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()


@pytest.fixture
async def site(fleet: Any, tmp_path: Path) -> AsyncIterator[Site]:
    folder = tmp_path / "site"
    folder.mkdir()
    async with Site(folder, type(fleet.office)).open() as made:
        yield made


async def test_releases_of_two_ecus_by_the_director_end_to_end(site: Site) -> None:
    """Refused without a way back, permitted by the signed policy, and the next one has a way back."""
    async with site.agent():
        await site.until(lambda: bool(site.hellos) and site.hellos[-1].online)
        # The factory's image of the one-slot ECU is not kept on the gateway.
        refused = await site.ordered(site.world.add("1.1.0", 2), "job-1")
        assert (refused.status, refused.error and refused.error.code) == ("error", "no_way_back")
        assert site.runs("1.0.0")
        done = await site.ordered(site.world.add("1.1.1", 3, may_go_without_way_back=True), "job-2")
        assert (done.status, done.error) == ("done", None), done
        assert site.runs("1.1.1")
        done = await site.ordered(site.world.add("1.2.0", 4), "job-3")
        assert (done.status, done.error) == ("done", None), done
        assert site.runs("1.2.0")
        # The signed manifest says the same, by names and counters of verified metadata.
        spec = {ecu.serial: site.world.spec(ecu, "1.2.0", 4) for ecu in site.world.vehicle.ecus}
        await site.until(
            lambda: all(
                (one := site.reported().get(serial)) is not None and one.filename == wanted.target_path
                for serial, wanted in spec.items()
            )
        )
        assert {site.reported()[serial].release_counter for serial in spec} == {4}
    counters = json.loads((site.config.data_dir / "counters.json").read_bytes())
    assert counters == {"brake": 4, "hoist": 4}
    # What the office continues above is in the next hello.
    seen = len(site.hellos)
    async with site.agent():
        await site.until(lambda: any(one.online for one in site.hellos[seen:]))
    said = next(one for one in site.hellos[seen:] if one.online).metadata_versions
    assert said["director/root"] == said["image/root"] == 1
    assert said["director/timestamp"] == said["director/targets"] == site.world.directed
    assert said["image/timestamp"] > 1
