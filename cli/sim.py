"""`quarry sim`: simulated CAN buses, MCUs and trucks, each in the foreground until it is stopped."""

from __future__ import annotations

import asyncio
import hashlib
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import can
import typer

from firmware_flashers.security import read_secret
from shared.errors import ConfigError, OtaError
from shared.logs import set_up_logs
from sim.can_bus import HubServer
from sim.mcu.assembly import McuSettings
from sim.mcu.faults import parse_faults
from sim.mcu.images import build_image
from sim.mcu.memory import DEFAULT_MAP
from sim.mcu.profile import EcuIdentity
from sim.mcu.server import Stm32Mcu
from sim.truck import BITRATE, COMPONENT, HARDWARE, KIND, TruckSettings, leave_factory, read_file, run_truck

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Simulated CAN buses, MCUs and trucks. Each runs until it is stopped by SIGINT or SIGTERM.",
)
mcu_app = typer.Typer(no_args_is_help=True, help="Simulated MCUs on a CAN bus.")
app.add_typer(mcu_app, name="mcu")

POLL_S = 0.2
# Drivers of python-can raise what their vendors' libraries do; all mean: no bus.
DRIVER_ERRORS = (
    can.CanError,
    OSError,
    ValueError,
    TypeError,
    ImportError,
    AttributeError,
    NotImplementedError,
)
Fault = Annotated[
    list[str] | None,
    typer.Option("--fault", help="NAME=VALUE, repeatable: busy=2, pending_s=8, power_cut_at_frame=300 ..."),
]


class BusFailed(OtaError):
    """The MCU's CAN bus can't be opened, or went away."""

    code = "bus_failed"
    retryable = True
    advice = "Start the bus first (quarry sim bus --socket PATH) and name it alike in both."


def ready(sentence: str) -> None:
    """Say that it runs, to people and to programs that wait for it."""
    sys.stdout.write(f"ready: {sentence}\n")
    sys.stdout.flush()


@contextmanager
def until_signal() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set."""
    stop = threading.Event()
    before = {one: signal.signal(one, lambda *_: stop.set()) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


@app.command("bus")
def bus_command(
    socket: Annotated[Path, typer.Option("--socket", help="Where the bus listens: its python-can channel.")],
    bitrate: Annotated[int | None, typer.Option(help="Charge each frame its time at this bit/s.")] = None,
) -> None:
    """Run a CAN bus between processes: python-can interface "quarry-hub", channel = the socket's path."""
    set_up_logs("quarry-sim-bus")

    async def serve() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for one in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(one, stop.set)
        async with HubServer(socket, bitrate=bitrate):
            ready(f'CAN bus; interface "quarry-hub", channel "{socket}"')
            await stop.wait()

    asyncio.run(serve())


@mcu_app.command("stm32-uds")
def stm32_uds(
    interface: Annotated[str, typer.Option(help="A python-can interface, quarry-hub or socketcan, say.")],
    channel: Annotated[str, typer.Option(help="Its channel.")],
    public_key: Annotated[
        list[Path], typer.Option(help="PEM of a key that signs firmware for this MCU; repeatable.")
    ],
    security_secret: Annotated[
        Path, typer.Option(help="The ECU family's 32 bytes of security access, in a 0600 file.")
    ],
    flash: Annotated[
        Path | None, typer.Option(help="The file that keeps its flash; without it the flash is forgotten.")
    ] = None,
    kind: Annotated[str, typer.Option(help="What it says it is.")] = KIND,
    hardware: Annotated[str, typer.Option(help="Its hardware revision.")] = HARDWARE,
    image: Annotated[Path | None, typer.Option(help="Factory image, for a flash that is new.")] = None,
    document: Annotated[Path | None, typer.Option(help="The factory image's signed document.")] = None,
    fault: Fault = None,
) -> None:
    """Run an STM32 with a UDS bootloader: requests on 0x7E0, responses on 0x7E8, functional on 0x7DF.

    It boots an image only if its document is signed by a public key given here and everything fits.
    """
    set_up_logs("quarry-sim-mcu")
    faults = parse_faults(fault or [])
    with ExitStack() as stack:
        if flash is None:
            flash = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="quarry-mcu-"))) / "flash.bin"
        leave_factory(flash, image, document)
        settings = McuSettings(
            flash_file=flash,
            identity=EcuIdentity(kind=kind, hardware=hardware),
            public_keys=tuple(read_file(one) for one in public_key),
            security_secret=read_secret(security_secret).value,
        )
        stop = stack.enter_context(until_signal())
        bus = stack.enter_context(open_bus(interface, channel))
        mcu = stack.enter_context(Stm32Mcu(settings, bus, faults=faults))
        runs = mcu.boots().spec
        state = f"runs {runs.version}" if runs else "waits in its bootloader"
        ready(f"MCU {kind} {hardware} on {interface} {channel}, {state}")
        while not stop.wait(POLL_S):
            if mcu.wait_ended(0):
                raise BusFailed(f"the bus {interface} {channel} has gone")


