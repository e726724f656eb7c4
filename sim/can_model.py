"""A CAN bus in virtual time: frames take their exact bits, whoever computes how long for.

Every frame occupies the wire for its bits with real stuffing at its sender's bit rates (see can_bits) and
is heard at the end of that time, in one order by all. Of the frames at the heads of the transmit queues
the one with the lowest identifier goes first. A queue holds 32 frames; a full one makes `send` wait until
half of it has gone, as a network device does. Time moves as virtual_time says: testers attend
(`endpoint.quarry_clock.attending()`), simulated parts only work.

    with ModelBus(bitrate=500_000) as model:
        part, tester = model.endpoint(driver=False), model.endpoint()

By name it is a python-can interface of this process: `can.Bus("bench-1", interface="quarry-model")`.
Who polls with a time-out of 0 lets no time pass: wait in `recv` or in the clock's `sleep`.
"""

from __future__ import annotations

import itertools
import threading
from contextlib import AbstractContextManager
from math import inf
from types import TracebackType
from typing import Any, Self

import can

from shared.errors import ConfigError
from sim.can_bits import FD_LENGTHS
from sim.can_wire import MOST_OUTGOING, Frame, Heard, Port, Wire
from sim.virtual_time import Place, Stalled, VirtualTime

SEND_WITHIN_S = 15.0
MOST_ENDPOINTS = 64
LEAST_BITRATE, MOST_BITRATE, MOST_DATA_BITRATE = 1_000, 1_000_000, 12_000_000

_models: dict[str, ModelBus] = {}
_models_lock = threading.Lock()
_numbers = itertools.count(1)


class ModelBus:
    """The bus, as a resource. `data_bitrate` (default: `bitrate`) is that of FD frames behind BRS.

    `log_frames` keeps the last so many frames in `log`. Raises ConfigError for impossible bit rates
    and for a name that another bus of this process has.
    """

    def __init__(
        self,
        *,
        bitrate: int = 500_000,
        data_bitrate: int | None = None,
        name: str | None = None,
        log_frames: int = 0,
    ) -> None:
        check_bitrates(bitrate, data_bitrate)
        self.bitrate = bitrate
        self.data_bitrate = data_bitrate or bitrate
        self.name = name or f"model-{next(_numbers)}"
        self.wire = Wire(log_frames=log_frames)

    def __enter__(self) -> Self:
        with _models_lock:
            if self.name in _models:
                raise ConfigError(f"there is a model bus of the name {self.name} already")
            _models[self.name] = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _models_lock:
            del _models[self.name]
        with self.wire.time.lock:
            self.wire.time.end()

    def endpoint(
        self,
        *,
        fd: bool = False,
        driver: bool = True,
        bitrate: int | None = None,
        data_bitrate: int | None = None,
        name: str = "",
    ) -> ModelEndpoint:
        """A new endpoint, which its taker shuts down; see ModelEndpoint."""
        return ModelEndpoint(
            self.name, fd=fd, driver=driver, bitrate=bitrate, data_bitrate=data_bitrate, name=name
        )

    # --- time and what it costs ------------------------------------------------------------------

    def now(self) -> float:
        """Seconds since the bus began."""
        return self.wire.time.now

    def hold(self) -> AbstractContextManager[None]:
        """Time stands still during the block, whoever attends."""
        return self.wire.time.held()

    @property
    def frames(self) -> int:
        """Frames that went over the wire, heard or not."""
        return self.wire.frames

    @property
    def bus_s(self) -> float:
        """Seconds for which the wire was occupied."""
        return self.wire.bus_s

    @property
    def log(self) -> list[tuple[float, int, bytes]]:
        """The last frames: when they ended, identifier, data."""
        with self.wire.time.lock:
            return list(self.wire.log)

    # --- faults ----------------------------------------------------------------------------------

    def freeze_after(self, frames: int, *, arbitration_id: int) -> None:
        """Freeze the endpoint that sends the `frames`-th frame with this identifier from now on.

        That frame is the last that the bus has of it; later ones vanish, and it hears nothing more. Others,
        also new ones that send the same identifier, are not touched.
        """
        with self.wire.time.lock:
            self.wire.freeze_after(frames, arbitration_id)

    def cut_after(self, frames: int) -> None:
        """After so many more frames nothing gets through any more, until `mend`; nobody is told."""
        with self.wire.time.lock:
            self.wire.frames_left = frames

    def mend(self) -> None:
        """The wire is whole again, and nobody is to be frozen any more; who is frozen stays so."""
        with self.wire.time.lock:
            self.wire.frames_left = None
            self.wire.freeze = None


