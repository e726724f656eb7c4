"""A truck of a scenario: buses, ECUs and vehicle here, its agent a process that can be killed, its links."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from control_plane.embedded import child
from edge_agent.trust.manifest_key import PUBLIC, load_or_make_key
from shared.errors import OtaError
from sim.link import Link
from sim.mcu.esp_images import build_esp_image
from sim.mcu.faults import Faults
from sim.mcu.images import build_image
from sim.mcu.memory import DEFAULT_MAP
from sim.mcu.server import Stm32Mcu
from sim.scenarios.office import OfficeProcess
from sim.truck import Bench, powered
from sim.truck_config import (
    BODY_ECU,
    BRAKE_ECU,
    ESP32_UDS,
    TruckEcu,
    TruckSettings,
    TruckTrust,
    write_agent_config,
)
from sim.vehicle_bus import read_words

ENROL_WITHIN_S = 60.0
STOP_WITHIN_S = 30.0
AGENT_DATA = "agent"


@dataclass(frozen=True, kw_only=True)
class Product:
    """A kind of ECU that trucks have: what it is called and how it is flashed."""

    component: str
    kind: str
    hardware: str
    flasher: str

    @classmethod
    def of(cls, ecu: TruckEcu) -> Product:
        """The product that an ECU is."""
        return cls(component=ecu.component, kind=ecu.kind, hardware=ecu.hardware, flasher=ecu.flasher)

    def image(self, version: str, nbytes: int) -> bytes:
        """An image of it."""
        if self.flasher == ESP32_UDS:
            return build_esp_image(version=version, nbytes=nbytes)
        return build_image(version, nbytes, DEFAULT_MAP.slot.start)


BRAKE, BODY = Product.of(BRAKE_ECU), Product.of(BODY_ECU)


class AgentFailed(OtaError):
    """The truck's agent could not be enrolled or ended by itself."""

    code = "agent_failed"
    advice = "Run it again with --keep and look at agent.log in the truck's folder."


@dataclass(frozen=True, kw_only=True)
class Factory:
    """What a truck leaves the factory with.

    `firmware` is (image, document) by component, `firmware_key` (PEM) signs what its ECUs boot, `roots`
    are the director's and the image repository's first root where the trust chain is on.
    """

    firmware_key: bytes
    firmware: Mapping[str, tuple[bytes, bytes]]
    roots: tuple[bytes, bytes] | None = None


