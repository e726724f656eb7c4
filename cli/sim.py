"""`quarry sim`: simulated CAN buses, MCUs and trucks, each in the foreground until it is stopped."""

from __future__ import annotations

import asyncio
import hashlib
import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cli.sim_chaos import chaos
from cli.sim_mcu import mcu_app, ready
from cli.sim_rom import stm32_rom, stm32_rom_fd
from cli.sim_truck import truck
from cli.sim_vehicle import vehicle
from firmware_flashers.cli_options import number
from shared.errors import ConfigError
from shared.logs import set_up_logs
from sim.can_bus import HubServer
from sim.mcu.esp_boot import DEFAULT_ESP_MAP
from sim.mcu.esp_images import build_esp_image
from sim.mcu.images import build_image
from sim.mcu.memory import DEFAULT_MAP

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Simulated CAN buses, MCUs and trucks. Each runs until it is stopped by SIGINT or SIGTERM.",
)
mcu_app.command("stm32-rom")(stm32_rom)
mcu_app.command("stm32-rom-fd")(stm32_rom_fd)
app.add_typer(mcu_app, name="mcu")
app.command("vehicle")(vehicle)
app.command("chaos")(chaos)
app.command("truck")(truck)


@app.command("bus")
def bus_command(
    socket: Annotated[Path, typer.Option("--socket", help="Where the bus listens: its python-can channel.")],
    bitrate: Annotated[
        int | None, typer.Option(help="Charge each frame its time at this bit/s, stuff bits included.")
    ] = None,
    data_bitrate: Annotated[
        int | None, typer.Option(help="The data bit rate of CAN FD frames; --bitrate when not given.")
    ] = None,
) -> None:
    """Run a CAN bus between processes: python-can interface "quarry-hub", channel = the socket's path.

    It carries classic and CAN FD frames; an endpoint opened without FD sees the classic ones only.
    """
    set_up_logs("quarry-sim-bus")

    async def serve() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for one in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(one, stop.set)
        async with HubServer(socket, bitrate=bitrate, data_bitrate=data_bitrate):
            ready(f'CAN bus; interface "quarry-hub", channel "{socket}"')
            await stop.wait()

    asyncio.run(serve())


class ImageKind(StrEnum):
    """For which simulated part an image is."""

    STM32 = "stm32"
    ESP32 = "esp32"


@app.command("image")
def image_command(
    version: Annotated[str, typer.Option(help="The version that the image carries.")],
    out: Annotated[Path, typer.Option(help="The file to write.")],
    nbytes: Annotated[
        int, typer.Option("--bytes", help="Its size; at least 1024, a multiple of 4 (esp32: 16).")
    ] = 96 * 1024,
    kind: Annotated[ImageKind, typer.Option(help="The part that it is for.")] = ImageKind.STM32,
    base: Annotated[
        int,
        typer.Option(
            parser=number, metavar="ADDRESS", help="stm32: where it starts; 0x08000000 for a ROM loader."
        ),
    ] = DEFAULT_MAP.slot.start,
    chip_id: Annotated[int, typer.Option(help="esp32: the chip's id.")] = 0,
    secure_version: Annotated[int, typer.Option(help="esp32: what anti-rollback compares.")] = 0,
) -> None:
    """Build an image for a simulated MCU: valid headers or vectors, a little code, filler."""
    match kind:
        case ImageKind.STM32:
            data = build_image(version, nbytes, base)
            room = DEFAULT_MAP.flash.end - base
        case ImageKind.ESP32:
            data = build_esp_image(
                version=version, nbytes=nbytes, chip_id=chip_id, secure_version=secure_version
            )
            room = DEFAULT_ESP_MAP.slots[0].size
    if nbytes > room:
        raise ConfigError(f"--bytes {nbytes} is over the slot's {room}")
    try:
        out.write_bytes(data)
    except OSError as error:
        raise ConfigError(f"can't write {out}: {error.strerror}") from error
    sys.stdout.write(
        f"{out}: version {version}, {nbytes} bytes, SHA-256 {hashlib.sha256(data).hexdigest()}\n"
    )
