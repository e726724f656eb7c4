"""A vehicle around the ECUs: sends its J1939 messages as often as a real one, in a state that can change.

Encoded here by hand from SAE J1939-71, apart from what the agent decodes with, so that the two check
each other. A state is said in words, "parked parking_brake=released", also in a file that is looked at
while it runs, so that a person drives the truck with `echo`.
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import can

from shared.errors import ConfigError
from shared.logs import get_log

log = get_log("sim.vehicle")

BRAKE_CONTROLLER, ENGINE, TRANSMISSION, COMPUTER = 0x0B, 0x00, 0x03, 0x27
"""Preferred source addresses (SAE J1939-81 annex B) of those who send."""
JOIN_S = 5.0
LOOK_EVERY_S = 0.1
MOST_WORDS_BYTES = 4096
PARK, NEUTRAL, THIRD = 0xFB, 125, 128
ON_V, OFF_V = 25.4, 0.0


@dataclass(frozen=True, kw_only=True)
class Sends:
    """What the vehicle's controllers say; None: that message is not sent. Raw patterns where so named."""

    speed_raw: int | None = 0
    brake_raw: int = 1
    rpm_raw: int | None = 0
    gear_raw: int | None = PARK
    battery_v: float | None = 25.6
    key_v: float = ON_V


PARKED = Sends()
STATES: Mapping[str, Sends] = {
    "parked": PARKED,
    "driving": Sends(speed_raw=30 * 256, brake_raw=0, rpm_raw=1500 * 8, gear_raw=THIRD, battery_v=28.0),
    "rolling": replace(PARKED, speed_raw=2 * 256, brake_raw=0, gear_raw=NEUTRAL),
    "engine_running": replace(PARKED, rpm_raw=650 * 8, battery_v=28.0),
    "brake_released": replace(PARKED, brake_raw=0),
    "brake_error": replace(PARKED, brake_raw=2),
    "not_available": Sends(speed_raw=0xFFFF, brake_raw=3, rpm_raw=0xFFFF, gear_raw=0xFF),
    "contradicting": replace(PARKED, speed_raw=20 * 256),
    "low_battery": replace(PARKED, battery_v=21.0),
    "key_off": replace(PARKED, rpm_raw=None, gear_raw=None, key_v=OFF_V),
    "stale": Sends(speed_raw=None, rpm_raw=None, gear_raw=None, battery_v=None),
}
"""What `--state` knows."""


def _number(most: float, scale: float) -> Callable[[str], int]:
    def read(text: str) -> int:
        value = float(text)
        if not 0 <= value <= most:
            raise ValueError(text)
        return round(value * scale)

    return read


def _volts(text: str) -> float:
    # A battery's range; SPN 158 and 168 end at 3212.75 V.
    return _number(100, 1000)(text) / 1000


def _gear(text: str) -> int:
    if text in {"park", "neutral"}:
        return PARK if text == "park" else NEUTRAL
    if not -125 <= int(text) <= 125:
        raise ValueError(text)
    return int(text) + NEUTRAL


_BRAKE = {"released": 0, "set": 1, "error": 2, "not_available": 3}
_KEY = {"on": ON_V, "off": OFF_V}
_SETTINGS: Mapping[str, tuple[str, Callable[[str], float], str]] = {
    "speed_km_h": ("speed_raw", _number(250, 256), "0 to 250"),
    "parking_brake": ("brake_raw", _BRAKE.__getitem__, ", ".join(_BRAKE)),
    "engine_rpm": ("rpm_raw", _number(8000, 8), "0 to 8000"),
    "gear": ("gear_raw", _gear, "park, neutral or -125 to 125"),
    "battery_v": ("battery_v", _volts, "0 to 100"),
    "key": ("key_v", _KEY.__getitem__, "on, off"),
}
SETTINGS = ", ".join(f"{name}=" for name in _SETTINGS)
"""What may be set beside a state's name."""


