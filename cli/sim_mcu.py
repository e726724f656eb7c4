"""`quarry sim mcu`: one simulated MCU on any python-can bus, as a process of its own.

Each kind is one command; what all of them share is here: the bus, the flash's file, faults, and the
line that says that it runs.
"""

from __future__ import annotations

import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any, TypeVar

import can
import typer

from firmware_flashers.can_driver import deepen
from firmware_flashers.cli_options import can_id, number, with_options
from firmware_flashers.security import read_secret
from shared.errors import OtaError
from shared.logs import set_up_logs
from sim.mcu.assembly import McuSettings
from sim.mcu.esp32_mcu import Esp32Mcu, Esp32Settings, esp32_factory
from sim.mcu.esp_boot import Chip
from sim.mcu.faults import Faults, parse_faults
from sim.mcu.isotp import Transport
from sim.mcu.profile import Downloads, EcuIdentity, Timing
from sim.mcu.server import Served, Stm32Mcu, factory
from sim.truck import leave_factory, read_file
from sim.truck_config import HARDWARE, KIND

mcu_app = typer.Typer(no_args_is_help=True, help="Simulated MCUs on a CAN bus.")

S = TypeVar("S")
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


Interface = Annotated[str, typer.Option(help="A python-can interface, quarry-hub or socketcan, say.")]
Channel = Annotated[str, typer.Option(help="Its channel.")]
Bitrate = Annotated[int | None, typer.Option(help="bit/s, for interfaces that set it themselves.")]
DataBitrate = Annotated[int | None, typer.Option(help="CAN FD: bit/s after the switch.")]
FlashFile = Annotated[
    Path | None, typer.Option(help="The file that keeps its flash; without it the flash is forgotten.")
]
Fault = Annotated[
    list[str] | None,
    typer.Option("--fault", help="NAME=VALUE, repeatable: busy=2, pending_s=8, power_cut_at_frame=300 ..."),
]

EraseS = Annotated[float, typer.Option(min=0, max=60, help="Seconds that the erase of a sector takes.")]
UDS_OPTIONS: dict[str, Any] = {
    "interface": Interface,
    "channel": Channel,
    "public_key": Annotated[
        list[Path], typer.Option(help="PEM of a key that signs firmware for this MCU; repeatable.")
    ],
    "security_secret": Annotated[
        Path | None,
        typer.Option(help="Security access (27): the ECU family's 32 bytes, in a 0600 file. This or --ca."),
    ],
    "ca": Annotated[
        Path | None,
        typer.Option(help="Authentication (29): the CA certificate that issues testers' ones. PEM or DER."),
    ],
    "flash": FlashFile,
    "kind": Annotated[str, typer.Option(help="What it says it is.")],
    "hardware": Annotated[str, typer.Option(help="Its hardware revision.")],
    "image": Annotated[Path | None, typer.Option(help="Factory image, for a flash that is new.")],
    "document": Annotated[Path | None, typer.Option(help="The factory image's signed document.")],
    "fd": Annotated[bool, typer.Option("--fd", help="It answers in CAN FD frames of up to 64 bytes.")],
    "bitrate": Bitrate,
    "data_bitrate": DataBitrate,
    "tx_id": Annotated[int, can_id("It listens to it: the tester's tx_id (over 0x7FF: 29-bit).")],
    "rx_id": Annotated[int, can_id("It answers with it: the tester's rx_id.")],
    "functional_id": Annotated[int, can_id("Requests to all ECUs.")],
    "block_bytes": Annotated[int, typer.Option(help="The longest TransferData that it takes.")],
    "block_size": Annotated[
        int, typer.Option(min=0, max=255, help="Frames between its flow controls; 0: all.")
    ],
    "st_min": Annotated[
        int,
        typer.Option(parser=number, metavar="BYTE", help="Its STmin: 1..127 ms, 0xF1..0xF9 100..900 us."),
    ],
    "waits": Annotated[int, typer.Option(min=0, max=100, help="Flow controls that say WAIT before each go.")],
    "needs_padding": Annotated[
        bool, typer.Option("--needs-padding", help="It is deaf to frames under 8 bytes.")
    ],
    "erase_s": EraseS,
    "program_s": Annotated[
        float, typer.Option(min=0, max=60, help="Seconds that a block's programming takes.")
    ],
    "pipelined": Annotated[bool, typer.Option("--pipelined", help="It receives the next block meanwhile.")],
    "deflate": Annotated[bool, typer.Option("--deflate", help="It takes compressed downloads (format 10).")],
    "fault": Fault,
}
"""What a part that speaks UDS is told, whatever it is."""
UDS_DEFAULTS: dict[str, Any] = {
    "interface": ...,
    "channel": ...,
    "public_key": ...,
    "kind": KIND,
    "hardware": HARDWARE,
    "fd": False,
    "tx_id": 0x7E0,
    "rx_id": 0x7E8,
    "functional_id": 0x7DF,
    "block_bytes": 4095,
    "block_size": 0,
    "st_min": 0,
    "waits": 0,
    "needs_padding": False,
    "erase_s": 0.0,
    "program_s": 0.0,
    "pipelined": False,
    "deflate": False,
}


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


