"""On a kernel's own CAN: frames a second on vcan, and messages through the kernel's ISO-TP.

Both ends are in one process, in a guest where the host's kernel has no vcan: there a system call takes
some 20 us, so that the figures say what a test run costs, not what a gateway's kernel does.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable

from cli.benches.report import Row, figure
from cli.check import CHECKOUT
from firmware_flashers import isotp_kernel
from firmware_flashers.can_link import Link, LinkSettings
from firmware_flashers.isotp import IsoTpAddress

INTERFACE = "vcan0"
FRAMES = 2000
MESSAGES = 20
MESSAGE_BYTES = 4095
WITHIN_S = 600.0


def frames() -> Row:
    """Sent by one socket and received by another, through our link."""
    return _in_a_kernel("vcan.frames", "frames/s", "8 bytes, sent and then received, one process")


def kernel_isotp() -> Row:
    """Messages of 4095 bytes, each answered by 8."""
    return _in_a_kernel("vcan.isotp_kernel", "kB/s", "4095 bytes and a short answer, our transport both ends")


def _in_a_kernel(case: str, unit: str, apart: str) -> Row:
    """Measure in a process on a kernel that has CAN."""
    done = subprocess.run(
        [CHECKOUT / "quarry", "vcan", "--", sys.executable, "-P", "-m", "cli.benches.flash_vcan", case],
        cwd=CHECKOUT,
        capture_output=True,
        timeout=WITHIN_S,
        check=False,
        text=True,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise RuntimeError(f"exit code {done.returncode}: {last}")
    told = json.loads(done.stdout.splitlines()[-1])
    return figure(case, told["value"], unit, apart=f"{apart}; kernel {told['kernel']}")


def _measure_frames() -> float:
    with Link(LinkSettings(interface="socketcan", channel=INTERFACE)) as link:
        ours, other = link.connect([0x7E8]), link.connect([0x7E0])
        try:
            started = time.monotonic()
            for _ in range(FRAMES):
                ours.send(0x7E0, bytes(8), extended=False)
            for _ in range(FRAMES):
                if other.receive(1.0) is None:
                    raise RuntimeError("a frame was lost")
            return FRAMES / (time.monotonic() - started)
        finally:
            ours.close()
            other.close()


def _measure_isotp() -> float:
    why_not = isotp_kernel.available()
    if why_not is not None:
        raise RuntimeError(why_not)
    with Link(LinkSettings(interface="socketcan", channel=INTERFACE)) as link:
        links = link.connect([0x7E8]), link.connect([0x7E0])
        ours, other = (
            isotp_kernel.transport(
                link,
                one,
                address,
                interrupt=threading.Event(),
                padding=0xCC,
                flow_control_s=5.0,
                consecutive_s=5.0,
                prefer="kernel",
            )
            for one, address in zip(
                links,
                (IsoTpAddress(tx_id=0x7E0, rx_id=0x7E8), IsoTpAddress(tx_id=0x7E8, rx_id=0x7E0)),
                strict=True,
            )
        )

        def answer() -> None:
            for _ in range(MESSAGES):
                if other.receive(30.0) is None:
                    return
                other.send(bytes(8), timeout_s=5.0)

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            started = time.monotonic()
            for _ in range(MESSAGES):
                ours.send(bytes(MESSAGE_BYTES), timeout_s=30.0)
                if ours.receive(30.0) is None:
                    raise RuntimeError("a message was lost")
            return MESSAGES * MESSAGE_BYTES / 1000 / (time.monotonic() - started)
        finally:
            thread.join()
            for one in links:
                one.close()


_MEASURES: dict[str, Callable[[], float]] = {
    "vcan.frames": _measure_frames,
    "vcan.isotp_kernel": _measure_isotp,
}


if __name__ == "__main__":
    import platform

    value = _MEASURES[sys.argv[1]]()
    sys.stdout.write(json.dumps({"value": value, "kernel": platform.release()}) + "\n")
