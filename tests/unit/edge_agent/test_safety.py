"""What is not known is no; and what a vehicle's file may say."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from edge_agent.clock import BUILT_AT, Clock
from edge_agent.errors import CountersUnknown, StoreFailed
from edge_agent.interlocks.safety import UNKNOWN, Allowed, Forbidden, Policy, VehicleState, judge
from edge_agent.interlocks.vehicle import BenchVehicle, FileVehicle
from edge_agent.trust.counters import Counters

GOOD = VehicleState(parked=True, engine_off=True, voltage_v=24.0, age_s=1.0)
LAX = Policy(need_parked=False, need_engine_off=False, least_voltage_v=None)


def test_only_a_known_and_safe_state_is_allowed() -> None:
    assert judge(GOOD, Policy()) == Allowed()
    assert judge(replace(GOOD, parked=None, engine_off=None, voltage_v=None), LAX) == Allowed()


@pytest.mark.parametrize(
    ("state", "word"),
    [
        (UNKNOWN, "not known"),
        (replace(GOOD, age_s=None), "not known"),
        (replace(GOOD, age_s=5.1), "not known"),
        (replace(GOOD, age_s=-0.1), "not known"),
        (replace(GOOD, age_s=float("nan")), "not known"),
        (replace(GOOD, parked=None), "not known to be parked"),
        (replace(GOOD, parked=False), "not parked"),
        (replace(GOOD, engine_off=None), "not known to be off"),
        (replace(GOOD, engine_off=False), "engine runs"),
        (replace(GOOD, voltage_v=None), "voltage is not known"),
        (replace(GOOD, voltage_v=21.9), "below 22 V"),
        (replace(GOOD, voltage_v=float("nan")), "below 22 V"),
    ],
)
def test_everything_else_is_forbidden_with_its_reason(state: VehicleState, word: str) -> None:
    verdict = judge(state, Policy())
    assert isinstance(verdict, Forbidden)
    assert word in verdict.why


def test_all_reasons_are_named_at_once() -> None:
    verdict = judge(replace(GOOD, parked=False, engine_off=False, voltage_v=1.0), Policy())
    assert isinstance(verdict, Forbidden)
    assert all(word in verdict.why for word in ("parked", "engine", "voltage"))


async def test_a_bench_stands_still() -> None:
    assert judge(await BenchVehicle().state(), Policy()) == Allowed()


SAID: dict[str, Any] = {"parked": True, "engine_off": True, "voltage_v": 26, "boot_s": 1000.0}


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (json.dumps(SAID), VehicleState(parked=True, engine_off=True, voltage_v=26.0, age_s=2.0)),
        (json.dumps({**SAID, "parked": 1}), VehicleState(engine_off=True, voltage_v=26.0, age_s=2.0)),
        (json.dumps({**SAID, "voltage_v": True}), VehicleState(parked=True, engine_off=True, age_s=2.0)),
        (json.dumps({**SAID, "boot_s": "now"}), VehicleState(parked=True, engine_off=True, voltage_v=26.0)),
        ('{"parked": tru', UNKNOWN),
        ("[1]", UNKNOWN),
        ("", UNKNOWN),
        (json.dumps({**SAID, "pad": "x" * 5000}), UNKNOWN),
        (None, UNKNOWN),
    ],
)
async def test_a_file_is_believed_as_far_as_it_goes(tmp_path: Path, raw: str | None, expected: Any) -> None:
    path = tmp_path / "vehicle.json"
    if raw is not None:
        path.write_text(raw)
    assert await FileVehicle(path, Clock(boot_s=lambda: 1002.0)).state() == expected


async def test_a_file_from_before_the_reboot_is_stale(tmp_path: Path) -> None:
    path = tmp_path / "vehicle.json"
    path.write_text(json.dumps(SAID))
    state = await FileVehicle(path, Clock(boot_s=lambda: 12.0)).state()
    assert isinstance(judge(state, Policy()), Forbidden)


def test_time_never_reads_below_the_floor() -> None:
    assert Clock(wall=lambda: datetime(1970, 1, 1, tzinfo=UTC)).now() == BUILT_AT
    later = datetime(2031, 1, 1, tzinfo=UTC)
    assert Clock(wall=lambda: later).now() == later


async def test_counters_only_rise_and_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "counters.json"
    counters = await Counters.open(path)
    assert counters.highest("brakes") == 0
    await counters.raise_to("brakes", 5)
    await counters.raise_to("brakes", 3)
    await counters.raise_to("engine", 1)
    counters = await Counters.open(path)
    assert (counters.highest("brakes"), counters.highest("engine")) == (5, 1)
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("raw", [b"{", b"[]", b'{"brakes": "5"}', b"\xff\xfe", b"{" + b" " * 70_000 + b"}"])
async def test_damaged_counters_are_no_counters(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "counters.json"
    path.write_bytes(raw)
    counters = await Counters.open(path)
    with pytest.raises(CountersUnknown):
        counters.highest("brakes")
    await counters.raise_to("brakes", 7)
    assert path.read_bytes() == raw


async def test_counters_that_can_not_be_written_are_said(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    counters = await Counters.open(folder / "counters.json")
    folder.rmdir()
    with pytest.raises(StoreFailed):
        await counters.raise_to("brakes", 7)
    assert counters.highest("brakes") == 0
    assert list(tmp_path.iterdir()) == []