def open_bus(
    interface: str,
    channel: str,
    *,
    fd: bool = False,
    bitrate: int | None = None,
    data_bitrate: int | None = None,
) -> can.BusABC:
    """A python-can bus; raises BusFailed."""
    # What is not asked for is not named: drivers refuse words that they don't know.
    words: dict[str, Any] = {
        name: value
        for name, value in (("fd", fd), ("bitrate", bitrate), ("data_bitrate", data_bitrate))
        if value
    }
    try:
        bus = can.Bus(channel, interface=interface, ignore_config=True, **words)
    except DRIVER_ERRORS as error:
        raise BusFailed(f"the bus {interface} {channel} can't be opened: {error}") from error
    if interface == "socketcan":
        # A controller's firmware takes each frame as it comes; this program may be late.
        deepen(bus)
    return bus


@contextmanager
def flash_file(given: Path | None) -> Iterator[Path]:
    """The file of a flash; a temporary one when none is given."""
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="quarry-mcu-") as folder:
        yield Path(folder) / "flash.bin"


def serve(mcu: Served[Any], where: str, who: Callable[[], str]) -> None:
    """Run a part until SIGINT or SIGTERM; `who` says what it is once it has booted. Raises BusFailed."""
    with until_signal() as stop, mcu:
        ready(f"{who()} on {where}{state(mcu)}")
        while not stop.wait(POLL_S):
            if mcu.wait_ended(0):
                raise BusFailed(f"the bus {where} has gone")


def state(mcu: Served[Any]) -> str:
    """What runs in it, as far as it says so."""
    match mcu:
        case Stm32Mcu():
            runs = mcu.boots().spec
            return f", runs {runs.version}" if runs else ", waits in its bootloader"
        case Esp32Mcu():
            running = mcu.uds.running
            return f", runs {running[1].version} from slot {running[0]}" if running else ", runs nothing"
        case _:
            return ""


def uds_words(given: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """What the settings of both UDS kinds share, from a command's options by name."""
    secret, ca = given["security_secret"], given["ca"]
    return {
        "flash_file": path,
        "identity": EcuIdentity(kind=given["kind"], hardware=given["hardware"]),
        "public_keys": tuple(read_file(one) for one in given["public_key"]),
        "security_secret": read_secret(secret).value if secret else None,
        "security_ca": read_file(ca) if ca else None,
        "request_id": given["tx_id"],
        "response_id": given["rx_id"],
        "functional_id": given["functional_id"],
        "fd": given["fd"],
        "transport": Transport(
            **{key: given[key] for key in ("block_size", "st_min", "waits", "needs_padding")}
        ),
        "timing": Timing(erase_s=given["erase_s"], program_s=given["program_s"]),
        "downloads": Downloads(**{key: given[key] for key in ("block_bytes", "pipelined", "deflate")}),
    }


def with_uds_options(act: Callable[..., None]) -> Callable[..., None]:
    """A command whose first parameter has the values of UDS_OPTIONS by name."""
    return with_options(act, UDS_OPTIONS, UDS_DEFAULTS, nullcontext)


def run_uds(
    given: Mapping[str, Any],
    fill: Callable[[Path, bytes, bytes], None],
    settings_of: Callable[[dict[str, Any]], S],
    make: Callable[[S, can.BusABC, Faults], Served[Any]],
) -> None:
    """Run a part: `fill` is its factory, `settings_of` checks its words, `make` puts it onto a bus."""
    set_up_logs("quarry-sim-mcu")
    interface, channel = given["interface"], given["channel"]
    with ExitStack() as stack:
        path = stack.enter_context(flash_file(given["flash"]))
        leave_factory(path, given["image"], given["document"], fill)
        settings = settings_of(uds_words(given, path))
        faults = parse_faults(given["fault"] or [])
        bus = stack.enter_context(
            open_bus(
                interface,
                channel,
                fd=given["fd"],
                bitrate=given["bitrate"],
                data_bitrate=given["data_bitrate"],
            )
        )
        mcu = make(settings, bus, faults)
        serve(mcu, f"{interface} {channel}", lambda: f"MCU {given['kind']} {given['hardware']}")


@mcu_app.command("stm32-uds")
@with_uds_options
def stm32_uds(given: dict[str, Any]) -> None:
    """Run an STM32 with a UDS bootloader.

    It boots an image only if its document is signed by a public key given here and everything fits.
    """
    run_uds(
        given,
        factory,
        lambda words: McuSettings(**words),
        lambda settings, bus, faults: Stm32Mcu(settings, bus, faults=faults),
    )


@mcu_app.command("esp32-uds")
@with_uds_options
def esp32_uds(
    given: dict[str, Any],
    chip_id: Annotated[int, typer.Option(help="Its chip id: 0 ESP32, 9 ESP32-S3, ...")] = 0,
    chip_revision: Annotated[int, typer.Option(help="Its revision: major * 100 + minor.")] = 300,
) -> None:
    """Run an ESP32 with two OTA slots, whose application speaks UDS.

    It runs an image only if its document is signed by a public key given here and everything fits.
    """
    chip = Chip(chip_id=chip_id, revision=chip_revision)
    run_uds(
        given,
        esp32_factory,
        lambda words: Esp32Settings(**words, chip=chip),
        lambda settings, bus, faults: Esp32Mcu(settings, bus, faults=faults),
    )
