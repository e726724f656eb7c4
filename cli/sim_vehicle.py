"""`quarry sim vehicle`: the vehicle around the ECUs, as a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.sim_mcu import POLL_S, Bitrate, BusFailed, Channel, Interface, open_bus, ready, until_signal
from shared.logs import set_up_logs
from sim.vehicle_bus import SETTINGS, STATES, SimVehicle, read_words

WORDS = f"A state ({', '.join(STATES)}), then changes of it ({SETTINGS}): 'parked parking_brake=released'."


def vehicle(
    interface: Interface,
    channel: Channel,
    state_words: Annotated[str, typer.Option("--state", metavar="WORDS", help=WORDS)] = "parked",
    control: Annotated[
        Path | None,
        typer.Option(
            help="A file that is looked at while it runs: write such words to it (echo driving > FILE)."
        ),
    ] = None,
    bitrate: Bitrate = None,
) -> None:
    """Send a vehicle's J1939 messages: speed, parking brake, engine, gear, battery, key switch."""
    sends = read_words(state_words)
    set_up_logs("quarry-sim-vehicle")
    bus = open_bus(interface, channel, bitrate=bitrate)
    try:
        with until_signal() as stop, SimVehicle(bus, sends, words=control) as sending:
            ready(f"vehicle, {state_words}, on {interface} {channel}")
            while not stop.wait(POLL_S):
                if sending.ended.is_set():
                    raise BusFailed(f"the bus {interface} {channel} has gone")
    finally:
        bus.shutdown()
