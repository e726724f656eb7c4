"""A vehicle's state in words, as a person writes it."""

from __future__ import annotations

import queue
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import can
import pytest

from shared.errors import ConfigError
from sim.vehicle_bus import (
    BRAKE_CONTROLLER,
    NEUTRAL,
    PARK,
    PARKED,
    STATES,
    Sends,
    SimVehicle,
    frames,
    read_words,
)

WORDS = {
    "": PARKED,
    "parked": PARKED,
    "driving": STATES["driving"],
    "parked parking_brake=released": STATES["brake_released"],
    "parking_brake=error": STATES["brake_error"],
    "  driving\tparking_brake=set\n": replace(STATES["driving"], brake_raw=1),
    "speed_km_h=1.5 gear=3": replace(PARKED, speed_raw=384, gear_raw=128),
    "gear=neutral engine_rpm=650": replace(PARKED, gear_raw=NEUTRAL, rpm_raw=5200),
    "rolling gear=park": replace(STATES["rolling"], gear_raw=PARK),
    "gear=-1 battery_v=21.55 key=off": replace(PARKED, gear_raw=124, battery_v=21.55, key_v=0.0),
    "speed_km_h=250 engine_rpm=8000 gear=125": replace(PARKED, speed_raw=64000, rpm_raw=64000, gear_raw=250),
}


@pytest.mark.parametrize("words", WORDS)
def test_words_say_a_state(words: str) -> None:
    assert read_words(words) == WORDS[words]


WRONG = {
    "flying": "there is no state 'flying'",
    "parked driving": "a vehicle has no 'driving' to set",
    "parked brake=set": "a vehicle has no 'brake=set' to set; known are speed_km_h=",
    "parking_brake=on": "parking_brake is released, set, error, not_available, not 'on'",
    "parking_brake=": "not ''",
    "speed_km_h=251": "speed_km_h is 0 to 250, not '251'",
    "speed_km_h=-1": "not '-1'",
    "speed_km_h=nan": "not 'nan'",
    "speed_km_h=inf": "not 'inf'",
    "engine_rpm=fast": "engine_rpm is 0 to 8000",
    "gear=126": "gear is park, neutral or -125 to 125",
    "gear=1.5": "not '1.5'",
    "battery_v=1e9": "battery_v is 0 to 100",
    "key=half": "key is on, off, not 'half'",
}


@pytest.mark.parametrize("words", WRONG)
def test_wrong_words_are_one_sentence(words: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_words(words)
    assert WRONG[words] in error.value.message


def test_what_can_be_said_can_be_sent() -> None:
    """The greatest values must not run into J1939's patterns of error and absence."""
    most: Sends = read_words("speed_km_h=250 engine_rpm=8000 gear=125 battery_v=100 key=on")
    assert most.speed_raw is not None
    assert most.rpm_raw is not None
    assert most.gear_raw is not None
    assert most.battery_v is not None
    assert most.speed_raw >> 8 <= 0xFA
    assert most.rpm_raw >> 8 <= 0xFA
    assert most.gear_raw <= 0xFA
    assert round(most.battery_v / 0.05) >> 8 <= 0xFA


class Events:
    """Stands for the vehicle's log: what it says, as it says it."""

    def __init__(self) -> None:
        self._said: queue.Queue[tuple[str, str]] = queue.Queue()

    def info(self, event: str, **more: Any) -> None:
        self._said.put((event, more.get("words", "")))

    def warning(self, event: str, **more: Any) -> None:
        self._said.put((event, more.get("why", "")))

    def next(self) -> tuple[str, str]:
        return self._said.get(timeout=30)


class Wire:
    """Stands for the bus: the newest frame of each identifier."""

    def __init__(self) -> None:
        self.newest: dict[int, bytes] = {}

    def send(self, message: can.Message) -> None:
        self.newest[message.arbitration_id] = bytes(message.data)


def test_words_in_its_file_are_shown_and_wrong_ones_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events, wire, file = Events(), Wire(), tmp_path / "vehicle.txt"
    monkeypatch.setattr("sim.vehicle_bus.log", events)
    ccvs = 0x18FEF100 | BRAKE_CONTROLLER

    def ccvs_of(sends: Sends) -> bytes:
        return next(data for _, number, data in frames(sends) if number == ccvs)

    with SimVehicle(wire, STATES["brake_released"], words=file):  # type: ignore[arg-type]
        file.write_text("driving")
        assert events.next() == ("vehicle.shown", "driving")
        file.write_text("parking_brake=perhaps")
        event, why = events.next()
        assert event == "vehicle.words_refused"
        assert "not 'perhaps'" in why
        assert wire.newest[ccvs] == ccvs_of(STATES["driving"])
        file.write_bytes(b"\xff\xfe")
        assert events.next()[0] == "vehicle.words_refused"
        file.unlink()
        file.write_text("parked parking_brake=error")
        assert events.next() == ("vehicle.shown", "parked parking_brake=error")
        deadline = time.monotonic() + 30
        while wire.newest[ccvs] != ccvs_of(STATES["brake_error"]):
            assert time.monotonic() < deadline, "it was shown, and not sent"
            time.sleep(0.01)
