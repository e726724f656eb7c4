"""`quarry flash`: identify, write and verify one MCU on a CAN bus, by the flashers that the agent uses."""

from __future__ import annotations

import asyncio
import json
import sys
import tomllib
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as ProgressBar

from firmware_flashers.base import FirmwareImage, FlashError, NotProved, OnProgress, Progress
from firmware_flashers.registry import FLASHERS, EcuSettings, open_flasher
from firmware_flashers.uds_profile import UdsProfile
from shared.errors import ConfigError, OtaError
from shared.logs import set_up_logs
from shared.release import MAX_IMAGE_BYTES
from shared.trust.document import MAX_DOCUMENT_BYTES, verify_document
from shared.trust.image import check_image
from shared.trust.keys import key_ring

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)
T = TypeVar("T")

FAILED = 1
WRONG_USE = 2
TOUCHED = 3
DIFFERS = 4
MOST_TEXT_BYTES = 64 * 1024


def _number(text: str | int) -> int:
    # Defaults come through here too.
    try:
        return int(str(text), 0)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not a number; write 0x7E0 or 2016") from error


Interface = Annotated[str, typer.Option(help="A python-can interface: socketcan, virtual, quarry-hub, ...")]
Channel = Annotated[str, typer.Option(help="Its channel: can0, a socket's path, ...")]
Bitrate = Annotated[int | None, typer.Option(help="bit/s, for interfaces that set it themselves.")]
TxId = Annotated[
    int, typer.Option(parser=_number, metavar="ID", show_default="0x7E0", help="The ECU listens to it.")
]
RxId = Annotated[
    int, typer.Option(parser=_number, metavar="ID", show_default="0x7E8", help="The ECU answers with it.")
]
Kind = Annotated[str, typer.Option(help="What the ECU must say it is (F197).")]
Hardware = Annotated[str, typer.Option(help="Which revision it must say it is (F191).")]
SecretFile = Annotated[Path, typer.Option(metavar="FILE", help="32 bytes or 64 hex digits, mode 0600.")]
ProfileFile = Annotated[Path | None, typer.Option(metavar="FILE", help="TOML that changes the profile.")]
FlasherWord = Annotated[str, typer.Option("--flasher", help=f"One of {', '.join(FLASHERS)}.")]
Json = Annotated[bool, typer.Option("--json", help="Print exactly one JSON document on stdout.")]
ImageFile = Annotated[Path, typer.Option(metavar="FILE", help="The raw binary.")]
DocumentFile = Annotated[Path, typer.Option(metavar="FILE", help="Its signed document.")]
KeyFiles = Annotated[
    list[Path],
    typer.Option("--public-key", metavar="PEM", help="A key that may sign firmware; can be given again."),
]


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What was asked on the command line, before it is checked."""

    interface: str
    channel: str
    bitrate: int | None
    tx_id: int
    rx_id: int
    kind: str
    hardware: str
    security_secret: Path
    profile: Path | None
    flasher: str

    def settings(self) -> EcuSettings:
        """Raises ConfigError that names the key."""
        return EcuSettings(
            component="bench",
            flasher=self.flasher,
            interface=self.interface,
            channel=self.channel,
            bitrate=self.bitrate,
            tx_id=self.tx_id,
            rx_id=self.rx_id,
            kind=self.kind,
            hardware=self.hardware,
            security_secret_file=self.security_secret,
            profile=UdsProfile() if self.profile is None else _profile(self.profile),
        )


@app.command()
def identify(
    kind: Kind,
    hardware: Hardware,
    security_secret: SecretFile,
    interface: Interface = "socketcan",
    channel: Channel = "can0",
    bitrate: Bitrate = None,
    tx_id: TxId = 0x7E0,
    rx_id: RxId = 0x7E8,
    profile: ProfileFile = None,
    flasher: FlasherWord = FLASHERS[0],
    as_json: Json = False,
) -> None:
    """Ask the ECU who it is and what it holds; changes nothing.

    Exits 0 when it answered, 1 when it could not be asked, 2 on wrong use, 4 when it answered but is of
    another kind or hardware than was named.
    """
    wish = Wish(
        interface=interface,
        channel=channel,
        bitrate=bitrate,
        tx_id=tx_id,
        rx_id=rx_id,
        kind=kind,
        hardware=hardware,
        security_secret=security_secret,
        profile=profile,
        flasher=flasher,
    )

    async def act() -> dict[str, Any]:
        async with open_flasher(wish.settings(), holder="quarry flash identify") as ecu:
            return asdict(await ecu.identify())

    told = _run(act(), as_json=as_json)
    if (told["kind"], told["hardware"]) != (kind, hardware):
        sys.stderr.write(f"quarry: this is {told['kind']} {told['hardware']}, not {kind} {hardware}.\n")
        raise typer.Exit(DIFFERS)


@app.command()
def write(
    image: ImageFile,
    document: DocumentFile,
    public_key: KeyFiles,
    kind: Kind,
    hardware: Hardware,
    security_secret: SecretFile,
    interface: Interface = "socketcan",
    channel: Channel = "can0",
    bitrate: Bitrate = None,
    tx_id: TxId = 0x7E0,
    rx_id: RxId = 0x7E8,
    profile: ProfileFile = None,
    flasher: FlasherWord = FLASHERS[0],
    as_json: Json = False,
) -> None:
    """Write a signed image, start it, and read back that it runs.

    The document must verify by one of the public keys before the ECU is asked anything. Exits 0 when
    the ECU proves that it runs the image, 1 when nothing was erased (the ECU runs what it ran), 2 on
    wrong use, 3 when it failed after the first erase: the ECU waits in its bootloader or runs an
    image that was not proved; write again.
    """
    wish = Wish(
        interface=interface,
        channel=channel,
        bitrate=bitrate,
        tx_id=tx_id,
        rx_id=rx_id,
        kind=kind,
        hardware=hardware,
        security_secret=security_secret,
        profile=profile,
        flasher=flasher,
    )

    async def act() -> dict[str, Any]:
        settings = wish.settings()
        firmware = _firmware(image, document, public_key)
        async with open_flasher(settings, holder="quarry flash write") as ecu:
            with _bar(show=not as_json) as progress:
                try:
                    await ecu.stage(firmware, progress=progress)
                    await ecu.activate()
                    return asdict(await ecu.verify(firmware))
                except asyncio.CancelledError:
                    sys.stderr.write("quarry: stopped; if it had begun to erase, write again.\n")
                    raise

    _run(act(), as_json=as_json)


@app.command()
def verify(
    image: ImageFile,
    document: DocumentFile,
    public_key: KeyFiles,
    kind: Kind,
    hardware: Hardware,
    security_secret: SecretFile,
    interface: Interface = "socketcan",
    channel: Channel = "can0",
    bitrate: Bitrate = None,
    tx_id: TxId = 0x7E0,
    rx_id: RxId = 0x7E8,
    profile: ProfileFile = None,
    flasher: FlasherWord = FLASHERS[0],
    as_json: Json = False,
) -> None:
    """Ask the ECU whether it runs exactly this signed image; changes nothing.

    Exits 0 when it does, 1 when it could not be asked, 2 on wrong use, 4 when it runs something else.
    """
    wish = Wish(
        interface=interface,
        channel=channel,
        bitrate=bitrate,
        tx_id=tx_id,
        rx_id=rx_id,
        kind=kind,
        hardware=hardware,
        security_secret=security_secret,
        profile=profile,
        flasher=flasher,
    )

    async def act() -> dict[str, Any]:
        settings = wish.settings()
        firmware = _firmware(image, document, public_key)
        async with open_flasher(settings, holder="quarry flash verify") as ecu:
            return asdict(await ecu.verify(firmware))

    _run(act(), as_json=as_json, reads_only=True)


def _run(
    act: Coroutine[Any, Any, dict[str, Any]], *, as_json: bool, reads_only: bool = False
) -> dict[str, Any]:
    """Run one act, print its outcome and return it; raises typer.Exit with the documented code."""
    set_up_logs("quarry-flash", level="warning")
    try:
        identity = asyncio.run(act)
    except OtaError as error:
        sys.stderr.write(f"quarry: {error.message} -- {error.advice}\n")
        if as_json:
            sys.stdout.write(json.dumps({"ok": False, "error": error.as_fields()}) + "\n")
        raise typer.Exit(_exit_code(error, reads_only=reads_only)) from error
    if as_json:
        sys.stdout.write(json.dumps({"ok": True, "ecu": identity}) + "\n")
    else:
        for name, value in identity.items():
            sys.stdout.write(f"{name:<14} {'-' if value is None else value}\n")
    return identity


def _exit_code(error: OtaError, *, reads_only: bool) -> int:
    match error:
        case ConfigError():
            return WRONG_USE
        case NotProved() if reads_only:
            return DIFFERS
        case FlashError() if error.touched and not reads_only:
            return TOUCHED
        case _:
            return FAILED


def _firmware(image: Path, document: Path, public_keys: list[Path]) -> FirmwareImage:
    """Verified bytes. Raises ConfigError for a file that can't be read, TrustError for what it holds."""
    keys = key_ring([_read("public-key", one, MOST_TEXT_BYTES) for one in public_keys])
    raw = _read("document", document, MAX_DOCUMENT_BYTES)
    spec = verify_document(raw, keys, now=datetime.now(UTC))
    data = _read("image", image, MAX_IMAGE_BYTES)
    check_image([data], spec)
    return FirmwareImage(spec=spec, data=data, document=raw)


def _profile(path: Path) -> UdsProfile:
    try:
        table = tomllib.loads(_read("profile", path, MOST_TEXT_BYTES).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"profile {path} is no TOML: {error}") from error
    return UdsProfile.from_mapping(table)


def _read(option: str, path: Path, most_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(most_bytes + 1)
    except OSError as error:
        raise ConfigError(f"--{option} {path} can't be read: {error.strerror or error}") from error
    if len(content) > most_bytes:
        raise ConfigError(f"--{option} {path} is over {most_bytes} bytes")
    return content


@contextmanager
def _bar(*, show: bool) -> Iterator[OnProgress]:
    """A progress bar on stderr with rate and time left; a new one for each step."""
    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    tasks: dict[str, TaskID] = {}
    with ProgressBar(*columns, console=Console(stderr=True), disable=not show) as bar:

        def on_progress(now: Progress) -> None:
            if now.step not in tasks:
                tasks[now.step] = bar.add_task(now.step, total=now.total_bytes)
            bar.update(tasks[now.step], completed=now.done_bytes, total=now.total_bytes)

        yield on_progress
