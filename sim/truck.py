"""One simulated truck in one process: CAN hub, an MCU (STM32 or ESP32) with its flash, the real edge agent.

Everything that survives a restart is in the truck's folder: the MCU's flash, the secret of its ECU
family, the agent's configuration and data. Factory content is written once, when there is no flash
yet.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import can

from edge_agent.app import run_agent
from edge_agent.config import load_config
from edge_agent.enrol import enrol, read_credentials, who_we_are
from firmware_flashers.security import read_secret
from shared.errors import ConfigError
from sim.can_bus import HubServer, hub_in_thread
from sim.can_frames import MOST_PATH_BYTES
from sim.mcu.assembly import McuSettings
from sim.mcu.esp32_mcu import Esp32Mcu, Esp32Settings, esp32_factory
from sim.mcu.faults import Faults
from sim.mcu.profile import EcuIdentity
from sim.mcu.security import SECRET_BYTES
from sim.mcu.server import Stm32Mcu, factory

COMPONENT = "brake"
KIND = "brake-controller"
HARDWARE = "rev-b"
BITRATE = 500_000
MOST_FILE_BYTES = 64 * 1024 * 1024

STM32_UDS, ESP32_UDS = "stm32-uds", "esp32-uds"
FLASHERS = (STM32_UDS, ESP32_UDS)
"""What a simulated truck's MCU may be: one with a bootloader, or one with two OTA slots."""

FLASH_FILE = "mcu-flash.bin"
SECRET_FILE = "ecu.secret"  # a file's name  # noqa: S105
CONFIG_FILE = "agent.toml"


@dataclass(frozen=True, kw_only=True)
class TruckSettings:
    """One truck. `image` and `document` are what the factory puts into its MCU, if anything.

    `mqtt_port`: reach the broker through this port of loopback instead of where the office says, and
    images through `office_url`, as behind a relay.
    """

    folder: Path
    office_url: str
    firmware_keys: tuple[Path, ...]
    component: str = COMPONENT
    kind: str = KIND
    hardware: str = HARDWARE
    bitrate: int | None = BITRATE
    flasher: str = STM32_UDS
    image: Path | None = None
    document: Path | None = None
    mqtt_port: int | None = None

    def __post_init__(self) -> None:
        if self.flasher not in FLASHERS:
            raise ConfigError(f"flasher {self.flasher[:80]!r} is not one of {', '.join(FLASHERS)}")


@dataclass(frozen=True, kw_only=True)
class Bench:
    """The hardware of a truck that is powered: `channel` is the hub's socket."""

    hub: HubServer
    mcu: Stm32Mcu | Esp32Mcu
    channel: Path

    def running_content(self, size: int) -> bytes:
        """The first `size` bytes of what the MCU runs (an STM32: has in its slot), as they are in flash."""
        if isinstance(self.mcu, Stm32Mcu):
            return self.mcu.content(size)
        running = self.mcu.uds.running
        return b"" if running is None else self.mcu.content(running[0], size)


def read_file(path: Path) -> bytes:
    """A whole file of at most 64 MiB; raises ConfigError that names it."""
    try:
        with path.open("rb") as file:
            content = file.read(MOST_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"can't read {path}: {error.strerror}") from error
    if len(content) > MOST_FILE_BYTES:
        raise ConfigError(f"{path} is over {MOST_FILE_BYTES} bytes")
    return content


def leave_factory(
    flash_file: Path,
    image: Path | None,
    document: Path | None,
    fill: Callable[[Path, bytes, bytes], None] = factory,
) -> None:
    """Fill a flash that does not exist yet with an image and its document; both or neither are given.

    `fill` is the factory of that kind of part. Raises ConfigError.
    """
    if (image is None) != (document is None):
        raise ConfigError("an image and its document go together: give both or neither")
    if image is not None and document is not None and not flash_file.exists():
        fill(flash_file, read_file(image), read_file(document))


