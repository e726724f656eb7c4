"""What a simulated part's firmware sees of the world (`Host`), and what such firmware is (`Device`).

A device is written in the blocking style of firmware, in one thread, with no knowledge of buses,
clocks and power: time passes and frames come and go through its host alone. That makes the same device
run on a real bus in real time and on the model bus in virtual time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import can


class Host(Protocol):
    """Power, time and a CAN controller.

    Every method may raise `PowerCut` (see flash), which a device lets through; can.CanError means that
    the bus has gone for good and goes through as well.
    """

    def now(self) -> float:
        """Seconds from an arbitrary beginning; virtual on the model bus."""
        ...

    def wait(self, seconds: float) -> None:
        """Let time pass. Frames queue up meanwhile; what the queue does not hold is lost."""
        ...

    def receive(self, timeout_s: float) -> can.Message | None:
        """The next data frame (classic or FD) that the device accepts; None when none comes in time."""
        ...

    def send(self, arbitration_id: int, data: bytes, *, extended: bool = False, fd: bool = False) -> None:
        """Queue a frame: up to 8 bytes, or up to 64 with `fd` (bit rate switched).

        Waits for room; a frame that finds none for a while is lost, as nobody acknowledges then.
        """
        ...

    def drop_input(self) -> None:
        """Forget the frames that wait, as a controller does that is reset."""
        ...

    def set_bitrate(self, bitrate: int) -> None:
        """Initialise the controller anew at so many bit/s; a bus without bit rates takes any."""
        ...


class Device(Protocol):
    """The firmware from one power-on or reset to the next; what it knows in RAM is in the object."""

    @property
    def accepts(self) -> Callable[[can.Message], bool]:
        """The controller's acceptance filter."""
        ...

    def run(self, host: Host, booted: Callable[[], None]) -> None:
        """Live until PowerCut goes through. A return is a reset: a new object takes over.

        Calls `booted` when it is ready to answer, and waits for nothing before: time may stand still
        until then.
        """
        ...