def read_words(text: str) -> Sends:
    """A state in words: a name of STATES (parked when none is said), then changes of it as NAME=VALUE.

    Raises ConfigError that names the word.
    """
    words = text.split()
    named = words.pop(0) if words and "=" not in words[0] else "parked"
    if named not in STATES:
        raise ConfigError(f"there is no state {named[:80]!r}; known are {', '.join(STATES)}")
    changes: dict[str, Any] = {}
    for word in words:
        name, _, value = word.partition("=")
        if name not in _SETTINGS:
            raise ConfigError(f"a vehicle has no {word[:80]!r} to set; known are {SETTINGS}")
        field, read, range_ = _SETTINGS[name]
        try:
            changes[field] = read(value)
        except (ValueError, KeyError, OverflowError) as error:
            raise ConfigError(f"{name} is {range_}, not {value[:80]!r}") from error
    return replace(STATES[named], **changes)


def frames(sends: Sends) -> list[tuple[float, int, bytes]]:
    """(period in s, 29-bit identifier, data) of each message that is sent."""
    out: list[tuple[float, int, bytes]] = []
    if sends.speed_raw is not None:
        ccvs = struct.pack("<BHBBBBB", 0xF3 | sends.brake_raw << 2, sends.speed_raw, *b"\xff" * 5)
        out.append((0.1, 0x18FEF100 | BRAKE_CONTROLLER, ccvs))
    if sends.rpm_raw is not None:
        out.append(
            (0.02, 0x0CF00400 | ENGINE, struct.pack("<3sH3s", b"\xff" * 3, sends.rpm_raw, b"\xff" * 3))
        )
    if sends.gear_raw is not None:
        etc2 = struct.pack("<3sB4s", b"\xff" * 3, sends.gear_raw, b"\xff" * 4)
        out.append((0.1, 0x18F00500 | TRANSMISSION, etc2))
    if sends.battery_v is not None:
        volts = (round(sends.battery_v / 0.05), round(sends.key_v / 0.05))
        out.append((1.0, 0x18FEF700 | COMPUTER, struct.pack("<4sHH", b"\xff" * 4, *volts)))
    return out


class SimVehicle:
    """Sends for the time of the `with` block; `show` changes what. The bus is the caller's to close.

    What is written to the file `words` while it runs (see `read_words`) is shown, too; words that say
    nothing that can be are logged and change nothing.
    """

    def __init__(self, bus: can.BusABC, sends: Sends = PARKED, *, words: Path | None = None) -> None:
        self._bus = bus
        self._sends = sends
        self._words = words
        self._seen = _stamp(words)
        self._change = threading.Event()
        self._stop = False
        self._thread = threading.Thread(target=self._run, name="sim-vehicle", daemon=True)
        self.ended = threading.Event()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop = True
        self._change.set()
        self._thread.join(JOIN_S)

    def show(self, sends: Sends) -> None:
        """Be in another state from now on; each of its messages is sent at once."""
        self._sends = sends
        self._change.set()

    def _run(self) -> None:
        try:
            while not self._stop:
                self._change.clear()
                self._send_until_changed(frames(self._sends))
        except (can.CanError, OSError) as error:
            log.warning("vehicle.bus_lost", why=str(error))
        finally:
            self.ended.set()

    def _send_until_changed(self, what: list[tuple[float, int, bytes]]) -> None:
        now = look_at = time.monotonic()
        due = [now] * len(what)
        while not self._change.is_set():
            if look_at <= now:
                look_at = now + LOOK_EVERY_S
                self._look()
            for at, (period_s, number, data) in enumerate(what):
                if due[at] <= now:
                    self._bus.send(can.Message(arbitration_id=number, data=data, is_extended_id=True))
                    # A late frame is not made up for by two.
                    due[at] = max(due[at] + period_s, now)
            self._change.wait(max(0.0, min([*due, look_at]) - time.monotonic()))
            now = time.monotonic()

    def _look(self) -> None:
        stamp = _stamp(self._words)
        if self._words is None or stamp is None or stamp == self._seen:
            return
        self._seen = stamp
        try:
            with self._words.open("rb") as file:
                text = file.read(MOST_WORDS_BYTES).decode()
            # A shell empties a file before it writes.
            if text.strip():
                self.show(read_words(text))
                log.info("vehicle.shown", words=" ".join(text.split()))
        except (ConfigError, OSError, UnicodeDecodeError) as error:
            log.warning("vehicle.words_refused", file=str(self._words), why=str(error))


def _stamp(path: Path | None) -> tuple[int, int] | None:
    """Changes when the file is written."""
    try:
        about = path.stat() if path is not None else None
    except OSError:
        return None
    return None if about is None else (about.st_mtime_ns, about.st_size)
