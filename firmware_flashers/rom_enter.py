"""A command of the operator's that brings a part into its ROM loader: BOOT0 high, then a reset.

What it is (gpioset on two pins, a relay, a debugger) is a matter of the truck's settings. It runs without
a shell, with a time-out, and its output goes nowhere.
"""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path

from firmware_flashers.base import FlashError
from firmware_flashers.isotp import Interrupted
from shared.logs import get_log

log = get_log("firmware_flashers")

POLL_S = 0.1


class EnterFailed(FlashError):
    """The command does not do its work."""

    code = "enter_failed"
    advice = "Run the command of the component's settings by hand; it must end with 0 when the part is reset."


def run_enter(argv: tuple[str, ...], *, within_s: float, interrupt: threading.Event) -> None:
    """Run the command to its end. Raises EnterFailed, Interrupted. It runs in real time."""
    name = Path(argv[0]).name
    try:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    except OSError as error:
        raise EnterFailed(f"{name} can't be run: {error.strerror or error}", touched=False) from error
    with process:
        try:
            code = _wait(process, within_s, interrupt)
        finally:
            if process.poll() is None:
                process.kill()
    if code is None:
        raise EnterFailed(f"{name} does not end within {within_s:g} s", touched=False)
    if code != 0:
        raise EnterFailed(f"{name} ends with {code}", touched=False)
    log.info("flasher.loader_entered", command=name)


def _wait(process: subprocess.Popen[bytes], within_s: float, interrupt: threading.Event) -> int | None:
    for _ in range(max(1, round(within_s / POLL_S))):
        if interrupt.is_set():
            raise Interrupted("the step was cancelled")
        try:
            return process.wait(POLL_S)
        except subprocess.TimeoutExpired:
            continue
    return None
