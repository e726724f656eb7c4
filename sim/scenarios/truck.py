"""A truck of a scenario: its bus and MCU here, its agent as a process that can be killed, its links."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from control_plane.embedded import child
from shared.errors import OtaError
from sim.link import Link
from sim.mcu.esp_images import build_esp_image
from sim.mcu.images import build_image
from sim.mcu.memory import DEFAULT_MAP
from sim.scenarios.office import OfficeProcess
from sim.truck import (
    COMPONENT,
    ESP32_UDS,
    HARDWARE,
    KIND,
    STM32_UDS,
    Bench,
    TruckSettings,
    powered,
    write_agent_config,
)

ENROL_WITHIN_S = 60.0
STOP_WITHIN_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Product:
    """A kind of ECU that trucks have: what it is called and how it is flashed."""

    component: str
    kind: str
    hardware: str
    flasher: str

    def image(self, version: str, nbytes: int) -> bytes:
        """An image of it."""
        if self.flasher == ESP32_UDS:
            return build_esp_image(version=version, nbytes=nbytes)
        return build_image(version, nbytes, DEFAULT_MAP.slot.start)


BRAKE = Product(component=COMPONENT, kind=KIND, hardware=HARDWARE, flasher=STM32_UDS)
BODY = Product(component="body", kind="body-controller", hardware="rev-c", flasher=ESP32_UDS)


class AgentFailed(OtaError):
    """The truck's agent could not be enrolled or ended by itself."""

    code = "agent_failed"
    advice = "Run it again with --keep and look at agent.log in the truck's folder."


class DemoTruck:
    """One truck as a resource; everything of it is in `folder`.

    Both of its links (HTTP and MQTT) go through relays, so that they can be cut; only HTTP is slow.
    """

    def __init__(
        self,
        folder: Path,
        device_id: str,
        office: OfficeProcess,
        *,
        product: Product,
        firmware_key: bytes,
        image: bytes,
        document: bytes,
        link_bytes_per_s: float,
    ) -> None:
        self.device_id = device_id
        self.product = product
        self._folder = folder
        self._factory = {"factory.bin": image, "factory.json": document, "firmware-key.pub": firmware_key}
        self._http = Link(office.http_host, office.http_port, down_bytes_per_s=link_bytes_per_s)
        self._mqtt = Link(office.mqtt_host, office.mqtt_port)
        self._stack = AsyncExitStack()
        self._bench: Bench | None = None
        self._config = folder
        self._agent: subprocess.Popen[bytes] | None = None

    async def __aenter__(self) -> Self:
        self._folder.mkdir(parents=True)
        for name, content in self._factory.items():
            (self._folder / name).write_bytes(content)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._http)
            await stack.enter_async_context(self._mqtt)
            settings = TruckSettings(
                folder=self._folder,
                office_url=f"http://127.0.0.1:{self._http.port}",
                mqtt_port=self._mqtt.port,
                firmware_keys=(self._folder / "firmware-key.pub",),
                component=self.product.component,
                kind=self.product.kind,
                hardware=self.product.hardware,
                flasher=self.product.flasher,
                image=self._folder / "factory.bin",
                document=self._folder / "factory.json",
            )
            self._bench = stack.enter_context(powered(settings))
            self._config = write_agent_config(settings, self._bench.channel)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._agent is not None:
            await child.stop(self._agent, how=signal.SIGTERM, within_s=STOP_WITHIN_S)
        await self._stack.aclose()

    async def enrol(self, token: str) -> None:
        """What the field engineer types. Raises AgentFailed."""
        process = await asyncio.create_subprocess_exec(
            *self._command("enroll", "--token", token),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(ENROL_WITHIN_S):
                said, _ = await process.communicate()
        except TimeoutError as error:
            process.kill()
            await process.wait()
            raise AgentFailed(f"{self.device_id} was not enrolled in {ENROL_WITHIN_S:.0f} s") from error
        if process.returncode != 0:
            raise AgentFailed(f"{self.device_id} was not enrolled: {said.decode(errors='replace').strip()}")

    def start_agent(self) -> None:
        """Start the agent, or start it again, as a service manager does."""
        self._agent = child.start(self._command("run"), log=self._folder / "agent.log")

    @property
    def agent_pid(self) -> int:
        """The agent's process."""
        assert self._agent is not None
        return self._agent.pid

    async def kill_agent(self) -> None:
        """SIGKILL: nothing of it is told beforehand."""
        assert self._agent is not None
        self._agent.kill()
        await asyncio.to_thread(self._agent.wait)

    def _command(self, verb: str, *more: str) -> list[str]:
        program = [sys.executable, "-P", "-m", "cli.main", "agent", verb]
        return [*program, "--config", str(self._config), *more]

    def cut_link_after(self, down_bytes: int) -> None:
        """Let the link go when so many more bytes have come down."""
        self._http.cut_after(down_bytes)

    def cut_link(self) -> None:
        """Both links at once, as a modem that loses its cell."""
        self._http.cut()
        self._mqtt.cut()

    @property
    def link_is_cut(self) -> bool:
        """Whether the truck is out of reach."""
        return self._http.is_cut

    def restore_link(self) -> None:
        """Back in coverage."""
        self._http.restore()
        self._mqtt.restore()

    @property
    def programmed_bytes(self) -> int:
        """Bytes that the MCU has written to a slot since the last erase."""
        assert self._bench is not None
        return self._bench.mcu.programmed_bytes

    def mcu_content(self, size: int) -> bytes:
        """The first `size` bytes of what the MCU runs: what is really there."""
        assert self._bench is not None
        return self._bench.running_content(size)