def open_bus(interface: str, channel: str) -> can.BusABC:
    """A python-can bus; raises BusFailed."""
    try:
        return can.Bus(channel, interface=interface, ignore_config=True)
    except DRIVER_ERRORS as error:
        raise BusFailed(f"the bus {interface} {channel} can't be opened: {error}") from error


@app.command("image")
def image_command(
    version: Annotated[str, typer.Option(help="The version that the image carries.")],
    out: Annotated[Path, typer.Option(help="The file to write.")],
    nbytes: Annotated[int, typer.Option("--bytes", help="Its size; at least 1024, a multiple of 4.")] = 96
    * 1024,
) -> None:
    """Build a Cortex-M image for the simulated STM32: valid vectors, a little code, filler."""
    data = build_image(version, nbytes, DEFAULT_MAP.slot.start)
    if nbytes > DEFAULT_MAP.slot.size:
        raise ConfigError(f"--bytes {nbytes} is over the slot's {DEFAULT_MAP.slot.size}")
    try:
        out.write_bytes(data)
    except OSError as error:
        raise ConfigError(f"can't write {out}: {error.strerror}") from error
    sys.stdout.write(
        f"{out}: version {version}, {nbytes} bytes, SHA-256 {hashlib.sha256(data).hexdigest()}\n"
    )


@app.command("truck")
def truck_command(
    office: Annotated[str, typer.Option(help="The office's URL.")],
    data: Annotated[Path, typer.Option(help="The truck's folder; everything that survives is in it.")],
    firmware_key: Annotated[
        list[Path], typer.Option(help="PEM of a key that signs firmware for this truck; repeatable.")
    ],
    enrolment_token: Annotated[
        str | None, typer.Option(help="The office's one-time token; needed until the truck is enrolled.")
    ] = None,
    component: Annotated[str, typer.Option(help="The component's name.")] = COMPONENT,
    kind: Annotated[str, typer.Option(help="What its MCU says it is.")] = KIND,
    hardware: Annotated[str, typer.Option(help="Its hardware revision.")] = HARDWARE,
    bitrate: Annotated[int, typer.Option(help="Bit rate of its CAN bus.")] = BITRATE,
    image: Annotated[Path | None, typer.Option(help="Factory image, for a truck that is new.")] = None,
    document: Annotated[Path | None, typer.Option(help="The factory image's signed document.")] = None,
    fault: Fault = None,
) -> None:
    """Run a whole truck: the real agent, a CAN bus and a simulated STM32, in one process."""
    set_up_logs("quarry-sim-truck")
    settings = TruckSettings(
        folder=data,
        office_url=office,
        firmware_keys=tuple(firmware_key),
        component=component,
        kind=kind,
        hardware=hardware,
        bitrate=bitrate,
        image=image,
        document=document,
    )
    asyncio.run(run_truck(settings, enrolment_token, faults=parse_faults(fault or []), ready=ready))