class ModelEndpoint(can.BusABC):
    """One endpoint of a model bus, which must run in this process; `channel` is its name.

    `driver`: of a tester, whose threads may attend; else of a simulated part, with a thread of its own.
    `bitrate` and `data_bitrate` are the controller's (default: the bus's); frames at other rates are not
    heard. Classic endpoints (`fd=False`) see no FD frames. Sees its own frames only with
    `receive_own_messages`. Raises CanInitializationError, CanOperationError when bus or endpoint are
    closed.
    """

    def __init__(
        self,
        channel: str,
        can_filters: Any = None,
        *,
        fd: bool = False,
        driver: bool = True,
        bitrate: int | None = None,
        data_bitrate: int | None = None,
        receive_own_messages: bool = False,
        name: str = "",
        **_: object,
    ) -> None:
        with _models_lock:
            model = _models.get(channel)
        if model is None:
            raise can.CanInitializationError(f"there is no model bus of the name {channel} in this process")
        try:
            check_bitrates(bitrate or model.bitrate, data_bitrate)
        except ConfigError as error:
            raise can.CanInitializationError(error.message) from error
        self._wire = wire = model.wire
        self._time = wire.time
        self._name = channel
        self._asleep = Place()
        self._driver = driver
        self._port = Port(
            name=name or channel,
            bitrate=bitrate or model.bitrate,
            data_bitrate=data_bitrate or model.data_bitrate,
            fd=fd,
            hears_itself=receive_own_messages,
        )
        self.quarry_clock = ModelClock(self._time, self._asleep, attends=driver)
        self.channel_info = f"quarry-model {channel} {name}".rstrip()
        with self._time.lock:
            if len(wire.ports) >= MOST_ENDPOINTS:
                raise can.CanInitializationError(f"{channel} has {MOST_ENDPOINTS} endpoints already")
            wire.ports.append(self._port)
        super().__init__(channel, can_filters)
        # The wire filters, so that a thread is woken for its own frames only; see _apply_filters.
        self._is_filtered = True

    def send(self, msg: can.Message, timeout: float | None = None) -> None:
        """Queue a frame; waits while the queue is full, at most `timeout` s (None or 0: 15 s).

        Raises CanTimeoutError, and CanOperationError for frames that can't be.
        """
        port = self._port
        frame = Frame(self._snapshot(msg), bitrate=port.bitrate, data_bitrate=port.data_bitrate)
        with self._time.lock:
            self._check_open()
            if len(port.outgoing) >= MOST_OUTGOING:
                self._wait(port.room, timeout or SEND_WITHIN_S)
                self._check_open()
                if len(port.outgoing) >= MOST_OUTGOING:
                    raise can.CanTimeoutError("the bus took no frame in time")
            # What a frozen endpoint sends goes nowhere, so that it has nothing to wait for.
            if port.frozen:
                return
            port.outgoing.append(frame)
            if not self._time.running:
                self._time.move()

    def recv(self, timeout: float | None = None) -> can.Message | None:
        """The next frame, None when none comes in time or the endpoint was woken (see `wake`)."""
        incoming, time = self._port.incoming, self._time
        with time.lock:
            self._check_open()
            if not incoming and (timeout is None or timeout > 0):
                until = inf if timeout is None else time.now + timeout
                while not incoming and self._wait(
                    self._port.heard, None if timeout is None else max(0.0, until - time.now)
                ):
                    self._check_open()
                self._check_open()
            return incoming.popleft() if incoming else None

    def _wait(self, place: Place, seconds: float | None) -> bool:
        try:
            return self._time.wait(place, seconds)
        except Stalled as error:
            raise can.CanOperationError(f"{self._name}: {error}") from error

    def _check_open(self) -> None:
        if self._is_shutdown or self._time.ended:
            raise can.CanOperationError("this bus is closed")

    def _snapshot(self, msg: can.Message) -> can.Message:
        """A copy that is the wire's own; raises CanOperationError for what no wire carries."""
        size, can_id = len(msg.data), msg.arbitration_id
        if not 0 <= can_id <= (0x1FFF_FFFF if msg.is_extended_id else 0x7FF):
            raise can.CanOperationError(f"identifier {can_id:#x} is out of range")
        if msg.is_error_frame or (msg.is_fd and (msg.is_remote_frame or size not in FD_LENGTHS)):
            raise can.CanOperationError("this is no frame that a node could send")
        if msg.is_fd and not self._port.fd:
            raise can.CanOperationError("this endpoint is not set to CAN FD")
        if not msg.is_fd and (size > 8 or msg.dlc > 8):
            raise can.CanOperationError("a classic frame has up to 8 bytes")
        return can.Message(
            arbitration_id=can_id,
            is_extended_id=msg.is_extended_id,
            is_remote_frame=msg.is_remote_frame,
            channel=self._name,
            dlc=msg.dlc,
            data=bytearray(msg.data),
            is_fd=msg.is_fd,
            bitrate_switch=msg.bitrate_switch,
            error_state_indicator=msg.error_state_indicator,
        )

    def _apply_filters(self, filters: can.typechecking.CanFilters | None) -> None:
        self._port.accepts = self._matches_filters if filters else None

    def flush_tx_buffer(self) -> None:
        """Forget the frames that wait to be sent."""
        with self._time.lock:
            self._port.outgoing.clear()
            self._time.wake(self._port.room)

    def shutdown(self) -> None:
        """Leave the bus; what is queued is still sent, whoever waits here gets a CanOperationError."""
        if self._is_shutdown:
            return
        super().shutdown()
        with self._time.lock:
            self._wire.leave(self._port)
            self._time.wake(self._asleep)

    # --- for the host of a simulated part --------------------------------------------------------

    def wake(self) -> None:
        """End the wait of the thread that lives here, in `recv`, `send` or `sleep`; else the next one."""
        places = (self._port.heard, self._port.room, self._asleep)
        with self._time.lock:
            for place in [one for one in places if one.waiters] or places:
                self._time.nudge(place)

    def wait_sent(self, timeout_s: float) -> None:
        """Wait until everything queued has gone over the wire, or time is over, or `wake`."""
        with self._time.lock:
            until = self._time.now + timeout_s
            while self._wire.is_sending(self._port) and not self._is_shutdown:
                if not self._wait(self._port.room, until - self._time.now):
                    return

    def hear(self, accepts: Heard) -> None:
        """Take in only frames that `accepts` lets through, as a controller's filter does."""
        self._port.accepts = accepts

    def reset_controller(self) -> None:
        """Forget what waits in both directions; a frame on the wire is cut off."""
        with self._time.lock:
            self._wire.reset(self._port)

    def set_bitrate(self, bitrate: int) -> None:
        """Run at another bit rate from the next frame on; what is queued goes out at the old one."""
        check_bitrates(bitrate, None)
        with self._time.lock:
            self._port.bitrate = bitrate


