"""The agent as a process of its own, with a real broker, a real HTTP server and an MCU on a CAN hub.

It is stopped, hurried and killed while it flashes; whatever happens, the MCU runs the old or the new
firmware in the end, and the office hears every status.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import http.server
import json
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiomqtt
import bcrypt
import pytest
from typer.testing import CliRunner, Result

from control_plane.embedded import child
from control_plane.embedded.nats import EmbeddedNats, office_user, truck_user
from edge_agent.app import run_agent
from edge_agent.cli import app
from edge_agent.config import load_config
from edge_agent.errors import StoreBusy
from edge_agent.office.enrol import Credentials, Enrolled, NotEnrolled, write_credentials
from shared import topics
from shared.messages import Ack, Command, CommandTarget, Hello, Manifest, Status, StatusBatch
from shared.release import FirmwareSpec
from shared.trust.document import make_document
from shared.trust.keys import load_signer, new_key
from sim.mcu.images import build_image
from sim.mcu.memory import DEFAULT_MAP
from sim.mcu.server import Stm32Mcu
from sim.truck import Bench, powered
from sim.truck_config import COMPONENT, HARDWARE, KIND, TruckEcu, TruckSettings, write_agent_config

DEVICE = "truck-1"
IMAGE_BYTES = 40 * 1024
WAIT_S = 60.0
SECRET = "s" * 43


def hashed(password: str) -> str:
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


class Quarry:
    """A truck that is powered, its office's ends, and the ways to start an agent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.private, self.public = new_key()
        self.hellos: list[Hello] = []
        self.manifests: list[Manifest] = []
        self.statuses: dict[str, Status] = {}
        self.heard = asyncio.Event()
        self.bench: Bench
        self.config: Path
        self.broker: EmbeddedNats
        self._office: aiomqtt.Client
        self._stack = AsyncExitStack()

    def firmware(self, version: str, counter: int) -> tuple[bytes, bytes]:
        image = build_image(version, IMAGE_BYTES, DEFAULT_MAP.slot.start)
        spec = FirmwareSpec(
            kind=KIND,
            hardware=(HARDWARE,),
            version=version,
            release_counter=counter,
            length=len(image),
            sha256=hashlib.sha256(image).hexdigest(),
        )
        signer = load_signer(self.private)
        return image, make_document(spec, signer, datetime.now(UTC) + timedelta(days=900))

    async def __aenter__(self) -> Quarry:
        async with AsyncExitStack() as stack:
            self.old, old_document = self.firmware("1.0.0", 1)
            self.new, self.document = self.firmware("1.1.0", 2)
            files = self.folder / "files"
            files.mkdir()
            (files / "new.bin").write_bytes(self.new)
            for name, content in (
                ("key.pem", self.public),
                ("old.bin", self.old),
                ("old.json", old_document),
            ):
                (self.folder / name).write_bytes(content)
            users = [truck_user(DEVICE, hashed(SECRET)), office_user("office", hashed("office"))]
            self.broker = await stack.enter_async_context(EmbeddedNats(self.folder / "broker", users=users))
            handler = functools.partial(Quiet, directory=str(files))
            server = stack.enter_context(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
            serving = threading.Thread(target=server.serve_forever, args=(0.05,))
            serving.start()
            stack.callback(serving.join)
            stack.callback(server.shutdown)
            self.url = f"http://127.0.0.1:{server.server_port}"
            settings = TruckSettings(
                folder=self.folder / "truck",
                office_url=self.url,
                firmware_keys=(self.folder / "key.pem",),
                ecus=(TruckEcu(image=self.folder / "old.bin", document=self.folder / "old.json"),),
            )
            self.bench = stack.enter_context(powered(settings))
            self.config = write_agent_config(settings, self.bench.channel)
            self._office = await stack.enter_async_context(
                aiomqtt.Client(
                    "127.0.0.1", self.broker.port, username="office", password="office", identifier="office"
                )
            )
            for topic in topics.CENTRE_READS:
                await self._office.subscribe(topic, qos=1)
            listening = asyncio.create_task(self._listen())
            stack.callback(listening.cancel)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def _listen(self) -> None:
        async for message in self._office.messages:
            match message.topic.value.split("/"):
                case ["status", _, "hello"]:
                    self.hellos.append(Hello.from_json(message.payload))
                case ["status", _, "manifest"]:
                    self.manifests.append(Manifest.from_json(message.payload))
                case ["status", _, "update"]:
                    batch = StatusBatch.from_json(message.payload)
                    self.statuses.update({one.message_id: one for one in batch.statuses})
                    ack = Ack(accepted=tuple(one.message_id for one in batch.statuses))
                    await self._office.publish(topics.acks(DEVICE), ack.to_json(), qos=1)
            self.heard.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not condition():
                try:
                    async with asyncio.timeout(0.05):
                        await self.heard.wait()
                except TimeoutError:
                    continue
                self.heard.clear()

    def enrol(self) -> None:
        enrolled = Enrolled(
            device_id=DEVICE,
            mqtt_host="127.0.0.1",
            mqtt_port=self.broker.port,
            http_token=SECRET,
            mqtt_password=SECRET,
        )
        write_credentials(self.folder / "truck" / "agent", Credentials(enrolled=enrolled))

    async def order(self) -> None:
        target = CommandTarget(
            component=COMPONENT,
            version="1.1.0",
            sha256=hashlib.sha256(self.new).hexdigest(),
            length=len(self.new),
            document=self.document.decode(),
            url=f"{self.url}/new.bin",
        )
        command = Command(
            command_id="command-1", job_id="job-1", attempt=1, revision=1, kind="install", targets=(target,)
        )
        await self._office.publish(topics.commands(DEVICE), command.to_json(), qos=1)

    def start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", "-m", "cli.main", "agent", "run", "--config", str(self.config)]
        agent = child.start(command, log=self.folder / "agent.log")
        self._stack.push_async_callback(child.stop, agent, how=signal.SIGKILL, within_s=WAIT_S)
        return agent

    async def ask(self, *args: str) -> Result:
        """`quarry agent ...`, in a thread of this process: as quick as it can be."""
        given = [*args, "--config", str(self.config)]
        return await asyncio.to_thread(lambda: CliRunner().invoke(app, given))

    async def ask_json(self, *args: str) -> dict[str, Any]:
        done = await self.ask(*args, "--json")
        assert done.exit_code == 0, done.output
        assert done.stdout.count("\n") == 1
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    async def is_online(self) -> None:
        await self.until(lambda: bool(self.hellos) and self.hellos[-1].online)

    async def is_flashing(self) -> None:
        await self.until(lambda: 0 < self.bench.mcu.programmed_bytes < IMAGE_BYTES)

    @property
    def ended(self) -> bool:
        return any(one.status in ("done", "error") for one in self.statuses.values())

    def last(self) -> Status:
        return max(self.statuses.values(), key=lambda one: one.seq)

    def holds_new(self) -> bool:
        return self.bench.running_content(IMAGE_BYTES) == self.new

    @property
    def boots(self) -> str:
        """The version that the bootloader, asked as at a power-up, would start."""
        assert isinstance(self.bench.mcu, Stm32Mcu)
        spec = self.bench.mcu.boots().spec
        return "nothing" if spec is None else spec.version


@pytest.fixture
async def quarry(tmp_path: Path) -> AsyncIterator[Quarry]:
    async with Quarry(tmp_path) as made:
        made.enrol()
        yield made


async def ended(agent: subprocess.Popen[bytes]) -> int:
    return await asyncio.to_thread(agent.wait, WAIT_S)


async def test_from_command_to_done_in_this_process(quarry: Quarry) -> None:
    """The composition root as the simulated truck uses it; a stop that finds nothing to wait for."""
    config = load_config(quarry.config)
    stop = asyncio.Event()
    agent = asyncio.create_task(run_agent(config, stop=stop))
    await quarry.is_online()
    await quarry.order()
    await quarry.until(lambda: quarry.ended)
    last = quarry.last()
    assert (last.status, last.step) == ("done", "finished"), last
    assert last.targets is not None
    assert last.targets[0].version == "1.1.0"
    assert quarry.holds_new()
    await quarry.until(
        lambda: bool(quarry.manifests) and quarry.manifests[-1].components[0].version == "1.1.0"
    )
    seqs = sorted(one.seq for one in quarry.statuses.values())
    assert len(seqs) == len(set(seqs))
    stop.set()
    async with asyncio.timeout(WAIT_S):
        await agent
    await quarry.until(lambda: not quarry.hellos[-1].online)


async def test_a_second_agent_on_the_same_data_is_refused(quarry: Quarry) -> None:
    config = load_config(quarry.config)
    stop = asyncio.Event()
    agent = asyncio.create_task(run_agent(config, stop=stop))
    await quarry.is_online()
    with pytest.raises(StoreBusy, match="another agent"):
        await run_agent(config)
    second = quarry.start()
    assert await ended(second) == 1
    said = (quarry.folder / "agent.log").read_text()
    assert "another agent" in said
    assert "Traceback" not in said
    stop.set()
    await agent


async def test_an_agent_that_is_not_enrolled_says_what_to_do(quarry: Quarry) -> None:
    config = load_config(quarry.config)
    with pytest.raises(NotEnrolled):
        await run_agent(replace(config, data_dir=config.data_dir / "new"))
    (config.data_dir / "credentials.json").unlink()
    assert await ended(quarry.start()) == 78
    said = (quarry.folder / "agent.log").read_text()
    assert "quarry agent enroll" in said
    assert "Traceback" not in said


async def test_a_stop_while_flashing_waits_until_the_ecu_is_whole(quarry: Quarry) -> None:
    agent = quarry.start()
    await quarry.is_online()
    await quarry.order()
    await quarry.is_flashing()
    agent.send_signal(signal.SIGTERM)
    assert await ended(agent) == 0
    assert quarry.holds_new()
    assert quarry.boots == "1.1.0"
    assert "agent.stop_delayed" in (quarry.folder / "agent.log").read_text()
    # What was not told any more is told by the next run.
    seen = len(quarry.hellos)
    again = quarry.start()
    await quarry.until(lambda: quarry.ended and any(one.online for one in quarry.hellos[seen:]))
    assert quarry.last().status == "done"
    again.send_signal(signal.SIGINT)
    assert await ended(again) == 0


async def test_a_second_signal_does_not_wait_and_the_next_start_finishes(quarry: Quarry) -> None:
    agent = quarry.start()
    await quarry.is_online()
    await quarry.order()
    await quarry.is_flashing()
    agent.send_signal(signal.SIGTERM)
    await quarry.until(lambda: "agent.stop_delayed" in (quarry.folder / "agent.log").read_text())
    agent.send_signal(signal.SIGTERM)
    assert await ended(agent) == 130
    assert not quarry.holds_new()
    again = quarry.start()
    await quarry.until(lambda: quarry.ended)
    assert quarry.last().status == "done"
    assert quarry.holds_new()
    again.send_signal(signal.SIGTERM)
    assert await ended(again) == 0


async def test_killed_again_and_again_it_ends_done_with_every_status_once(quarry: Quarry) -> None:
    """SIGKILL right after the command, twice while it flashes, and once more at the end."""
    agent = quarry.start()
    await quarry.is_online()
    await quarry.order()
    await quarry.until(lambda: bool(quarry.statuses))
    agent.kill()
    await ended(agent)
    for _ in range(2):
        agent = quarry.start()
        await quarry.is_flashing()
        agent.kill()
        await ended(agent)
        assert quarry.boots == "nothing"
    agent = quarry.start()
    await quarry.until(lambda: quarry.ended)
    agent.kill()
    await ended(agent)
    assert quarry.last().status == "done"
    assert quarry.holds_new()
    said = [one.seq for one in quarry.statuses.values()]
    assert len(said) == len(set(said))
    assert sum(one.status == "done" for one in quarry.statuses.values()) == 1


async def test_people_at_the_truck_see_it_with_and_without_an_agent(quarry: Quarry) -> None:
    before = await quarry.ask_json("status")
    assert (before["device_id"], before["running"], before["live_jobs"]) == (DEVICE, False, [])
    assert (await quarry.ask_json("jobs")) == {"jobs": []}
    agent = quarry.start()
    await quarry.is_online()
    await quarry.order()
    await quarry.is_flashing()
    now = await quarry.ask_json("status")
    assert (now["running"], now["pid"]) == (True, agent.pid)
    assert [job["job_id"] for job in now["live_jobs"]] == ["job-1"]
    async with asyncio.timeout(WAIT_S):
        while now["live_jobs"] or now["pending_statuses"] or not now["connected"]:
            await asyncio.sleep(0.1)
            now = await quarry.ask_json("status")
    agent.send_signal(signal.SIGTERM)
    assert await ended(agent) == 0
    after = await quarry.ask_json("status")
    assert (after["running"], after["connected"], after["pending_statuses"]) == (False, False, 0)
    assert after["store_id"] == now["store_id"]
    [job] = (await quarry.ask_json("jobs"))["jobs"]
    assert (job["job_id"], job["state"], job["version"]) == ("job-1", "done", "1.1.0")
    assert DEVICE in (await quarry.ask("status")).stdout
    assert "job-1" in (await quarry.ask("jobs")).stdout
