"""`quarry sim truck`: a whole truck in one process, from its ECUs to its agent."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.sim_mcu import Fault, ready
from cli.sim_vehicle import WORDS
from shared.errors import ConfigError
from shared.ids import BadId, check_id
from shared.logs import set_up_logs
from sim.mcu.faults import Faults, parse_faults
from sim.truck import run_truck
from sim.truck_config import BITRATE, BODY_ECU, BRAKE_ECU, FLASHERS, TruckEcu, TruckSettings, TruckTrust
from sim.vehicle_bus import read_words

USUAL = {ecu.flasher: ecu for ecu in (BRAKE_ECU, BODY_ECU)}
ECU_HELP = (
    "An ECU, once for each: NAME:KIND:HARDWARE:FLASHER[:SERIAL], FLASHER one of "
    f"{', '.join(FLASHERS)} (one slot, two slots); or the flasher alone for "
    + " and ".join(f"{one.component}:{one.kind}:{one.hardware}:{one.flasher}" for one in USUAL.values())
    + "."
)


def truck(
    office: Annotated[str, typer.Option(help="The office's URL.")],
    data: Annotated[Path, typer.Option(help="The truck's folder; everything that survives is in it.")],
    firmware_key: Annotated[
        list[Path], typer.Option(help="PEM of a key that signs firmware for its ECUs; repeatable.")
    ],
    enrolment_token: Annotated[
        str | None, typer.Option(help="The office's one-time token; needed until the truck is enrolled.")
    ] = None,
    ecu: Annotated[list[str] | None, typer.Option(metavar="ECU", help=ECU_HELP)] = None,
    component: Annotated[str | None, typer.Option(help="The name of its one ECU, without --ecu.")] = None,
    kind: Annotated[str | None, typer.Option(help="What that ECU says it is.")] = None,
    hardware: Annotated[str | None, typer.Option(help="Its hardware revision.")] = None,
    bitrate: Annotated[int, typer.Option(help="Bit rate of the ECUs' CAN bus.")] = BITRATE,
    image: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]FILE", help="Factory image, for an ECU that is new; once for each."),
    ] = None,
    document: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]FILE", help="The factory image's signed document; once for each."),
    ] = None,
    vehicle: Annotated[
        str | None,
        typer.Option(
            metavar="WORDS",
            help=f"Put a vehicle around it, which the agent asks by J1939. {WORDS} DATA/vehicle.txt changes "
            "it while it runs, and says what it was at the next start. Without: a bench, always safe.",
        ),
    ] = None,
    director_root: Annotated[
        Path | None, typer.Option(help="With --image-root: the trust chain; the director's first root file.")
    ] = None,
    image_root: Annotated[
        Path | None, typer.Option(help="With --director-root: the image repository's first root file.")
    ] = None,
    time_url: Annotated[
        str | None, typer.Option(help="Where the time is asked for over plain HTTP: OFFICE/repo/time, say.")
    ] = None,
    fault: Fault = None,
) -> None:
    """Run a whole truck: the real agent, a CAN bus, simulated ECUs and a vehicle, in one process."""
    ecus = with_factory(read_ecus(ecu or [], component, kind, hardware), image or [], document or [])
    if vehicle is not None:
        read_words(vehicle)
    settings = TruckSettings(
        folder=data,
        office_url=office,
        firmware_keys=tuple(firmware_key),
        ecus=ecus,
        bitrate=bitrate,
        vehicle=vehicle,
        trust=read_trust(director_root, image_root, time_url),
    )
    faults = faults_of(ecus, fault or [])
    set_up_logs("quarry-sim-truck")
    asyncio.run(run_truck(settings, enrolment_token, faults=faults, ready=ready))


def read_ecus(
    words: Sequence[str], component: str | None, kind: str | None, hardware: str | None
) -> tuple[TruckEcu, ...]:
    """The truck's ECUs: those of --ecu, else one. Raises ConfigError."""
    one = {"component": component, "kind": kind, "hardware": hardware}
    given: dict[str, Any] = {name: value for name, value in one.items() if value is not None}
    if words and given:
        raise ConfigError(f"--{next(iter(given))} is for a truck without --ecu: say it in --ecu")
    return tuple(read_ecu(word) for word in words) or (replace(BRAKE_ECU, **given),)


def read_ecu(word: str) -> TruckEcu:
    """An ECU from the command line. Raises ConfigError."""
    if word in USUAL:
        return USUAL[word]
    parts = word.split(":")
    if not 4 <= len(parts) <= 5 or not all(parts):
        raise ConfigError(
            f"--ecu {word[:80]!r} is not NAME:KIND:HARDWARE:FLASHER[:SERIAL], nor one of {', '.join(USUAL)}"
        )
    try:
        component = check_id(parts[0], "--ecu NAME")
    except BadId as error:
        raise ConfigError(error.message) from error
    kind, hardware, flasher = parts[1:4]
    serial = parts[4] if len(parts) == 5 else ""
    return TruckEcu(component=component, kind=kind, hardware=hardware, flasher=flasher, serial=serial)


def with_factory(
    ecus: tuple[TruckEcu, ...], images: Sequence[str], documents: Sequence[str]
) -> tuple[TruckEcu, ...]:
    """The ECUs with what the factory puts into them. Raises ConfigError."""
    files = {"image": _files("--image", ecus, images), "document": _files("--document", ecus, documents)}
    return tuple(
        replace(ecu, image=files["image"].get(ecu.component), document=files["document"].get(ecu.component))
        for ecu in ecus
    )


def _files(option: str, ecus: Sequence[TruckEcu], words: Sequence[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for word in words:
        component, path = _of_which(option, ecus, word, "=")
        if component in found:
            raise ConfigError(f"{option} is given twice for {component}")
        found[component] = Path(path)
    return found


def _of_which(option: str, ecus: Sequence[TruckEcu], word: str, sign: str) -> tuple[str, str]:
    """The ECU that a word is for, and the rest of it; a truck with one ECU need not name it."""
    name, between, rest = word.partition(sign)
    if between and any(ecu.component == name for ecu in ecus):
        return name, rest
    if len(ecus) > 1:
        names = ", ".join(ecu.component for ecu in ecus)
        raise ConfigError(
            f"{option} {word[:80]!r} does not say for which ECU: begin with one of {names}{sign}"
        )
    return ecus[0].component, word


def read_trust(
    director_root: Path | None, image_root: Path | None, time_url: str | None
) -> TruckTrust | None:
    """The trust chain's files, if it is wanted. Raises ConfigError."""
    if director_root is None and image_root is None:
        if time_url is not None:
            raise ConfigError("--time-url is of the trust chain: give --director-root and --image-root, too")
        return None
    if director_root is None or image_root is None:
        raise ConfigError("--director-root and --image-root go together: give both or neither")
    return TruckTrust(director_root=director_root, image_root=image_root, time_url=time_url)


def faults_of(ecus: Sequence[TruckEcu], words: Sequence[str]) -> dict[str, Faults]:
    """What goes wrong in which ECU, from [NAME:]FAULT=VALUE. Raises ConfigError."""
    said: dict[str, list[str]] = {}
    for word in words:
        component, rest = _of_which("--fault", ecus, word, ":")
        said.setdefault(component, []).append(rest)
    return {component: parse_faults(rest) for component, rest in said.items()}
