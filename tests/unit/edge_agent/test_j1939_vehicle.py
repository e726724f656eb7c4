"""What the reader of the vehicle's bus lets through, who is a stranger to it, and what trouble does to it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import can
import pytest

from edge_agent.clock import Clock
from edge_agent.interlocks.j1939 import CCVS, EEC1, make_id
from edge_agent.interlocks.j1939_vehicle import BusSource, J1939Vehicle, address_of, filters_of
from shared.backoff import Backoff

SOURCE = BusSource(
    interface="socketcan",
    channel="can0",
    senders={CCVS.pgn: (0x0B, 0x31), EEC1.pgn: (0x00,)},
    own_tx=frozenset({0x7E0, 0x18DA31F1}),
    own_rx=frozenset({0x7E8, 0x18DAF131}),
)


def passes(source: BusSource, number: int, *, extended: bool = True) -> bool:
    return any(
        one.get("extended") == extended and (number ^ one["can_id"]) & one["can_mask"] == 0
        for one in filters_of(source)
    )


@pytest.mark.parametrize(
    ("number", "extended", "wanted"),
    [
        (0x18FEF10B, True, True),
        (0x0CFEF10B, True, True),
        (0x18FEF131, True, True),
        (0x18FEF100, True, False),
        (0x0CF00400, True, True),
        (0x0CF00403, True, False),
        (0x18FEF70B, True, False),
        (0x19FEF10B, True, False),
        (0x18DA0BF9, True, True),
        (0x18DB33F1, True, True),
        (0x7DF, False, True),
        (0x7E0, False, True),
        (0x7E8, False, False),
        (0x7EF, False, True),
        (0x7F0, False, False),
        (0x123, False, False),
    ],
)
def test_only_what_is_wanted_passes(number: int, extended: bool, wanted: bool) -> None:
    assert passes(SOURCE, number, extended=extended) == wanted


def test_where_frames_of_our_own_can_not_be_told_they_are_not_heard() -> None:
    assert not passes(replace(SOURCE, interface="quarry-hub"), 0x7E0, extended=False)


@pytest.mark.parametrize(
    ("interface", "number", "is_rx", "foreign"),
    [
        ("socketcan", 0x7E0, True, True),
        ("socketcan", 0x7E0, False, False),
        ("socketcan", 0x7E8, True, False),
        ("socketcan", 0x7E1, False, True),
        ("socketcan", 0x18DA31F1, True, True),
        ("socketcan", 0x18DA31F1, False, False),
        ("socketcan", 0x18DAF131, True, False),
        ("socketcan", 0x1CDA31F9, True, True),
        ("socketcan", 0x18DB33F1, True, True),
        ("socketcan", 0x18EA0BF9, True, False),
        ("socketcan", 0x7DF, True, True),
        ("socketcan", 0x7D0, True, False),
        ("quarry-hub", 0x7E0, True, False),
        ("quarry-hub", 0x18DA31F1, True, False),
        ("quarry-hub", 0x7E1, True, True),
    ],
)
def test_who_is_foreign(interface: str, number: int, is_rx: bool, foreign: bool) -> None:
    vehicle = J1939Vehicle(replace(SOURCE, interface=interface), Clock())
    message = can.Message(arbitration_id=number, is_extended_id=number > 0x7FF, is_rx=is_rx, data=b"\x02")
    assert vehicle._is_foreign(message) == foreign


def test_an_address_is_known_by_a_physical_29_bit_identifier_only() -> None:
    assert [address_of(one) for one in (0x18DA31F1, 0x7E0, 0x18DB33F1, 0x18FEF10B)] == [
        0x31,
        None,
        None,
        None,
    ]


class Stub:
    """A bus that gives what a test has for it; an error is raised."""

    def __init__(self, script: Iterator[Any]) -> None:
        self._script = script
        self.closed = False

    def set_filters(self, _: object) -> None:
        return

    def recv(self, _: float) -> Any:
        one = next(self._script, None)
        if isinstance(one, Exception):
            raise one
        return one

    def shutdown(self) -> None:
        self.closed = True


def error_frame(bits: int) -> can.Message:
    return can.Message(arbitration_id=bits, is_extended_id=False, is_error_frame=True, data=bytes(8))


REMOTE = can.Message(arbitration_id=make_id(CCVS.pgn, 0x0B), is_extended_id=True, is_remote_frame=True, dlc=8)
PARKED = can.Message(
    arbitration_id=make_id(CCVS.pgn, 0x0B), is_extended_id=True, data=bytes.fromhex("f70000ffffffffff")
)


@pytest.mark.parametrize(
    ("trouble", "opens_again"),
    [
        (error_frame(0x40), True),
        (can.CanOperationError("gone"), True),
        (OSError("no such device"), True),
        (RuntimeError("a vendor's library"), True),
        (error_frame(0x04), False),
        (REMOTE, False),
    ],
)
async def test_trouble_forgets_what_was_heard(
    monkeypatch: pytest.MonkeyPatch, trouble: Any, opens_again: bool
) -> None:
    buses: list[Stub] = []

    def open_bus(*_: object, **__: object) -> Stub:
        buses.append(Stub(iter([] if buses else [PARKED, trouble])))
        return buses[-1]

    monkeypatch.setattr(can, "Bus", open_bus)
    monkeypatch.setattr("edge_agent.interlocks.j1939_vehicle.filters_in_driver", lambda _: True)
    vehicle = J1939Vehicle(SOURCE, Clock(), backoff=Backoff(first_s=0.01, most_s=0.01), beat_s=0.01)

    async def heard(wanted: bool) -> None:
        async with asyncio.timeout(20):
            while True:
                signals = (await vehicle.state()).signals
                if signals and any(one.age_s is not None for one in signals.readings) == wanted:
                    return
                await asyncio.sleep(0.005)

    with vehicle:
        if opens_again:
            async with asyncio.timeout(20):
                while len(buses) < 2:
                    await asyncio.sleep(0.005)
            await heard(False)
        else:
            await heard(True)
    assert len(buses) == 1 + opens_again
    assert all(bus.closed for bus in buses)


async def test_before_the_bus_is_open_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise can.CanInitializationError("no bus")

    monkeypatch.setattr(can, "Bus", refuse)
    vehicle = J1939Vehicle(SOURCE, Clock())
    assert (await vehicle.state()).dark
    with vehicle:
        assert (await vehicle.state()).dark
