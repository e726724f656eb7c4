"""Where the vehicle's state comes from. What can't be read, is stale or malformed is unknown."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any, Protocol

from edge_agent.clock import Clock
from edge_agent.interlocks.safety import UNKNOWN, VehicleState
from shared.errors import BadMessage
from shared.since_310 import timeout
from shared.wire import decode_json

MOST_FILE_BYTES = 4096
READ_TIMEOUT_S = 2.0


class Vehicle(Protocol):
    """Tells the vehicle's state; never raises for a state that it can't tell."""

    async def state(self) -> VehicleState: ...


class BenchVehicle:
    """A test bench that stands still: only ever used when the configuration says so in words."""

    def __init__(self, *, voltage_v: float = 24.0) -> None:
        self._state = VehicleState(parked=True, engine_off=True, voltage_v=voltage_v, age_s=0.0)

    async def state(self) -> VehicleState:
        """Parked, engine off."""
        return self._state


class FileVehicle:
    """Reads a JSON file that another process of the gateway keeps up to date (written whole, renamed).

    `{"parked": true, "engine_off": true, "voltage_v": 26.4, "boot_s": 5131.2}`: `boot_s` is the writer's
    CLOCK_BOOTTIME (the first number of /proc/uptime) of the reading, since wall time may jump and a
    reboot must make the file stale.
    """

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock

    async def state(self) -> VehicleState:
        """What the file says, or UNKNOWN."""
        try:
            async with timeout(READ_TIMEOUT_S):
                raw = await asyncio.to_thread(self._read)
            said = decode_json(raw)
        except (OSError, TimeoutError, BadMessage):
            return UNKNOWN
        return read_state(said, self._clock.boot_s())

    def _read(self) -> bytes:
        with self._path.open("rb") as file:
            raw = file.read(MOST_FILE_BYTES + 1)
        if len(raw) > MOST_FILE_BYTES:
            raise BadMessage(f"{self._path.name} is over {MOST_FILE_BYTES} bytes")
        return raw


def read_state(said: object, now_boot_s: float) -> VehicleState:
    """The state that a JSON value tells; each field that is not as described is unknown."""
    if not isinstance(said, dict):
        return UNKNOWN
    at = _number(said.get("boot_s"))
    return VehicleState(
        parked=_truth(said.get("parked")),
        engine_off=_truth(said.get("engine_off")),
        voltage_v=_number(said.get("voltage_v")),
        age_s=None if at is None else now_boot_s - at,
    )


def _truth(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)
