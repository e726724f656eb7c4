"""Waiting for a CAN frame by a clock that nobody sets.

`can.BusABC.recv` (python-can 4.6) counts what is left of its time-out by the wall clock, whenever a wait
ended without a wanted frame. A clock that is set back meanwhile, by NTP say, would make it wait for as long
as that, weeks in the middle of a flash, or raise OverflowError; one that is set forward, end at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import can


def receive(
    bus: can.BusABC, timeout_s: float, *, now: Callable[[], float] = time.monotonic
) -> can.Message | None:
    """The next frame that the bus's filters let through, None after `timeout_s` of `now` without one.

    With 0 it says what is there already. Raises what the bus raises.
    """
    if type(bus).recv is not can.BusABC.recv:
        return bus.recv(timeout_s)
    deadline = now() + timeout_s
    left_s = timeout_s
    while True:
        message, is_filtered = bus._recv_internal(timeout=left_s)
        if message is not None and (is_filtered or bus._matches_filters(message)):
            return message
        left_s = deadline - now()
        if left_s <= 0:
            return None
