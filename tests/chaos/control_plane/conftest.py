"""An office in a process of its own, which a test may kill; and a truck that only speaks MQTT."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiomqtt
import httpx
import pytest

from control_plane.embedded import child
from shared import topics
from shared.messages import Ack, Command, Hello, Status, StatusBatch
from shared.release import FirmwareSpec
from shared.trust.document import make_document
from shared.trust.keys import load_signer, new_key

TRUCK = "truck-001"


class OfficeChild:
    """`quarry serve` on one data folder; started, killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.api: httpx.AsyncClient | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.password = secrets.token_urlsafe(32)
        self.commands: list[Command] = []
        self.accepted: list[str] = []

    async def start(self, *, kill_at: str = "") -> None:
        endpoints = self.folder / "endpoints.json"
        endpoints.unlink(missing_ok=True)
        log = self.folder.with_suffix(".log")
        env = os.environ | {"QUARRY_KILL_AT": kill_at, "QUARRY_RESEND_FIRST_S": "0.5"}
        command = [sys.executable, "-P", "-m", "cli.main", "serve", "--data", str(self.folder)]
        self._process = child.start([*command, "--http-port", "0", "--mqtt-port", "0"], log=log, env=env)
        async with asyncio.timeout(60):
            while not endpoints.exists():
                assert self._process.poll() is None, child.tail(log)
                await asyncio.sleep(0.05)
        found = json.loads(endpoints.read_text())
        self.mqtt = (found["mqtt_host"], found["mqtt_port"])
        await self._close_api()
        token = (self.folder / "admin-token").read_text().strip()
        self.api = httpx.AsyncClient(
            base_url=found["url"],
            headers={"Authorization": f"Bearer {token}"},
            timeout=20,
            trust_env=False,
        )

    async def _close_api(self) -> None:
        if self.api is not None:
            await self.api.aclose()
            self.api = None

    async def stop(self) -> None:
        await self._close_api()
        if self._process is not None:
            await child.stop(self._process, how=signal.SIGTERM, within_s=30)
            assert self._process.returncode in (0, -signal.SIGKILL)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        await self.until_dead()

    async def until_dead(self) -> None:
        """Until it has ended by SIGKILL, its own or a test's; its servers follow it by themselves."""
        assert self._process is not None
        process = self._process
        await asyncio.to_thread(process.wait, 60)
        assert process.returncode == -signal.SIGKILL

    async def get(self, path: str, **params: Any) -> Any:
        assert self.api is not None
        answer = await self.api.get(path, params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def post(self, path: str, **more: Any) -> Any:
        assert self.api is not None
        answer = await self.api.post(path, **more)
        assert answer.status_code in (200, 201), answer.text
        return answer.json()

    async def prepare(self) -> None:
        """A published firmware and an enrolled truck."""
        private, _ = new_key()
        image = b"image"
        spec = FirmwareSpec(
            kind="brakes",
            hardware=("b",),
            version="1.1.0",
            release_counter=1,
            length=len(image),
            sha256=hashlib.sha256(image).hexdigest(),
        )
        document = make_document(spec, load_signer(private), datetime.now(UTC) + timedelta(days=30))
        await self.post("/api/v1/firmwares", files={"document": document, "image": image})
        component = {"component": "brakes", "kind": "brakes", "hardware": "b"}
        await self.post("/api/v1/devices", json={"device_id": TRUCK, "components": [component]})
        token = (await self.post(f"/api/v1/devices/{TRUCK}/enrolment-tokens"))["token"]
        secret = {"http_token": secrets.token_urlsafe(32), "mqtt_password": self.password}
        await self.post("/api/v1/enrolments", json={"enrolment_token": token} | secret)

    async def order(self) -> str:
        order = {"device_id": TRUCK, "component": "brakes", "version": "1.1.0"}
        job_id: str = (await self.post("/api/v1/jobs", json=order))["job_id"]
        return job_id

    @asynccontextmanager
    async def truck(self) -> AsyncIterator[aiomqtt.Client]:
        """The truck online; it notes commands and acks."""
        async with aiomqtt.Client(
            *self.mqtt, username=TRUCK, password=self.password, identifier=TRUCK
        ) as client:
            for topic in topics.truck_reads(TRUCK):
                await client.subscribe(topic, qos=1)

            async def read() -> None:
                async for message in client.messages:
                    raw = bytes(message.payload)
                    if str(message.topic) == topics.commands(TRUCK):
                        self.commands.append(Command.from_json(raw))
                    else:
                        self.accepted += Ack.from_json(raw).accepted

            reading = asyncio.create_task(read())
            hello = Hello(online=True, store_id="store-1", agent_version="0.1.0")
            await client.publish(topics.status(TRUCK, "hello"), hello.to_json(), qos=1, retain=True)
            try:
                yield client
            finally:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)

    async def report(self, client: aiomqtt.Client, *statuses: Status) -> None:
        batch = StatusBatch(store_id="store-1", statuses=statuses)
        await client.publish(topics.status(TRUCK, "update"), batch.to_json(), qos=1)

    async def until(self, condition: Callable[[], Awaitable[bool]]) -> None:
        async with asyncio.timeout(60):
            while not await condition():
                await asyncio.sleep(0.05)


@pytest.fixture
async def office(tmp_path: Path) -> AsyncIterator[OfficeChild]:
    made = OfficeChild(tmp_path / "office")
    made.folder.mkdir()
    try:
        yield made
    finally:
        await made.stop()
