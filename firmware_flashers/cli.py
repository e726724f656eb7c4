"""`quarry flash`: one MCU on a CAN bus, from a shell, by the flashers that the agent uses."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

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
from rich.table import Table

from firmware_flashers.base import (
    BenchFlasher,
    FirmwareImage,
    FlashError,
    NotProved,
    OnProgress,
    Progress,
    TrustClass,
)
from firmware_flashers.cli_ecu import UNNAMED, Wish, with_ecu
from firmware_flashers.cli_options import number
from firmware_flashers.profile import EXAMPLES, examples, read_profile
from firmware_flashers.rom_steps import LOADER_GONE
from firmware_flashers.worker import share_interpreter_often
from shared.errors import ConfigError, OtaError
from shared.images.formats import read
from shared.logs import set_up_logs
from shared.release import MAX_IMAGE_BYTES
from shared.since_310 import UTC
from shared.trust.document import MAX_DOCUMENT_BYTES, verify_document
from shared.trust.image import check_image
from shared.trust.keys import key_ring

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="""Flash, read and identify one MCU on a CAN bus.

    Begin with `quarry flash profiles` and `quarry flash identify --profile NAME --channel can0`. Exit codes:
    0 done; 1 failed, and nothing was erased; 2 wrong use; 3 failed after the first erase; 4 the ECU
    differs from what was named.""",
)

FAILED = 1
WRONG_USE = 2
TOUCHED = 3
DIFFERS = 4
MOST_TEXT_BYTES = 64 * 1024
MOST_READ_BYTES = 64 * 1024 * 1024

Json = Annotated[bool, typer.Option("--json", help="Print exactly one JSON document on stdout.")]
ImageFile = Annotated[
    Path, typer.Option(metavar="FILE", help="Raw binary, Intel HEX, S-record or ELF; the content tells.")
]
DocumentFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The image's signed document (quarry release document sign)."),
]
KeyFiles = Annotated[
    list[Path] | None,
    typer.Option("--public-key", metavar="PEM", help="A key that may sign firmware; can be given again."),
]
Version = Annotated[
    str | None,
    typer.Option(help="Instead of a document: flash an unsigned build of this version (ROM loaders only)."),
]
Address = Annotated[int, typer.Option(parser=number, metavar="ADDRESS", help="The first address.")]
Length = Annotated[int, typer.Option(parser=number, metavar="BYTES", help="How many bytes.")]


@app.command()
def profiles(as_json: Json = False) -> None:
    """List the ECU profiles that come with the program; copy one and change what differs."""
    found = [(name, read_profile(name)) for name in examples()]
    if as_json:
        told = [
            {"name": name, "protocol": one.protocol, "description": one.description, "can": dict(one.can)}
            for name, one in found
        ]
        sys.stdout.write(json.dumps({"ok": True, "folder": str(EXAMPLES), "profiles": told}) + "\n")
        return
    table = Table("name", "protocol", "what for", title=str(EXAMPLES), title_justify="left")
    for name, one in found:
        table.add_row(name, one.protocol, one.description)
    Console().print(table)


@app.command()
@with_ecu
def identify(wish: Wish, as_json: Json = False) -> None:
    """Ask the ECU who it is and what it holds; changes nothing.

    Exits 0 when it answered, 1 when it could not be asked, 2 on wrong use, 4 when it answered but is of
    another kind or hardware than was named.
    """

    async def act(ecu: BenchFlasher) -> dict[str, Any]:
        return {"ecu": asdict(await ecu.identify())}

    ecu = _run(wish, "identify", act, as_json=as_json, reads_only=True)["ecu"]
    settings = wish.settings()
    for key, wanted in (("kind", settings.kind), ("hardware", settings.hardware)):
        if wanted not in {UNNAMED, ecu[key]}:
            sys.stderr.write(f"quarry: the ECU's {key} is {ecu[key]}, not {wanted}.\n")
            raise typer.Exit(DIFFERS)


@app.command()
@with_ecu
def write(
    wish: Wish,
    image: ImageFile,
    document: DocumentFile = None,
    public_key: KeyFiles = None,
    version: Version = None,
    as_json: Json = False,
) -> None:
    """Write an image, start it, and prove that the ECU runs it.

    A signed document must verify by one of the public keys before the ECU is asked anything. Exits 0 when
    the ECU proves that it runs the image, 1 when nothing was erased (the ECU runs what it ran), 2 on
    wrong use, 3 when it failed after the first erase: the ECU waits in its bootloader or runs an
    image that was not proved; write again.
    """

    async def act(ecu: BenchFlasher) -> dict[str, Any]:
        firmware = _firmware(wish, ecu, image, document, public_key or [], version)
        with _bar(show=not as_json) as progress:
            try:
                await ecu.stage(firmware, progress=progress)
                await ecu.activate()
                proved = await ecu.verify(firmware)
                await ecu.confirm()
                return {"ecu": asdict(proved)}
            except asyncio.CancelledError:
                sys.stderr.write("quarry: stopped; if it had begun to erase, write again.\n")
                raise

    _run(wish, "write", act, as_json=as_json)


@app.command()
@with_ecu
def verify(
    wish: Wish,
    image: ImageFile,
    document: DocumentFile = None,
    public_key: KeyFiles = None,
    version: Version = None,
    as_json: Json = False,
) -> None:
    """Ask the ECU whether it runs (a ROM loader: holds) exactly this image; changes nothing.

    Exits 0 when it does, 1 when it could not be asked, 2 on wrong use, 4 when it holds something else.
    """

    async def act(ecu: BenchFlasher) -> dict[str, Any]:
        firmware = _firmware(wish, ecu, image, document, public_key or [], version)
        return {"ecu": asdict(await ecu.verify(firmware))}

    _run(wish, "verify", act, as_json=as_json, reads_only=True)


@app.command("read")
@with_ecu
def read_command(
    wish: Wish,
    start: Address,
    length: Length,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the bytes go; must not exist.")],
    as_json: Json = False,
) -> None:
    """Read the ECU's memory into a file; changes nothing in the ECU.

    Exits 0 when all bytes are in the file, 1 when they could not be read, 2 on wrong use.
    """
    if not 0 < length <= MOST_READ_BYTES:
        raise typer.BadParameter(f"--length {length} is not 1 to {MOST_READ_BYTES}")
    if out.exists():
        raise typer.BadParameter(f"--out {out} exists: nothing is written over it")

    async def act(ecu: BenchFlasher) -> dict[str, Any]:
        with _bar(show=not as_json) as progress:
            data = await ecu.read(start, length, progress=progress)
        await asyncio.to_thread(_write_new, out, data)
        return {
            "read": {
                "start": start,
                "length": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
                "out": str(out),
            }
        }

    _run(wish, "read", act, as_json=as_json, reads_only=True)


@app.command()
@with_ecu
def erase(
    wish: Wish,
    start: Address,
    length: Length,
    yes: Annotated[bool, typer.Option("--yes", help="Yes, the content is to be gone.")] = False,
    as_json: Json = False,
) -> None:
    """Erase whole sectors and prove that they are blank; afterwards the ECU has no application.

    What the profile protects is never erased. Exits 0 when blank, 1 when nothing was erased, 2 on wrong
    use, 3 when it failed in the middle.
    """
    if not yes:
        raise typer.BadParameter("an erase leaves the ECU without its application: repeat it with --yes")

    async def act(ecu: BenchFlasher) -> dict[str, Any]:
        with _bar(show=not as_json) as progress:
            await ecu.erase(start, length, progress=progress)
        return {"erased": {"start": start, "length": length}}

    _run(wish, "erase", act, as_json=as_json)


@app.command()
@with_ecu
def reset(wish: Wish, as_json: Json = False) -> None:
    """Reset the ECU; a ROM loader starts the application.

    Exits 0 when the ECU took it, 1 when it did not answer, 2 on wrong use.
    """

    async def act(ecu: BenchFlasher) -> dict[str, Any]:
        await ecu.reset()
        return {"reset": True}

    _run(wish, "reset", act, as_json=as_json, reads_only=True)


Act = Callable[[BenchFlasher], Coroutine[Any, Any, dict[str, Any]]]


def _run(wish: Wish, verb: str, act: Act, *, as_json: bool, reads_only: bool = False) -> dict[str, Any]:
    """Run one act, print its outcome and return it; raises typer.Exit with the documented code."""
    set_up_logs("quarry-flash", level="warning")
    share_interpreter_often()

    async def on_the_bus() -> dict[str, Any]:
        async with wish.opened(f"quarry flash {verb}") as ecu:
            return await act(ecu)

    try:
        told = asyncio.run(on_the_bus())
    except OtaError as error:
        sys.stderr.write(f"quarry: {error.message} -- {error.advice}\n")
        if as_json:
            sys.stdout.write(json.dumps({"ok": False, "error": error.as_fields()}) + "\n")
        raise typer.Exit(_exit_code(error, reads_only=reads_only)) from error
    if as_json:
        sys.stdout.write(json.dumps({"ok": True} | told) + "\n")
    else:
        _show(told)
    return told


def _show(told: dict[str, Any]) -> None:
    for heading, content in told.items():
        if not isinstance(content, dict):
            sys.stdout.write(f"{heading}: done\n")
            continue
        for name, value in content.items():
            shown = "-" if value is None else hex(value) if name == "start" else value
            sys.stdout.write(f"{name:<14} {shown}\n")


def _exit_code(error: OtaError, *, reads_only: bool) -> int:
    match error:
        case ConfigError():
            return WRONG_USE
        case NotProved() if reads_only and error.code != LOADER_GONE:
            return DIFFERS
        case FlashError() if error.touched and not reads_only:
            return TOUCHED
        case _:
            return FAILED


def _firmware(
    wish: Wish,
    ecu: BenchFlasher,
    image: Path,
    document: Path | None,
    public_keys: list[Path],
    version: str | None,
) -> FirmwareImage:
    """Checked bytes. Raises ConfigError for what can't be read, TrustError and BadImage for what it holds."""
    kind, hardware = wish.named()
    start = ecu.capabilities.image_start
    # A raw binary says nothing of its place: it goes where images of this ECU go.
    flat = read(_read("image", image, 4 * MAX_IMAGE_BYTES), base=start or 0)
    if document is not None:
        if version is not None:
            raise ConfigError("--version and --document are both given: the document names the version")
        if not public_keys:
            raise ConfigError("--public-key is missing: without it nobody can tell who signed the document")
        keys = key_ring([_read("public-key", one, MOST_TEXT_BYTES) for one in public_keys])
        raw = _read("document", document, MAX_DOCUMENT_BYTES)
        spec = verify_document(raw, keys, now=datetime.now(UTC))
        check_image([flat.data], spec)
        return FirmwareImage(spec=spec, data=flat.data, document=raw)
    if version is None:
        raise ConfigError("neither --document (a signed image) nor --version (an unsigned build) is given")
    if ecu.capabilities.trust_class is TrustClass.VERIFIES:
        raise ConfigError(
            "this ECU's bootloader boots only what a signed document describes: --version is not enough",
            advice="Sign the image (quarry release document sign) and give --document and --public-key.",
        )
    return FirmwareImage.unsigned(flat.data, kind=kind, hardware=hardware, version=version)


def _read(option: str, path: Path, most_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(most_bytes + 1)
    except OSError as error:
        raise ConfigError(f"--{option} {path} can't be read: {error.strerror or error}") from error
    if len(content) > most_bytes:
        raise ConfigError(f"--{option} {path} is over {most_bytes} bytes")
    return content


def _write_new(path: Path, data: bytes) -> None:
    try:
        with path.open("xb") as file:
            file.write(data)
    except OSError as error:
        raise ConfigError(f"--out {path} can't be written: {error.strerror or error}") from error


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