class DemoTruck:
    """One truck as a resource; everything of it is in `folder`.

    Both of its links (HTTP and MQTT) go through relays, so that they can be cut; only HTTP is slow.
    `vehicle` is the state in which a vehicle around it begins; None: there is none.
    """

    def __init__(
        self,
        folder: Path,
        device_id: str,
        office: OfficeProcess,
        *,
        products: Sequence[Product],
        factory: Factory,
        link_bytes_per_s: float,
        vehicle: str | None = None,
    ) -> None:
        self.device_id = device_id
        self.products = tuple(products)
        self._folder = folder
        self._factory = factory
        self._vehicle = vehicle
        self._http = Link(office.http_host, office.http_port, down_bytes_per_s=link_bytes_per_s)
        self._mqtt = Link(office.mqtt_host, office.mqtt_port)
        self._stack = AsyncExitStack()
        self._bench: Bench | None = None
        self._config = folder
        self._agent: subprocess.Popen[bytes] | None = None

    async def __aenter__(self) -> Self:
        self._folder.mkdir(parents=True)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._http)
            await stack.enter_async_context(self._mqtt)
            settings = self._settings()
            self._bench = stack.enter_context(powered(settings))
            self._config = write_agent_config(settings, self._bench.channel, self._bench.vehicle_channel)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._agent is not None:
            await child.stop(self._agent, how=signal.SIGTERM, within_s=STOP_WITHIN_S)
        await self._stack.aclose()

    def _settings(self) -> TruckSettings:
        factory = self._factory
        ecus = []
        for product in self.products:
            image, document = factory.firmware[product.component]
            ecus.append(
                TruckEcu(
                    component=product.component,
                    kind=product.kind,
                    hardware=product.hardware,
                    flasher=product.flasher,
                    serial=self.serial(product.component),
                    image=self._put(f"{product.component}.bin", image),
                    document=self._put(f"{product.component}.json", document),
                )
            )
        trust = None
        if factory.roots is not None:
            director, image_root = factory.roots
            trust = TruckTrust(
                director_root=self._put("director.root.json", director),
                image_root=self._put("image.root.json", image_root),
            )
        return TruckSettings(
            folder=self._folder,
            office_url=f"http://127.0.0.1:{self._http.port}",
            mqtt_port=self._mqtt.port,
            firmware_keys=(self._put("firmware-key.pub", factory.firmware_key),),
            ecus=tuple(ecus),
            vehicle=self._vehicle,
            trust=trust,
        )

    def _put(self, name: str, content: bytes) -> Path:
        path = self._folder / name
        path.write_bytes(content)
        return path

    def serial(self, component: str) -> str:
        """How the inventory knows this truck's ECU."""
        return f"{self.device_id}-{component}"

    # --- its agent --------------------------------------------------------------------------------

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

    def gateway_key(self) -> str:
        """The public half (PEM) of the key that its manifests are signed with; made when there is none."""
        data = self._folder / AGENT_DATA
        load_or_make_key(data)
        return (data / PUBLIC).read_text(encoding="ascii")

    def start_agent(self) -> None:
        """Start the agent, or start it again, as a service manager does."""
        self._agent = child.start(self._command("run"), log=self._folder / "agent.log")

    def check_agent(self) -> None:
        """Raise AgentFailed when the agent has ended by itself."""
        if self._agent is not None and (code := self._agent.poll()) not in {None, -signal.SIGKILL}:
            log = child.tail(self._folder / "agent.log")
            raise AgentFailed(f"the agent of {self.device_id} ended with {code}: {log[-600:]}")

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
        # As its service starts it on a gateway, without the desk's command line.
        program = [sys.executable, "-P", "-m", "edge_agent", verb]
        return [*program, "--config", str(self._config), *more]

    # --- its link ---------------------------------------------------------------------------------

    def partial_downloads(self) -> dict[str, int]:
        """Sizes of the images that the agent has parts of, by the name of the part."""
        found = {}
        for part in (self._folder / AGENT_DATA / "images").glob("*.part"):
            # It may just have become whole.
            with suppress(FileNotFoundError):
                found[part.name] = part.stat().st_size
        return found

    def cut_link(self) -> None:
        """Both links at once, as a modem that loses its cell."""
        self._http.cut()
        self._mqtt.cut()

    def restore_link(self) -> None:
        """Back in coverage."""
        self._http.restore()
        self._mqtt.restore()

    # --- what is really there -----------------------------------------------------------------------

    @property
    def bench(self) -> Bench:
        """Its hardware."""
        assert self._bench is not None
        return self._bench

    def drive(self, words: str) -> None:
        """Put its vehicle into another state (see sim.vehicle_bus). Raises ConfigError."""
        assert self.bench.vehicle is not None
        self.bench.vehicle.show(read_words(words))

    def order_faults(self, component: str, faults: Faults) -> None:
        """What goes wrong in an ECU from now on."""
        self.bench.mcus[component].order(faults)

    def programmed_bytes(self, component: str) -> int:
        """Bytes that an ECU has written to a slot since the last erase."""
        return self.bench.mcus[component].programmed_bytes

    def content(self, component: str, size: int) -> bytes:
        """The first `size` bytes of what an ECU runs: what is really there."""
        return self.bench.running_content(size, component)

    def place(self, component: str) -> str:
        """Where an ECU runs: "bootloader", "slot 1", or nothing to say."""
        mcu = self.bench.mcus[component]
        if isinstance(mcu, Stm32Mcu):
            return "bootloader" if mcu.uds.in_bootloader else ""
        running = mcu.uds.running
        return "nothing" if running is None else f"slot {running[0]}"
