"""The other end of the wall-clock benchmarks, in a process of its own: a paced hub and the MCU on it.

Run as `python -m cli.benches.flash_far_side FOLDER BITRATE`; says `ready` and lives until its stdin ends.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import can

from cli.benches.flash_ground import mcu_settings
from shared.logs import set_up_logs
from sim.can_hub import hub_in_thread
from sim.mcu.server import Stm32Mcu

READY = b"ready\n"
END_WITHIN_S = 10.0


def main(folder: Path, bitrate: int) -> None:
    """Serve until stdin ends."""
    set_up_logs("quarry-bench-far-side", level="error")
    channel = str(folder / "can.sock")
    settings = mcu_settings(folder, (folder / "public.pem").read_bytes())
    with (
        hub_in_thread(channel, bitrate=bitrate),
        can.Bus(channel, interface="quarry-hub", ignore_config=True) as bus,
        Stm32Mcu(settings, bus),
    ):
        sys.stdout.buffer.write(READY)
        sys.stdout.flush()
        sys.stdin.buffer.read()


@contextmanager
def far_side(folder: Path, bitrate: int) -> Iterator[str]:
    """Start it; gives the hub's channel."""
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "cli.benches.flash_far_side", str(folder), str(bitrate)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            if process.stdout.readline() != READY:
                raise RuntimeError("the other end did not start")
            yield str(folder / "can.sock")
        finally:
            process.stdin.close()
            try:
                process.wait(END_WITHIN_S)
            except subprocess.TimeoutExpired:
                process.kill()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
