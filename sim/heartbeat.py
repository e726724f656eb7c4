"""The heartbeat of an ECU's application on the vehicle's bus: a J1939 message that comes while it runs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType

import can

from shared.logs import get_log
from shared.since_310 import Self

log = get_log("sim.heartbeat")

JOIN_S = 5.0


class SimHeartbeat:
    """Sends for the time of the `with` block whenever `runs()` says so. The bus is the caller's to close.

    `pgn` goes to everybody, from the address `source`, every `period_s`.
    """

    def __init__(
        self, bus: can.BusABC, *, pgn: int, source: int, period_s: float, runs: Callable[[], bool]
    ) -> None:
        self._bus = bus
        # Priority 6, that of everything that steers nothing (SAE J1939-21, 5.2.1).
        self._message = can.Message(
            arbitration_id=6 << 26 | pgn << 8 | source, data=b"\xff" * 8, is_extended_id=True
        )
        self._period_s = period_s
        self._runs = runs
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._send, name="sim.heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(JOIN_S)

    def _send(self) -> None:
        while not self._stop.wait(self._period_s):
            try:
                if self._runs():
                    self._bus.send(self._message)
            except can.CanError as error:
                log.warning("heartbeat.bus_lost", why=str(error))
                return
