"""The vehicle's reader on SocketCAN: filters in the kernel, and who counts as foreign there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import closing
from typing import Any

import can
import msgspec
import pytest

from edge_agent.clock import Clock
from edge_agent.interlocks.j1939 import CCVS, EEC1, ETC2, VEP1
from edge_agent.interlocks.j1939_vehicle import BusSource, J1939Vehicle
from edge_agent.interlocks.safety import STRICT, Forbidden, Policy, judge
from sim.vehicle_bus import BRAKE_CONTROLLER, COMPUTER, ENGINE, STATES, TRANSMISSION, SimVehicle

pytestmark = pytest.mark.socketcan

POLICY = Policy(rules=msgspec.structs.replace(STRICT, steady_for=100))
PATIENCE_S = 40


class Raw:
    """A bus with `close`."""

    def __init__(self, channel: str) -> None:
        self.bus = can.Bus(channel, interface="socketcan", ignore_config=True)

    def close(self) -> None:
        self.bus.shutdown()


async def until(vehicle: J1939Vehicle, fits: Callable[[set[str]], bool]) -> None:
    found: set[str] = set()
    try:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                verdict = judge(await vehicle.state(), POLICY)
                found = {one.code for one in verdict.causes} if isinstance(verdict, Forbidden) else set()
                if fits(found):
                    return
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"last seen: {sorted(found)}") from None


async def test_the_vehicle_is_heard_and_strangers_are_told_from_ourselves(vcan0: str) -> None:
    words: dict[str, Any] = {
        "interface": "socketcan",
        "channel": vcan0,
        "own_tx": frozenset({0x7E0}),
        "own_rx": frozenset({0x7E8}),
        "senders": {
            CCVS.pgn: (BRAKE_CONTROLLER,),
            EEC1.pgn: (ENGINE,),
            ETC2.pgn: (TRANSMISSION,),
            VEP1.pgn: (COMPUTER,),
        },
    }
    source = BusSource(**words)
    with closing(Raw(vcan0)) as one, J1939Vehicle(source, Clock()) as vehicle, SimVehicle(one.bus) as sim:
        await until(vehicle, lambda found: not found)
        # Our own flasher is another socket of this machine.
        for own in (0x7E0, 0x7E8):
            one.bus.send(can.Message(arbitration_id=own, data=b"\x02\x3e\x00", is_extended_id=False))
        sim.show(STATES["brake_released"])
        await until(vehicle, lambda found: found == {"brake_not_set"})
        one.bus.send(can.Message(arbitration_id=0x18DA0BF9, data=b"\x02\x3e\x00", is_extended_id=True))
        await until(vehicle, lambda found: "foreign_tester" in found)
