"""The hub's bus for python-can: `can.Bus(interface="quarry-hub", channel="/path/to/hub.sock")`.

Lossless and in order (see can_hub): a full bus makes `send` wait, and while it waits it takes in what
others send, so that two endpoints that only send don't hold each other up. Safe to send and receive
from different threads at once.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from pathlib import Path
from typing import Any

import can

from sim.can_frames import (
    EXTENDED,
    FD,
    FRAME_BYTES,
    GREETING,
    HEAD,
    MAGIC,
    OWN,
    VERSION,
    decode,
    encode,
    end_of,
)
from sim.can_hub import HubServer, hub_in_thread
from sim.can_socket import HubError, check_path

__all__ = ["HubBus", "HubError", "HubServer", "hub_in_thread"]

GREET_WITHIN_S = 5.0
SEND_WITHIN_S = 15.0
READ_BYTES = 64 * FRAME_BYTES
"""Few frames at a time, so that a reader that is slow but alive is seen to read."""
MOST_HELD_BYTES = 64 * 1024 * FRAME_BYTES
SEND_BUFFER_BYTES = 16 * 1024
"""About 40 frames of 16 bytes as Linux counts them: a controller's transmit queue, not a reservoir."""
SLICE_S = 0.02


class HubBus(can.BusABC):
    """One endpoint of a hub. Sees the others' frames, and its own only with `receive_own_messages`.

    `channel` is the path of the hub's socket. `fd` takes and sends FD frames beside classic ones, of which a
    classic endpoint sees nothing. `bitrate` and `data_bitrate` may be given and must then be the hub's,
    if that paces its frames. Raises CanInitializationError when there is no hub, CanOperationError when
    it went or dropped this endpoint. Frames that the filters don't want are dropped before they are decoded.
    """

    def __init__(
        self,
        channel: str | Path,
        can_filters: Any = None,
        *,
        receive_own_messages: bool = False,
        bitrate: int | None = None,
        fd: bool = False,
        data_bitrate: int | None = None,
        **_: object,
    ) -> None:
        self._fd = fd
        self._path = str(channel)
        self.channel_info = f"quarry-hub {self._path}"
        self._tx_lock = threading.Lock()
        self._rx_lock = threading.Lock()
        self._held = bytearray()
        self._wanted: tuple[tuple[int, int], ...] | None = None
        self._socket = self._connect(receive_own_messages, bitrate, data_bitrate if fd else None)
        self._readable = select.poll()
        self._readable.register(self._socket, select.POLLIN)
        self._writable = select.poll()
        super().__init__(self._path, can_filters)

    def _connect(self, own: bool, bitrate: int | None, data_bitrate: int | None) -> socket.socket:
        try:
            check_path(Path(self._path))
        except HubError as error:
            raise can.CanInitializationError(error.message) from error
        hub = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            hub.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
            hub.settimeout(GREET_WITHIN_S)
            hub.connect(self._path)
            flags = (OWN if own else 0) | (FD if self._fd else 0)
            hub.sendall(GREETING.pack(MAGIC, VERSION, flags, 0, bitrate or 0, data_bitrate or 0))
            answer = hub.recv(GREETING.size, socket.MSG_WAITALL)
        except OSError as error:
            hub.close()
            raise can.CanInitializationError(f"no hub at {self._path}: {error}") from error
        refusal = self._judge(answer, bitrate, data_bitrate)
        if refusal:
            hub.close()
            raise can.CanInitializationError(refusal)
        hub.setblocking(False)
        return hub

    def _judge(self, answer: bytes, bitrate: int | None, data_bitrate: int | None) -> str | None:
        """What is wrong with the hub's greeting."""
        if len(answer) != GREETING.size:
            return f"the hub at {self._path} did not take this endpoint"
        magic, version, _, _, rate, data_rate = GREETING.unpack(answer)
        if magic != MAGIC or version != VERSION:
            return f"what listens at {self._path} is no hub of this version"
        if bitrate and rate and bitrate != rate:
            return f"bitrate {bitrate} was asked for, the hub's is {rate}"
        if data_bitrate and rate and data_bitrate != data_rate:
            return f"data_bitrate {data_bitrate} was asked for, the hub's is {data_rate}"
        return None

    def send(self, msg: can.Message, timeout: float | None = None) -> None:
        """Hand a frame to the bus.

        Waits while the bus is full, at most `timeout` s (None or 0: 15 s), then raises
        CanTimeoutError.
        """
        if msg.is_fd and not self._fd:
            raise can.CanOperationError("this endpoint is not set to CAN FD")
        left = encode(msg)
        size = len(left)
        deadline: float | None = None
        with self._tx_lock:
            while left:
                try:
                    left = left[self._socket.send(left) :]
                except BlockingIOError:
                    now = time.monotonic()
                    deadline = deadline or now + (timeout or SEND_WITHIN_S)
                    # A frame that has begun must end, or the hub would read the next ones askew.
                    if now >= deadline and len(left) == size:
                        raise can.CanTimeoutError("the bus took no frame in time") from None
                    self._wait_writable()
                except OSError as error:
                    raise self._gone(error) from error

    def _wait_writable(self) -> None:
        """Until the bus may take more, or a moment has passed; takes in what has come meanwhile."""
        takes_in = False
        if self._rx_lock.acquire(blocking=False):
            try:
                takes_in = len(self._held) < MOST_HELD_BYTES
                if takes_in:
                    with contextlib.suppress(BlockingIOError):
                        self._read()
            finally:
                self._rx_lock.release()
        self._writable.register(self._socket, select.POLLOUT | (select.POLLIN if takes_in else 0))
        self._writable.poll(SLICE_S * 1000)

    def _read(self) -> None:
        """Take in what the socket has; the receive lock is held."""
        try:
            data = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            raise
        except OSError as error:
            raise self._gone(error) from error
        if not data:
            raise self._gone(None)
        self._held += data

    def _recv_internal(self, timeout: float | None) -> tuple[can.Message | None, bool]:
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._rx_lock:
            while not (end := self._next_wanted()):
                left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
                if not self._readable.poll(None if left_s is None else left_s * 1000):
                    return None, False
                with contextlib.suppress(BlockingIOError):
                    self._read()
            frame = bytes(self._held[:end])
            del self._held[:end]
        return decode(frame, channel=self._path, at=time.time()), True

    def _apply_filters(self, filters: Any) -> None:
        """python-can's hook for filters of the driver's own."""
        wanted = []
        for one in filters or ():
            number, mask = one["can_id"], one["can_mask"]
            if "extended" in one:
                number |= EXTENDED if one["extended"] else 0
                mask |= EXTENDED
            wanted.append((number & mask, mask))
        with self._rx_lock:
            self._wanted = tuple(wanted) or None

    def _next_wanted(self) -> int:
        """How long the first wanted frame is that has come; those before it are dropped. 0: none is whole."""
        wanted = self._wanted
        if wanted is None:
            return self._end_of_frame()
        held, at = self._held, 0
        size = len(held)
        try:
            while at + FRAME_BYTES <= size:
                end = end_of(held, at) if self._fd else at + FRAME_BYTES
                if end > size:
                    return 0
                can_id = HEAD.unpack_from(held, at)[0]
                for number, mask in wanted:
                    if can_id & mask == number:
                        return end - at
                at = end
            return 0
        finally:
            del held[:at]

    def _end_of_frame(self) -> int:
        """How long the first frame is that has come; 0 while it is not whole."""
        held = len(self._held)
        if held < FRAME_BYTES:
            return 0
        end = end_of(self._held, 0) if self._fd else FRAME_BYTES
        return end if held >= end else 0

    def _gone(self, error: OSError | None) -> can.CanOperationError:
        return can.CanOperationError(
            "this bus is closed"
            if self._is_shutdown
            else f"the hub at {self._path} has gone or dropped this endpoint"
            + (f": {error}" if error else "")
        )

    def shutdown(self) -> None:
        """Leave the bus; whoever waits in `recv` or `send` gets a CanOperationError. May be repeated."""
        if self._is_shutdown:
            return
        super().shutdown()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        # The descriptor is given back only when nobody polls it any more.
        with self._rx_lock, self._tx_lock:
            self._socket.close()
