"""The whole agent as a service without a link: it tells its manager, and installs from a file.

A real process, a real MCU on a CAN hub, a notify socket; the broker is not there until the end.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiomqtt
import bcrypt
import pytest

from control_plane.embedded import child
from control_plane.embedded.nats import EmbeddedNats, office_user, truck_user
from edge_agent.office.enrol import Credentials, Enrolled, write_credentials
from shared import topics
from shared.messages import Manifest, StatusBatch
from shared.release import FirmwareSpec
from shared.trust.document import make_document
from shared.trust.keys import load_signer, new_key
from sim.mcu.images import build_image
from sim.mcu.memory import DEFAULT_MAP
from sim.truck import Bench, powered
from sim.truck_config import HARDWARE, KIND, TruckEcu, TruckSettings, write_agent_config

DEVICE, SECRET, WAIT_S = "truck-1", "s" * 43, 60.0
IMAGE_BYTES = 16 * 1024


class Truck:
    """A powered truck with its agent as a service."""

    def __init__(self, folder: Path, bench: Bench, config: Path, receiver: socket.socket) -> None:
        self.folder = folder
        self.bench = bench
        self.config = config
        self.receiver = receiver
        self.words: list[str] = []

    def start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", "-m", "edge_agent", "run", "--config", str(self.config)]
        environment = {
            **os.environ,
            "NOTIFY_SOCKET": str(self.folder / "notify"),
            "WATCHDOG_USEC": "400000",
        }
        with (self.folder / "agent.log").open("ab") as log:
            return subprocess.Popen(command, stderr=log, stdin=subprocess.DEVNULL, env=environment)

    def asked(self, *args: str) -> dict[str, Any]:
        command = [sys.executable, "-P", "-m", "edge_agent", *args, "--config", str(self.config), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    async def listen(self) -> None:
        """What the service manager hears."""
        while True:
            raw = await asyncio.get_running_loop().sock_recv(self.receiver, 4096)
            self.words += raw.decode().splitlines()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not condition():
                await asyncio.sleep(0.02)


def firmware(folder: Path, signer: Any, version: str, counter: int) -> bytes:
    image = build_image(version, IMAGE_BYTES, DEFAULT_MAP.slot.start)
    spec = FirmwareSpec(
        kind=KIND,
        hardware=(HARDWARE,),
        version=version,
        release_counter=counter,
        length=len(image),
        sha256=hashlib.sha256(image).hexdigest(),
    )
    (folder / f"{version}.bin").write_bytes(image)
    (folder / f"{version}.json").write_bytes(
        make_document(spec, signer, datetime.now(UTC) + timedelta(days=900))
    )
    return image


@pytest.fixture
def port() -> int:
    """Where the broker will be."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
async def truck(tmp_path: Path, port: int) -> AsyncIterator[Truck]:
    private, public = new_key()
    signer = load_signer(private)
    (tmp_path / "key.pem").write_bytes(public)
    firmware(tmp_path, signer, "1.0.0", 1)
    firmware(tmp_path, signer, "1.1.0", 2)
    settings = TruckSettings(
        folder=tmp_path / "truck",
        office_url="http://127.0.0.1:9",
        firmware_keys=(tmp_path / "key.pem",),
        ecus=(TruckEcu(image=tmp_path / "1.0.0.bin", document=tmp_path / "1.0.0.json"),),
    )
    enrolled = Enrolled(
        device_id=DEVICE, mqtt_host="127.0.0.1", mqtt_port=port, http_token=SECRET, mqtt_password=SECRET
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver, powered(settings) as bench:
        receiver.bind(str(tmp_path / "notify"))
        receiver.setblocking(False)
        config = write_agent_config(settings, bench.channel)
        write_credentials(tmp_path / "truck" / "agent", Credentials(enrolled=enrolled))
        made = Truck(tmp_path, bench, config, receiver)
        listening = asyncio.create_task(made.listen())
        yield made
        listening.cancel()
        with suppress(asyncio.CancelledError):
            await listening


async def test_a_service_without_a_link_installs_from_a_file_and_tells_the_office_later(
    truck: Truck, port: int
) -> None:
    agent = truck.start()
    try:
        await truck.until(lambda: "READY=1" in truck.words and truck.words.count("WATCHDOG=1") >= 3)
        assert any(word.startswith("STATUS=not connected") for word in truck.words)
        drive = truck.folder
        found = await asyncio.to_thread(
            truck.asked,
            *("install-file", "--document", str(drive / "1.1.0.json"), "--image", str(drive / "1.1.0.bin")),
        )
        assert found["taken"] is True
        new = (drive / "1.1.0.bin").read_bytes()

        def state() -> str:
            return str(truck.asked("jobs")["jobs"][0]["state"])

        async with asyncio.timeout(WAIT_S):
            while await asyncio.to_thread(state) != "done":
                await asyncio.sleep(0.1)
        assert truck.bench.running_content(IMAGE_BYTES) == new
        assert (await asyncio.to_thread(truck.asked, "status"))["connected"] is False
        # Nothing of it is only in memory; and a new start does not wait out the tries that failed.
        agent.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(agent.wait, WAIT_S) == 0
        await truck.until(lambda: "STOPPING=1" in truck.words)

        users = [
            truck_user(DEVICE, bcrypt.hashpw(SECRET.encode(), bcrypt.gensalt(4)).decode()),
            office_user("office", bcrypt.hashpw(b"office", bcrypt.gensalt(4)).decode()),
        ]
        async with (
            EmbeddedNats(truck.folder / "broker", users=users, port=port) as broker,
            aiomqtt.Client(
                "127.0.0.1", broker.port, username="office", password="office", identifier="office"
            ) as office,
        ):
            for topic in topics.CENTRE_READS:
                await office.subscribe(topic, qos=1)
            agent = truck.start()
            told: set[str] = set()
            async with asyncio.timeout(WAIT_S):
                async for message in office.messages:
                    if message.topic.value.endswith("/manifest"):
                        manifest = Manifest.from_json(message.payload)
                        told |= {f"{one.version}" for one in manifest.components}
                    if message.topic.value.endswith("/update"):
                        told |= {
                            f"{one.job_id} {one.status}"
                            for one in StatusBatch.from_json(message.payload).statuses
                        }
                    if {"1.1.0", f"{found['job_id']} done"} <= told:
                        break
        agent.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(agent.wait, WAIT_S) == 0
    finally:
        await child.stop(agent, how=signal.SIGKILL, within_s=WAIT_S)
    written = (truck.folder / "truck" / "agent" / "log" / "agent.log").read_text().splitlines()
    assert any(json.loads(line)["message"] == "agent.started" for line in written)
    assert written == (truck.folder / "agent.log").read_text().splitlines()