@contextmanager
def powered(settings: TruckSettings, *, faults: Faults | None = None) -> Iterator[Bench]:
    """The truck's bus and MCU, in threads. Raises ConfigError, HubError, FlashFileError."""
    folder = settings.folder
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    secret_file = folder / SECRET_FILE
    if not secret_file.exists():
        descriptor = os.open(secret_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(SECRET_BYTES))
    esp = settings.flasher == ESP32_UDS
    fill = esp32_factory if esp else factory
    leave_factory(folder / FLASH_FILE, settings.image, settings.document, fill)
    of_the_part: dict[str, Any] = {
        "flash_file": folder / FLASH_FILE,
        "identity": EcuIdentity(kind=settings.kind, hardware=settings.hardware),
        "public_keys": tuple(read_file(one) for one in settings.firmware_keys),
        "security_secret": read_secret(secret_file).value,
    }
    with ExitStack() as stack:
        channel = folder.resolve() / "can.sock"
        if len(os.fsencode(channel)) > MOST_PATH_BYTES:
            channel = (
                Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="quarry-can-"))) / "can.sock"
            )
        hub = stack.enter_context(hub_in_thread(channel, bitrate=settings.bitrate))
        bus = stack.enter_context(can.Bus(str(channel), interface="quarry-hub", ignore_config=True))
        mcu: Stm32Mcu | Esp32Mcu
        if esp:
            mcu = stack.enter_context(Esp32Mcu(Esp32Settings(**of_the_part), bus, faults=faults))
        else:
            mcu = stack.enter_context(Stm32Mcu(McuSettings(**of_the_part), bus, faults=faults))
        yield Bench(hub=hub, mcu=mcu, channel=channel)


def write_agent_config(settings: TruckSettings, channel: Path) -> Path:
    """The agent's configuration for this truck: a bench (no vehicle around), one component."""
    text = json.dumps  # A JSON text without control characters is a TOML basic string.
    keys = ", ".join(text(str(one.resolve())) for one in settings.firmware_keys)
    relay = ""
    if settings.mqtt_port is not None:
        relay = f'mqtt_host = "127.0.0.1"\nmqtt_port = {settings.mqtt_port}\nimages_through_url = true\n'
    config = f"""\
# Written anew at each start of the simulated truck.
data_dir = "agent"

[office]
url = {text(settings.office_url)}
{relay}
[trust]
firmware_keys = [{keys}]
threshold = 1

[vehicle]
source = "bench"

[[component]]
name = {text(settings.component)}
kind = {text(settings.kind)}
hardware = {text(settings.hardware)}
flasher = {text(settings.flasher)}
interface = "quarry-hub"
channel = {text(str(channel))}
tx_id = 0x7E0
rx_id = 0x7E8
security_secret_file = "{SECRET_FILE}"
"""
    path = settings.folder / CONFIG_FILE
    part = path.with_suffix(".part")
    part.write_text(config, encoding="utf-8")
    part.replace(path)
    return path


async def run_truck(
    settings: TruckSettings, token: str | None, *, faults: Faults, ready: Callable[[str], None]
) -> None:
    """Run the truck until SIGINT or SIGTERM; `ready` is told once, when its agent starts.

    With `token` it is enrolled first, unless that token has done so before. The first signal lets an
    update of the MCU finish, a second one does not. Raises OtaError.
    """
    stop = asyncio.Event()
    async with AsyncExitStack() as stack:
        hardware = powered(settings, faults=faults)
        bench = await asyncio.to_thread(hardware.__enter__)
        stack.push_async_callback(asyncio.to_thread, hardware.__exit__, None, None, None)
        path = await asyncio.to_thread(write_agent_config, settings, bench.channel)
        config = await asyncio.to_thread(load_config, path)
        if token is not None and not await asyncio.to_thread(has_enrolled_by, config.data_dir, token):
            await enrol(config, token)
        device_id = (await asyncio.to_thread(who_we_are, config)).device_id
        agent = asyncio.create_task(run_agent(config, stop=stop), name="truck.agent")

        def end() -> None:
            if stop.is_set():
                agent.cancel()
            stop.set()

        loop = asyncio.get_running_loop()
        for one in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(one, end)
        ready(
            f"truck {device_id} with {settings.kind} {settings.hardware}; CAN on quarry-hub {bench.channel}"
        )
        try:
            await asyncio.wait({agent})
        finally:
            agent.cancel()
        if not agent.cancelled():
            agent.result()


def has_enrolled_by(data_dir: Path, token: str) -> bool:
    """Whether this very token has enrolled the truck, so that no office is needed for it now. Blocks."""
    known = read_credentials(data_dir)
    asked = known.pending.token_sha256 if known.pending else None
    return known.enrolled is not None and asked == hashlib.sha256(token.strip().encode()).hexdigest()
