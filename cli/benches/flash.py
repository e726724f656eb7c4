"""`quarry bench flash`: the wire's share, the host's cost, the plain way beside ours."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from cli.benches import flash_host, flash_paced, flash_rom, flash_vcan, flash_wire
from cli.benches.report import Case, Row

K = 1000
M = 1000 * K


def _case(name: str, unit: str, goal: str, measure: Callable[[], Row]) -> Case:
    return Case(name=name, unit=unit, goal=goal, measure=measure)


def _wire(name: str, bitrate: int, data_bitrate: int | None = None) -> Case:
    return _case(name, "kB/s", ">= 0.95 of limit", partial(flash_wire.uds, name, bitrate, data_bitrate))


def _paced(name: str, bitrate: int) -> Case:
    return _case(name, "kB/s", ">= 0.9 of limit", partial(flash_paced.paced, name, bitrate))


def _rom(name: str, bitrate: int) -> Case:
    return _case(name, "kB/s", ">= 0.95 of limit", partial(flash_rom.an3154, name, bitrate))


def _plain(name: str, bitrate: int) -> Case:
    return _case(name, "kB/s", ">= 1 of limit", partial(flash_paced.against_plain, name, bitrate))


CASES = [
    _wire("uds.classic.250k", 250 * K),
    _wire("uds.classic.500k", 500 * K),
    _wire("uds.classic.1m", M),
    _wire("uds.fd.500k-2m", 500 * K, 2 * M),
    _wire("uds.fd.500k-5m", 500 * K, 5 * M),
    _paced("uds.paced.250k", 250 * K),
    _paced("uds.paced.500k", 500 * K),
    _rom("an3154.125k", 125 * K),
    _rom("an3154.1m", M),
    _case("an5405.250k-1m", "kB/s", ">= 0.95 of limit", partial(flash_rom.an5405, "an5405.250k-1m")),
    _case("an3154.ack_overhead", "us", "<= limit", partial(flash_rom.ack_overhead, "an3154.ack_overhead")),
    _case(
        "an3154.ack_p99_loaded", "ms", "<= limit", partial(flash_rom.ack_p99_loaded, "an3154.ack_p99_loaded")
    ),
    _case(
        "sector.changed_1_of_1mib",
        "kB",
        "<= limit",
        partial(flash_wire.changed_sector, "sector.changed_1_of_1mib"),
    ),
    _case("host.frames_send", "frames/s", ">= limit", flash_host.frames_send),
    _case("host.frames_receive", "frames/s", ">= limit", flash_host.frames_receive),
    _case("host.cpu_per_mib", "s of one core", "none", flash_host.cpu_per_mib),
    _case("vcan.frames", "frames/s", "none", flash_vcan.frames),
    _case("vcan.isotp_kernel", "kB/s", "none", flash_vcan.kernel_isotp),
    _plain("plain.paced.250k", 250 * K),
    _plain("plain.paced.500k", 500 * K),
]
