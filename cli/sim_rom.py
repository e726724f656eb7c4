"""`quarry sim mcu stm32-rom | stm32-rom-fd`: a part in the loader of its ROM, on any python-can bus."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.sim_mcu import (
    Bitrate,
    Channel,
    DataBitrate,
    EraseS,
    Fault,
    FlashFile,
    Interface,
    flash_file,
    open_bus,
    serve,
)
from shared.errors import ConfigError
from shared.images.stm32_families import FAMILIES
from shared.logs import set_up_logs
from sim.mcu.faults import parse_faults
from sim.mcu.rom_mcu import RomMcu
from sim.mcu.rom_settings import DIALECTS, Dialect, RomSettings
from sim.truck import read_file

QUIRKS: dict[str, type[bool] | type[int]] = {
    "get_n_one_less": bool,
    "read_single_bytes": bool,
    "third_mass_erase_ack": bool,
    "extra_write_acks": int,
    "counts_frames": bool,
    "erase_counts_from_zero": bool,
    "acks_second_sync": bool,
    "go_ignores_vectors": bool,
    "crashes": bool,
    "speed_fails": bool,
}

Family = Annotated[str, typer.Option(help="One of shared/images/stm32_families.py.")]
Image = Annotated[Path | None, typer.Option(help="What stands in a flash that is new.")]
Quirk = Annotated[
    list[str] | None, typer.Option("--quirk", help=f"NAME or NAME=NUMBER, repeatable: {', '.join(QUIRKS)}.")
]
ProgramS = Annotated[float, typer.Option(min=0, max=60, help="Seconds that a flash word takes.")]
Protect = Annotated[list[int] | None, typer.Option(help="A write-protected sector's number; repeatable.")]
ReadoutProtect = Annotated[bool, typer.Option("--readout-protect", help="RDP level 1.")]
Boot0 = Annotated[bool, typer.Option("--boot0/--no-boot0", help="The pin: loader, or what the flash holds.")]


def stm32_rom(
    interface: Interface,
    channel: Channel,
    family: Family = "stm32f40x",
    dialect: Annotated[str, typer.Option(help=f"Its Erase: {', '.join(DIALECTS)}.")] = DIALECTS[0],
    flash: FlashFile = None,
    image: Image = None,
    quirk: Quirk = None,
    bitrate: Bitrate = None,
    erase_s: EraseS = 0.0,
    program_s: ProgramS = 0.0,
    protect: Protect = None,
    readout_protect: ReadoutProtect = False,
    boot0: Boot0 = True,
    fault: Fault = None,
) -> None:
    """Run an STM32 in its ROM loader over bxCAN (ST AN3154): classic frames, 125 kbit/s at first."""
    if dialect not in DIALECTS:
        raise ConfigError(f"--dialect {dialect!r} is not one of {', '.join(DIALECTS)}")
    _run(locals(), fd=False)


def stm32_rom_fd(
    interface: Interface,
    channel: Channel,
    family: Family = "stm32h743",
    flash: FlashFile = None,
    image: Image = None,
    quirk: Quirk = None,
    bitrate: Bitrate = None,
    data_bitrate: DataBitrate = None,
    erase_s: EraseS = 0.0,
    program_s: ProgramS = 0.0,
    protect: Protect = None,
    readout_protect: ReadoutProtect = False,
    boot0: Boot0 = True,
    fault: Fault = None,
) -> None:
    """Run an STM32 in its ROM loader over FDCAN (ST AN5405): FD frames, 250 kbit/s and 1 Mbit/s."""
    _run(locals(), fd=True)


def _run(given: dict[str, Any], *, fd: bool) -> None:
    set_up_logs("quarry-sim-mcu")
    family = given["family"]
    if family in FAMILIES and FAMILIES[family].rom not in {None, "fdcan" if fd else "bxcan"}:
        raise ConfigError(f"--family {family} has {FAMILIES[family].rom} in its ROM loader")
    dialect: Dialect = given.get("dialect", DIALECTS[0])
    where = f"{given['interface']} {given['channel']}"
    with ExitStack() as stack:
        path = stack.enter_context(flash_file(given["flash"]))
        is_new = not path.exists() or path.stat().st_size == 0
        settings = RomSettings(
            flash_file=path,
            family=family,
            dialect=dialect,
            erase_s=given["erase_s"],
            program_s=given["program_s"],
            boot0=given["boot0"],
        )
        settings = dataclasses.replace(settings, **parse_quirks(given["quirk"] or []))
        faults = parse_faults(given["fault"] or [])
        bus = stack.enter_context(
            open_bus(
                given["interface"],
                given["channel"],
                fd=fd,
                bitrate=given["bitrate"],
                data_bitrate=given.get("data_bitrate"),
            )
        )
        mcu = RomMcu(settings, bus, faults=faults)
        if is_new and given["image"] is not None:
            mcu.fill(read_file(given["image"]))
        mcu.protect(given["protect"] or [], readout=given["readout_protect"])
        serve(mcu, where, lambda: _who(mcu, family))


def _who(mcu: RomMcu, family: str) -> str:
    if mcu.running is not None:
        return f"MCU {family}, running {mcu.running.hex()},"
    return f"MCU {family} in its ROM loader" if mcu.boot0 else f"MCU {family}, which runs nothing,"


def parse_quirks(words: list[str]) -> dict[str, Any]:
    """Fields of RomSettings from NAME or NAME=NUMBER words; raises ConfigError that names the word."""
    fields: dict[str, Any] = {}
    for word in words:
        name, _, value = word.partition("=")
        if name not in QUIRKS:
            raise ConfigError(f"quirk {name[:80]!r} is not one of {', '.join(QUIRKS)}")
        if not (value.isdecimal() if QUIRKS[name] is int else value in {"", "0", "1"}):
            raise ConfigError(f"quirk {word[:80]!r} has no number of its kind: give {name}=1, say")
        fields[name] = int(value) if QUIRKS[name] is int else value != "0"
    if "acks_second_sync" in fields:
        fields["synced_again"] = "ack" if fields.pop("acks_second_sync") else "nack"
    if "go_ignores_vectors" in fields:
        fields["go_looks"] = not fields.pop("go_ignores_vectors")
    return fields
