"""`quarry sim vehicle`: the vehicle around the ECUs, as a process of its own."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.sim_mcu import POLL_S, Bitrate, BusFailed, Channel, Interface, open_bus, ready, until_signal
from shared.logs import set_up_logs
from sim.vehicle_bus import STATES, SimVehicle, state


def vehicle(
    interface: Interface,
    channel: Channel,
    state_word: Annotated[
        str, typer.Option("--state", help=f"What it does: {', '.join(STATES)}.")
    ] = "parked",
    bitrate: Bitrate = None,
) -> None:
    """Send a vehicle's J1939 messages: speed, parking brake, engine, gear, battery, key switch."""
    set_up_logs("quarry-sim-vehicle")
    sends = state(state_word)
    bus = open_bus(interface, channel, bitrate=bitrate)
    try:
        with until_signal() as stop, SimVehicle(bus, sends) as sending:
            ready(f"vehicle, {state_word}, on {interface} {channel}")
            while not stop.wait(POLL_S):
                if sending.ended.is_set():
                    raise BusFailed(f"the bus {interface} {channel} has gone")
    finally:
        bus.shutdown()
