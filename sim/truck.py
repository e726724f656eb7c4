"""One simulated truck: CAN hub, its ECUs with their flash, the vehicle around them, and the real edge agent.

Everything that survives a restart is in the truck's folder: each ECU's flash, the secret of its family,
the agent's configuration and data. Factory content is written once, when there is no flash yet. The
vehicle, where there is one, speaks J1939 on a bus of its own, as behind a truck's gateway.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import can

from edge_agent.app import run_agent
from edge_agent.config import load_config
from edge_agent.office.enrol import enrol, read_credentials, who_we_are
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
from sim.truck_config import ESP32_UDS, TruckEcu, TruckSettings, write_agent_config
from sim.vehicle_bus import MOST_WORDS_BYTES, SimVehicle, read_words

MOST_FILE_BYTES = 64 * 1024 * 1024
VEHICLE_BITRATE = 250_000
"""SAE J1939-11."""
VEHICLE_FILE = "vehicle.txt"

Mcu = Stm32Mcu | Esp32Mcu


@dataclass(frozen=True, kw_only=True)
class Bench:
    """The hardware of a truck that is powered: `channel` is the hub's socket, `mcus` its ECUs by component.

    `vehicle` sends on `vehicle_channel`; both None where there is no vehicle.
    """

    hub: HubServer
    mcus: Mapping[str, Mcu]
    channel: Path
    vehicle: SimVehicle | None = None
    vehicle_channel: Path | None = None

    @property
    def mcu(self) -> Mcu:
        """The first ECU."""
        return next(iter(self.mcus.values()))

    def running_content(self, size: int, component: str | None = None) -> bytes:
        """The first `size` bytes of what an ECU runs (an STM32: has in its slot), as they are in flash."""
        mcu = self.mcu if component is None else self.mcus[component]
        if isinstance(mcu, Stm32Mcu):
            return mcu.content(size)
        running = mcu.uds.running
        return b"" if running is None else mcu.content(running[0], size)


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
def powered(settings: TruckSettings, *, faults: Mapping[str, Faults] | None = None) -> Iterator[Bench]:
    """The truck's buses, ECUs and vehicle, in threads; `faults` by component.

    Raises ConfigError, HubError, FlashFileError.
    """
    folder = settings.folder
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with ExitStack() as stack:
        sockets = _room_for_sockets(folder, stack)
        hub = stack.enter_context(hub_in_thread(sockets / "can.sock", bitrate=settings.bitrate))
        mcus: dict[str, Mcu] = {}
        for ecu in settings.ecus:
            bus = hub_bus(sockets / "can.sock", stack)
            mcu = mcus[ecu.component] = _mcu(settings, ecu, bus, (faults or {}).get(ecu.component))
            stack.enter_context(mcu)
        vehicle = None
        if settings.vehicle is not None:
            stack.enter_context(hub_in_thread(sockets / "vehicle.sock", bitrate=VEHICLE_BITRATE))
            words = _words_of(folder / VEHICLE_FILE, settings.vehicle)
            bus = hub_bus(sockets / "vehicle.sock", stack)
            vehicle = stack.enter_context(SimVehicle(bus, read_words(words), words=folder / VEHICLE_FILE))
        yield Bench(
            hub=hub,
            mcus=mcus,
            channel=sockets / "can.sock",
            vehicle=vehicle,
            vehicle_channel=None if vehicle is None else sockets / "vehicle.sock",
        )


def hub_bus(channel: Path, stack: ExitStack) -> can.BusABC:
    """An endpoint of a hub until `stack` ends."""
    return stack.enter_context(can.Bus(str(channel), interface="quarry-hub", ignore_config=True))


def _room_for_sockets(folder: Path, stack: ExitStack) -> Path:
    """The truck's folder, or one with a shorter name: a socket's path is bounded by the kernel."""
    sockets = folder.resolve()
    if len(os.fsencode(sockets / "vehicle.sock")) > MOST_PATH_BYTES:
        sockets = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="quarry-can-")))
    return sockets


def _mcu(settings: TruckSettings, ecu: TruckEcu, bus: can.BusABC, faults: Faults | None) -> Mcu:
    secret_file = settings.folder / ecu.secret_file
    if not secret_file.exists():
        descriptor = os.open(secret_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(SECRET_BYTES))
    flash_file = settings.folder / ecu.flash_file
    esp = ecu.flasher == ESP32_UDS
    leave_factory(flash_file, ecu.image, ecu.document, esp32_factory if esp else factory)
    tx_id, rx_id = settings.ids_of(ecu.component)
    of_the_part: dict[str, Any] = {
        "flash_file": flash_file,
        "identity": EcuIdentity(kind=ecu.kind, hardware=ecu.hardware, serial=ecu.serial_number),
        "public_keys": tuple(read_file(one) for one in settings.firmware_keys),
        "security_secret": read_secret(secret_file).value,
        "request_id": tx_id,
        "response_id": rx_id,
    }
    if esp:
        return Esp32Mcu(Esp32Settings(**of_the_part), bus, faults=faults)
    return Stm32Mcu(McuSettings(**of_the_part), bus, faults=faults)


def _words_of(file: Path, first: str) -> str:
    """What a person wrote of the vehicle before, else `first`, which is put there for the next one."""
    try:
        with file.open("rb") as found:
            return found.read(MOST_WORDS_BYTES).decode()
    except FileNotFoundError:
        read_words(first)
        file.write_text(f"{first}\n", encoding="utf-8")
        return first
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"can't read {file}: {error}") from error


async def run_truck(
    settings: TruckSettings,
    token: str | None,
    *,
    faults: Mapping[str, Faults],
    ready: Callable[[str], None],
) -> None:
    """Run the truck until SIGINT or SIGTERM; `ready` is told once, when its agent starts.

    With `token` it is enrolled first, unless that token has done so before. The first signal lets an
    update of the ECUs finish, a second one does not. Raises OtaError.
    """
    stop = asyncio.Event()
    async with AsyncExitStack() as stack:
        hardware = powered(settings, faults=faults)
        bench = await asyncio.to_thread(hardware.__enter__)
        stack.push_async_callback(asyncio.to_thread, hardware.__exit__, None, None, None)
        path = await asyncio.to_thread(write_agent_config, settings, bench.channel, bench.vehicle_channel)
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
        ready(_sentence(device_id, settings, bench))
        try:
            await asyncio.wait({agent})
        finally:
            agent.cancel()
        if not agent.cancelled():
            agent.result()


def _sentence(device_id: str, settings: TruckSettings, bench: Bench) -> str:
    ecus = " and ".join(f"{ecu.kind} {ecu.hardware}" for ecu in settings.ecus)
    said = f"truck {device_id} with {ecus}; CAN on quarry-hub {bench.channel}"
    if bench.vehicle is not None:
        said += f"; vehicle by {settings.folder / VEHICLE_FILE}"
    return said


def has_enrolled_by(data_dir: Path, token: str) -> bool:
    """Whether this very token has enrolled the truck, so that no office is needed for it now. Blocks."""
    known = read_credentials(data_dir)
    asked = known.pending.token_sha256 if known.pending else None
    return known.enrolled is not None and asked == hashlib.sha256(token.strip().encode()).hexdigest()