class ModelClock:
    """The bus's time for who talks on it (firmware_flashers.clock.Clock)."""

    def __init__(self, time: VirtualTime, asleep: Place, *, attends: bool) -> None:
        self._time = time
        self._asleep = asleep
        self._attends = attends

    def now(self) -> float:
        """Seconds since the bus began."""
        return self._time.now

    def sleep(self, seconds: float) -> None:
        """Wait; a part's sleep ends early when it is woken. Raises CanOperationError when the bus ends."""
        if seconds <= 0:
            return
        with self._time.lock:
            try:
                self._time.wait(self._asleep, seconds)
            except Stalled as error:
                raise can.CanOperationError(str(error)) from error
            if self._time.ended:
                raise can.CanOperationError("this bus is closed")

    def attending(self) -> AbstractContextManager[None]:
        """Time waits for the calling thread during the block, and moves when it waits."""
        return self._time.working(attends=self._attends)


def check_bitrates(bitrate: int, data_bitrate: int | None) -> None:
    """Raise ConfigError for bit rates that CAN does not have."""
    if not LEAST_BITRATE <= bitrate <= MOST_BITRATE:
        raise ConfigError(f"bitrate {bitrate} is not {LEAST_BITRATE} to {MOST_BITRATE} bit/s")
    if data_bitrate is not None and not bitrate <= data_bitrate <= MOST_DATA_BITRATE:
        raise ConfigError(
            f"data_bitrate {data_bitrate} is not bitrate ({bitrate}) to {MOST_DATA_BITRATE} bit/s"
        )
