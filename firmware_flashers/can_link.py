"""A CAN interface of any kind that python-can knows, opened for one conversation with one ECU.

Promises: python-can's errors become BusDown here and nowhere else; a full transmit queue is waited
out, for a bounded time; only the ECU's own frames are received; the interface is locked against
other testers on this machine while it is open, and closed on every path. Classic CAN frames, 11-
and 29-bit identifiers.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import can

from firmware_flashers.base import BusDown
from firmware_flashers.can_lock import interface_lock
from shared.logs import get_log

log = get_log("firmware_flashers")

MOST_11_BITS = 0x7FF
MOST_29_BITS = 0x1FFFFFFF
QUEUE_FULL = frozenset({errno.ENOBUFS, errno.EAGAIN})
QUEUE_POLL_S = 0.0005
BUS_OFF = 0x40  # CAN_ERR_BUSOFF in the class bits of a SocketCAN error frame (linux/can/error.h)


class CanLink:
    """An open CAN bus: sends and receives single classic frames, from one thread at a time."""

    def __init__(self, bus: can.BusABC, *, name: str, send_timeout_s: float = 2.0) -> None:
        """`name` is the interface and channel, for messages; `send_timeout_s` bounds one frame's wait."""
        self._bus = bus
        self.name = name
        self._send_timeout_s = send_timeout_s

    def send(self, arbitration_id: int, data: bytes, *, extended: bool) -> None:
        """Queue one frame of up to 8 bytes. Raises BusDown when it can't be within the time-out."""
        message = can.Message(arbitration_id=arbitration_id, data=data, is_extended_id=extended)
        deadline = time.monotonic() + self._send_timeout_s
        while True:
            try:
                self._bus.send(message, timeout=self._send_timeout_s)
                return
            except can.CanOperationError as error:
                # The queue of the network device is full: frames leave it as the bus allows.
                if error.error_code not in QUEUE_FULL:
                    raise BusDown(f"{self.name}: a frame can't be sent: {error}") from error
                if time.monotonic() >= deadline:
                    raise BusDown(
                        f"{self.name}: the transmit queue is full for {self._send_timeout_s} s: "
                        "nobody acknowledges frames on this bus"
                    ) from error
            except (can.CanError, OSError, ValueError) as error:
                raise BusDown(f"{self.name}: a frame can't be sent: {error}") from error
            time.sleep(QUEUE_POLL_S)

    def receive(self, timeout_s: float) -> can.Message | None:
        """The next data frame, None after `timeout_s` without one. Raises BusDown."""
        try:
            message = self._bus.recv(timeout_s)
        except (can.CanError, OSError, ValueError) as error:
            raise BusDown(f"{self.name}: nothing can be received: {error}") from error
        if message is None or message.is_remote_frame:
            return None
        if message.is_error_frame:
            if message.arbitration_id & BUS_OFF:
                raise BusDown(f"{self.name}: the controller went bus-off")
            return None
        return message

    def close(self) -> None:
        """Give the bus back; never raises."""
        try:
            self._bus.shutdown()
        except (can.CanError, OSError) as error:
            log.warning("flasher.bus_closed_badly", bus=self.name, error=str(error))


@contextmanager
def open_link(
    *,
    interface: str,
    channel: str,
    rx_id: int,
    bitrate: int | None = None,
    holder: str = "quarry",
    lock_folder: Path | None = None,
) -> Iterator[CanLink]:
    """Lock and open a bus that hears the frames of `rx_id` only.

    `bitrate` (bit/s) is for interfaces that set it themselves; SocketCAN has it from the system.
    Raises BusDown, or InterfaceBusy that names the holder.
    """
    name = f"{interface}:{channel}"
    with interface_lock(interface, channel, holder=holder, folder=lock_folder):
        extended = rx_id > MOST_11_BITS
        settings: dict[str, Any] = {} if bitrate is None else {"bitrate": bitrate}
        only: can.typechecking.CanFilter = {
            "can_id": rx_id,
            "can_mask": MOST_29_BITS if extended else MOST_11_BITS,
            "extended": extended,
        }
        try:
            # The settings are ours alone: no ~/.canrc of whoever happens to run this.
            bus = can.Bus(channel, interface=interface, ignore_config=True, can_filters=[only], **settings)
        # Drivers raise whatever their vendors' libraries do when they are opened; all of it means: no bus.
        except Exception as error:
            raise BusDown(f"the CAN bus {name} can't be opened: {error}") from error
        link = CanLink(bus, name=name)
        try:
            yield link
        finally:
            link.close()
