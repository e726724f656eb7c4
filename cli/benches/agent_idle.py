"""What watching the vehicle's bus costs the gateway: CPU of the agent's reader beside a busy J1939 bus.

The reader is a process of its own, on the hub, whose driver drops what is not wanted before it is decoded
(on SocketCAN the kernel does). Run as `python -m cli.benches.agent_idle HUB SECONDS`: says the CPU
seconds that the process took meanwhile.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import can

from cli.benches.report import Row
from edge_agent.clock import Clock
from edge_agent.interlocks.j1939 import CCVS, EEC1, ETC2, VEP1
from edge_agent.interlocks.j1939_vehicle import BusSource, J1939Vehicle
from shared.logs import set_up_logs
from sim.can_bus import HubBus, hub_in_thread
from sim.vehicle_bus import BRAKE_CONTROLLER, COMPUTER, ENGINE, TRANSMISSION, SimVehicle

SECONDS = 10.0
FRAMES_PER_S = 1000
WANTED_PER_S = 71
"""Of them, of the vehicle: 50 EEC1, 10 CCVS1, 10 ETC2, 1 VEP1."""
GOAL = 0.02
OTHER_IDS = [0x18FE0000 | (group << 8) | 0x21 for group in range(0x10, 0x40)]
CHILD_WITHIN_S = 30.0
BEAT_S = 0.01


def idle_cpu_j1939(seconds: float = SECONDS) -> Row:
    """CPU of the vehicle's reader in % of a core, beside 1,000 J1939 frames/s."""
    with tempfile.TemporaryDirectory(prefix="quarry-bench-") as folder:
        channel = Path(folder) / "hub.sock"
        with hub_in_thread(channel):
            vehicle, others = HubBus(channel), HubBus(channel)
            stop = threading.Event()
            load = threading.Thread(target=_load, args=(others, stop))
            try:
                with SimVehicle(vehicle):
                    load.start()
                    spent_s = _reader(channel, seconds)
            finally:
                stop.set()
                load.join()
                vehicle.shutdown()
                others.shutdown()
    share = spent_s / seconds
    return Row(
        case="idle.cpu_j1939",
        value=100 * share,
        unit="% of a core",
        limit=100 * GOAL,
        limit_is="the goal",
        ratio=share / GOAL,
        goal="< limit",
        met=share < GOAL,
        apart=f"the reader's process over {seconds:g} s, {FRAMES_PER_S} frames/s on quarry-hub",
    )


def _load(bus: can.BusABC, stop: threading.Event) -> None:
    """Everybody else on the bus, in a steady beat."""
    messages = [can.Message(arbitration_id=one, data=bytes(8), is_extended_id=True) for one in OTHER_IDS]
    began, sent = time.monotonic(), 0
    while not stop.wait(BEAT_S):
        due = int((time.monotonic() - began) * (FRAMES_PER_S - WANTED_PER_S))
        while sent < due:
            bus.send(messages[sent % len(messages)])
            sent += 1


def _reader(channel: Path, seconds: float) -> float:
    child = subprocess.run(
        [sys.executable, "-P", "-m", "cli.benches.agent_idle", str(channel), str(seconds)],
        stdout=subprocess.PIPE,
        timeout=seconds + CHILD_WITHIN_S,
        check=True,
        text=True,
    )
    return float(child.stdout)


def main(channel: str, seconds: float) -> None:
    """The reader's process. Raises RuntimeError when it did not hear the vehicle."""
    set_up_logs("quarry-bench", level="warning")
    source = BusSource(
        interface="quarry-hub",
        channel=channel,
        senders={
            CCVS.pgn: (BRAKE_CONTROLLER,),
            EEC1.pgn: (ENGINE,),
            ETC2.pgn: (TRANSMISSION,),
            VEP1.pgn: (COMPUTER,),
        },
    )
    with J1939Vehicle(source, Clock()) as vehicle:
        before = time.process_time()
        time.sleep(seconds)
        spent_s = time.process_time() - before
        signals = asyncio.run(vehicle.state()).signals
    if signals is None or any(one.age_s is None for one in signals.readings):
        raise RuntimeError("the reader did not hear the vehicle")
    sys.stdout.write(f"{spent_s}\n")


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
