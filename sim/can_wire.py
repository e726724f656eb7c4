"""The wire of the model bus: arbitration, the time of a frame, and who hears it.

Everything here is called with the lock of the virtual time held.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf

import can

from shared.logs import get_log
from sim.can_bits import classic_bits, fd_bits
from sim.virtual_time import Place, VirtualTime

log = get_log("sim.can_model")

MOST_OUTGOING = 32
ROOM_AT = 16
MOST_INCOMING = 65_536

Heard = Callable[[can.Message], bool]


class Frame:
    """One frame in a queue or on the wire; `rank` is its place in arbitration, the lowest first."""

    __slots__ = ("bitrate", "data_bitrate", "message", "rank", "seconds")

    def __init__(self, message: can.Message, *, bitrate: int, data_bitrate: int) -> None:
        can_id, extended = message.arbitration_id, message.is_extended_id
        self.message = message
        self.bitrate = bitrate
        # Without a switched rate the data rate plays no part in who can hear it.
        self.data_bitrate = data_bitrate if message.is_fd and message.bitrate_switch else 0
        # The base identifier decides first, then IDE: dominant in an 11-bit frame (ISO 11898-1, 10.8.2).
        self.rank = (can_id >> 18) << 19 | 1 << 18 | can_id & 0x3FFFF if extended else can_id << 19
        if message.is_fd:
            slow, fast = fd_bits(can_id, extended, message.data, message.bitrate_switch)
            self.seconds = slow / bitrate + fast / data_bitrate
        else:
            remote_dlc = message.dlc if message.is_remote_frame else None
            self.seconds = classic_bits(can_id, extended, message.data, remote_dlc=remote_dlc) / bitrate


@dataclass(eq=False, kw_only=True)
class Port:
    """A controller on the wire. `heard` and `room` are where its threads wait."""

    name: str
    bitrate: int
    data_bitrate: int
    fd: bool
    hears_itself: bool
    accepts: Heard | None = None
    incoming: deque[can.Message] = field(default_factory=deque)
    outgoing: deque[Frame] = field(default_factory=deque)
    heard: Place = field(default_factory=Place)
    room: Place = field(default_factory=Place)
    frozen: bool = False
    closed: bool = False
    lost: int = 0


@dataclass(kw_only=True)
class _Freeze:
    left: int
    arbitration_id: int


class Wire:
    """The world of a VirtualTime (see World). `frames` and `bus_s` count what occupied it."""

    def __init__(self, *, log_frames: int) -> None:
        self.time = VirtualTime(self)
        self.ports: list[Port] = []
        self.frames = 0
        self.bus_s = 0.0
        self.log: deque[tuple[float, int, bytes]] = deque(maxlen=log_frames)
        self.freeze: _Freeze | None = None
        self.frames_left: int | None = None
        self._flight: tuple[Port, Frame, float] | None = None

    def freeze_after(self, frames: int, arbitration_id: int) -> None:
        """See ModelBus."""
        self.freeze = _Freeze(left=frames, arbitration_id=arbitration_id)

    def leave(self, port: Port) -> None:
        """A controller goes; what it has queued is still sent."""
        port.closed = True
        port.incoming.clear()
        self.time.wake(port.heard)
        self.time.wake(port.room)
        if not port.outgoing and port in self.ports:
            self.ports.remove(port)

    def reset(self, port: Port) -> None:
        """A controller loses what it holds, and the frame that it is sending."""
        port.incoming.clear()
        port.outgoing.clear()
        self.time.wake(port.room)
        if self._flight is not None and self._flight[0] is port:
            self._flight = None

    def is_sending(self, port: Port) -> bool:
        """Whether it has a frame in its queue or on the wire."""
        return bool(port.outgoing) or (self._flight is not None and self._flight[0] is port)

    # --- frames ----------------------------------------------------------------------------------

    def next_at(self) -> float:
        """When the frame on the wire ends; an idle wire takes the next one."""
        if self._flight is None:
            port = self._winner()
            if port is None:
                return inf
            frame = port.outgoing.popleft()
            self._flight = (port, frame, self.time.now + frame.seconds)
            if port.room.waiters and len(port.outgoing) <= ROOM_AT:
                self.time.wake(port.room)
            if port.closed and not port.outgoing:
                self.ports.remove(port)
        return self._flight[2]

    def _winner(self) -> Port | None:
        winner: Port | None = None
        for port in self.ports:
            if port.outgoing and (winner is None or port.outgoing[0].rank < winner.outgoing[0].rank):
                winner = port
        return winner

    def happen(self) -> None:
        """The frame on the wire has ended: everybody has it."""
        assert self._flight is not None
        sender, frame, _ = self._flight
        self._flight = None
        self.bus_s += frame.seconds
        if sender.room.waiters and not sender.outgoing:
            self.time.wake(sender.room)
        if self.frames_left is not None:
            if self.frames_left <= 0:
                return
            self.frames_left -= 1
        self.frames += 1
        message = frame.message
        message.timestamp = self.time.now
        if self.log.maxlen:
            self.log.append((self.time.now, message.arbitration_id, bytes(message.data)))
        self._deliver(sender, frame)
        if self.freeze is not None and message.arbitration_id == self.freeze.arbitration_id:
            self.freeze.left -= 1
            if self.freeze.left <= 0:
                self.freeze = None
                self._freeze(sender)

    def _deliver(self, sender: Port, frame: Frame) -> None:
        message, taken = frame.message, False
        for port in self.ports:
            if port is sender and not port.hears_itself:
                continue
            if port.closed or port.frozen or port.bitrate != frame.bitrate:
                continue
            if message.is_fd and not (port.fd and frame.data_bitrate in {0, port.data_bitrate}):
                continue
            if port.accepts is not None and not port.accepts(message):
                continue
            if len(port.incoming) >= MOST_INCOMING:
                port.lost += 1
                if port.lost == 1:
                    log.warning("can_model.frames_lost", endpoint=port.name, held=MOST_INCOMING)
                continue
            # The first one takes the object itself: most frames have one taker.
            copy = message.__copy__() if taken or port is sender else message
            copy.is_rx = port is not sender
            taken = taken or copy is message
            port.incoming.append(copy)
            self.time.wake(port.heard)

    def _freeze(self, port: Port) -> None:
        port.frozen = True
        port.outgoing.clear()
        port.incoming.clear()
        self.time.wake(port.room)
        log.info("can_model.endpoint_frozen", endpoint=port.name)
