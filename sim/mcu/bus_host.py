"""A part's host on a python-can bus: its power switch, its clock and its controller.

The bus's own clock (`quarry_clock`, as the model bus has it) is the part's clock, else the
machine's. The model bus also tells a thread that waits in it when the power goes (`wake`) and filters for
it (`hear`); elsewhere the host looks at the power every POLL_S and filters itself.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from math import inf
from typing import Any

import can

from firmware_flashers.clock import MONOTONIC, Clock
from shared.logs import get_log
from sim.mcu.can_faults import Fate, corrupted, with_data
from sim.mcu.faults import FaultState
from sim.mcu.flash import PowerCut

log = get_log("sim.mcu")

POLL_S = 0.1
SHORT_S = 0.005
"""Waits up to this long are slept; in longer ones frames are taken out of the driver."""
SEND_WITHIN_S = 2.0
MOST_QUEUED = 1024
LEAST_S = 1e-9
"""What is left of a wait by rounding alone."""


class Reset(PowerCut):
    """The part is reset by a fault; its power stays."""


class BusHost:
    """See Host. Serves one thread; `switch_off` and `close` may come from any other."""

    def __init__(self, bus: can.BusABC, faults: FaultState) -> None:
        self.clock: Clock = getattr(bus, "quarry_clock", MONOTONIC)
        self._bus = bus
        self._faults = faults
        self._off = threading.Event()
        self._queue: deque[can.Message] = deque()
        self._accepts: Callable[[can.Message], bool] = lambda _: True
        # What only the model bus has.
        driver: Any = bus
        self._wake: Callable[[], None] | None = getattr(driver, "wake", None)
        self._hear: Callable[[Callable[[can.Message], bool]], None] | None = getattr(driver, "hear", None)
        self._reset: Callable[[], None] | None = getattr(driver, "reset_controller", None)
        self._set_bitrate: Callable[[int], None] | None = getattr(driver, "set_bitrate", None)
        self._wait_sent: Callable[[float], None] | None = getattr(driver, "wait_sent", None)
        self._slice_s = inf if self._wake else POLL_S

    # --- power -----------------------------------------------------------------------------------

    def switch_off(self) -> None:
        """From now on every call of the device's thread raises PowerCut."""
        self._off.set()
        self.nudge()

    def nudge(self) -> None:
        """Let the thread see at once what has changed."""
        if self._wake:
            self._wake()

    def switch_on(self, accepts: Callable[[can.Message], bool]) -> None:
        """Power is there, the controller is empty and hears what `accepts` lets through."""
        self._off.clear()
        self._accepts = accepts
        if self._hear:
            self._hear(accepts)
        if self._reset:
            self._reset()
        self.drop_input()

    def be_deaf(self) -> None:
        """Without power: pass some time in which nothing is heard. Called again and again."""
        self._queue.clear()
        if self._reset:
            self._reset()
        self._bus.recv(None if self._wake else POLL_S)

    def _check_power(self) -> None:
        if self._off.is_set():
            raise PowerCut

    # --- what the device sees --------------------------------------------------------------------

    def now(self) -> float:
        """See Host."""
        return self.clock.now()

    def wait(self, seconds: float) -> None:
        """See Host."""
        until = self.clock.now() + seconds
        while (left_s := until - self.clock.now()) > LEAST_S:
            self._check_power()
            if left_s <= SHORT_S:
                self.clock.sleep(left_s)
                continue
            message = self._bus.recv(min(left_s, self._slice_s))
            if message is not None and self._hears(message) and len(self._queue) < MOST_QUEUED:
                self._queue.append(message)
        self._check_power()

    def receive(self, timeout_s: float) -> can.Message | None:
        """See Host."""
        until = self.clock.now() + timeout_s
        while True:
            self._check_power()
            if self._queue:
                message = self._queue.popleft()
            else:
                left_s = until - self.clock.now()
                got = self._bus.recv(max(0.0, min(left_s, self._slice_s)))
                if got is None:
                    if until - self.clock.now() > LEAST_S:
                        continue
                    self._check_power()
                    return None
                if not self._hears(got):
                    continue
                message = got
            fates = self._faults.can.of_incoming()
            if not fates:
                return message
            suffered = self._suffer(message, fates)
            if suffered is not None:
                return suffered

    def send(self, arbitration_id: int, data: bytes, *, extended: bool = False, fd: bool = False) -> None:
        """See Host."""
        self._check_power()
        fates = self._faults.can.of_outgoing()
        if Fate.DELAY in fates:
            self.wait(self._faults.can.order.delay_s)
        if Fate.CORRUPT in fates:
            data = corrupted(data)
        times = 0 if Fate.LOSE in fates else 2 if Fate.REPEAT in fates else 1
        message = can.Message(
            arbitration_id=arbitration_id, data=data, is_extended_id=extended, is_fd=fd, bitrate_switch=fd
        )
        for _ in range(times):
            self._send(message)
        if Fate.POWER_CUT in fates:
            if self._wait_sent:
                self._wait_sent(SEND_WITHIN_S)
            raise PowerCut

    def _send(self, message: can.Message) -> None:
        until = self.clock.now() + SEND_WITHIN_S
        while True:
            try:
                self._bus.send(message, timeout=SEND_WITHIN_S)
                return
            except can.CanTimeoutError:
                self._check_power()
                # A nudge ends a wait too, before its time.
                if until - self.clock.now() <= LEAST_S:
                    log.info("mcu.frame_lost", arbitration_id=message.arbitration_id)
                    return

    def drop_input(self) -> None:
        """See Host."""
        self._queue.clear()
        for _ in range(MOST_QUEUED):
            if self._bus.recv(0) is None:
                return

    def set_bitrate(self, bitrate: int) -> None:
        """See Host."""
        if self._set_bitrate:
            self._set_bitrate(bitrate)

    def _hears(self, message: can.Message) -> bool:
        return not message.is_remote_frame and not message.is_error_frame and self._accepts(message)

    def _suffer(self, message: can.Message, fates: tuple[Fate, ...]) -> can.Message | None:
        """What is left of an incoming frame."""
        for fate in fates:
            match fate:
                case Fate.POWER_CUT:
                    raise PowerCut
                case Fate.RESET:
                    raise Reset
                case Fate.BUS_OFF:
                    log.info("mcu.bus_off")
                    self.wait(self._faults.can.order.bus_off_s)
                    self.drop_input()
                    return None
                case Fate.LOSE:
                    return None
                case Fate.DELAY:
                    self.wait(self._faults.can.order.delay_s)
                case Fate.CORRUPT:
                    message = with_data(message, corrupted(bytes(message.data)))
                case Fate.REPEAT:
                    self._queue.appendleft(message)
        return message
