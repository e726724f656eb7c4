"""A CAN interface of any kind that python-can knows, opened for conversations with ECUs.

Promises: python-can's errors become BusDown here and nowhere else; a full transmit queue is waited
out, for a bounded time; a conversation hears only the frames of its own ECU; the interface is locked
against other testers on this machine while its link is open, and closed on every path. Classic CAN and
CAN FD frames (64 bytes, bit-rate switch), 11- and 29-bit identifiers.

    async with open_link(interface="socketcan", channel="can0") as link: ...
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import can

from firmware_flashers.base import BusDown, FlashError
from firmware_flashers.can_driver import deepen, filters_in_driver, longest_frame_s
from firmware_flashers.can_lock import interface_lock
from firmware_flashers.can_trace import Trace
from firmware_flashers.can_wait import receive
from firmware_flashers.clock import MONOTONIC, Clock
from shared.logs import get_log
from shared.since_310 import Self

log = get_log("firmware_flashers")

MOST_11_BITS = 0x7FF
MOST_29_BITS = 0x1FFFFFFF
QUEUE_FULL = frozenset({errno.ENOBUFS, errno.EAGAIN})
QUEUE_POLL_S = 0.0005
BUS_OFF = 0x40  # CAN_ERR_BUSOFF in the class bits of a SocketCAN error frame (linux/can/error.h)
MOST_FOREIGN_FRAMES = 10_000
"""As many frames are passed over or dropped in one call, so that a bus that babbles holds nobody."""
BITRATE_OF_THE_SYSTEM = frozenset({"socketcan"})
"""Interfaces whose bit rate a program can't set."""

OpenBus = Callable[[int | None], can.BusABC]


class BitrateFixed(BusDown):
    """The bit rate of this interface is not ours to change."""

    code = "bitrate_fixed"
    retryable = False
    advice = "Set the interface's bit rate by the system (ip link set ... bitrate ...), or leave it as it is."


class CanLink:
    """One conversation's view of a bus: sends and receives single frames, from one thread at a time."""

    def __init__(
        self,
        bus: can.BusABC,
        *,
        name: str,
        send_timeout_s: float = 2.0,
        fd: bool = False,
        trace: Trace | None = None,
        reopen: OpenBus | None = None,
        only: Collection[int] | None = None,
        bitrate: int | None = None,
        data_bitrate: int | None = None,
    ) -> None:
        """`name` is the interface and channel, for messages; `send_timeout_s` bounds one frame's wait.

        `reopen` gives the bus anew at another bit rate; `fd` says that the bus carries FD frames.
        `only` are the identifiers to hear where the driver does not filter (those over 0x7FF are 29-bit
        ones); the bit rates are None where the system has set them.
        """
        self._bus = bus
        self.name = name
        self.fd = fd
        self._send_timeout_s = send_timeout_s
        self._trace = trace
        self._reopen = reopen
        self._mask = False
        self._closed_too = ExitStack()
        self._only = None if only is None else frozenset(only)
        self._bitrate = bitrate
        self._data_bitrate = data_bitrate
        self.clock: Clock = getattr(bus, "quarry_clock", MONOTONIC)

    def send(self, arbitration_id: int, data: bytes, *, extended: bool, fd: bool = False) -> None:
        """Queue one frame: up to 8 bytes, up to 64 with `fd` (bit rate switched).

        Raises BusDown when it can't be within the time-out.
        """
        message = can.Message(
            arbitration_id=arbitration_id,
            data=data,
            is_extended_id=extended,
            is_fd=fd,
            bitrate_switch=fd,
            is_rx=False,
        )
        try:
            self._bus.send(message, timeout=self._send_timeout_s)
        except can.CanOperationError as error:
            self._wait_out(message, error)
        except (can.CanError, OSError, ValueError) as error:
            raise BusDown(f"{self.name}: a frame can't be sent: {error}") from error
        if self._trace is not None:
            self._trace.note(message, self.clock, masked=self._mask)

    def _wait_out(self, message: can.Message, error: can.CanOperationError) -> None:
        """The queue of the network device is full: frames leave it as the bus allows."""
        deadline = self.clock.now() + self._send_timeout_s
        while True:
            if error.error_code not in QUEUE_FULL:
                raise BusDown(f"{self.name}: a frame can't be sent: {error}") from error
            if self.clock.now() >= deadline:
                raise BusDown(
                    f"{self.name}: the transmit queue is full for {self._send_timeout_s} s: "
                    "nobody acknowledges frames on this bus"
                ) from error
            self.clock.sleep(QUEUE_POLL_S)
            try:
                self._bus.send(message, timeout=self._send_timeout_s)
                return
            except can.CanOperationError as again:
                error = again
            except (can.CanError, OSError, ValueError) as other:
                raise BusDown(f"{self.name}: a frame can't be sent: {other}") from other

    def receive(self, timeout_s: float) -> can.Message | None:
        """The next data frame, None after `timeout_s` without one (or after another kind of frame).

        With 0 it says what is there already. Raises BusDown.
        """
        only = self._only
        deadline = None if only is None or timeout_s <= 0 else self.clock.now() + timeout_s
        for _ in range(MOST_FOREIGN_FRAMES):
            message = self._take(timeout_s)
            if message is None or message.is_remote_frame or message.is_error_frame:
                return None
            if only is None or self._is_ours(message, only):
                return message
            if deadline is not None:
                timeout_s = max(0.0, deadline - self.clock.now())
        return None

    def drop_received(self) -> None:
        """Forget the frames that are here already; a bounded number of them. Raises BusDown."""
        for _ in range(MOST_FOREIGN_FRAMES):
            if self._take(0.0) is None:
                return

    def _take(self, timeout_s: float) -> can.Message | None:
        """The next frame of any kind."""
        try:
            message = receive(self._bus, timeout_s, now=self.clock.now)
        except (can.CanError, OSError, ValueError) as error:
            raise BusDown(f"{self.name}: nothing can be received: {error}") from error
        if message is not None and message.is_error_frame and message.arbitration_id & BUS_OFF:
            raise BusDown(f"{self.name}: the controller went bus-off")
        if self._trace is not None and message is not None:
            self._note_received(message, self._trace)
        return message

    def _note_received(self, message: can.Message, trace: Trace) -> None:
        foreign = self._only is not None and not self._is_ours(message, self._only)
        if not (foreign or message.is_remote_frame or message.is_error_frame):
            trace.note(message, self.clock, masked=self._mask)

    @staticmethod
    def _is_ours(message: can.Message, only: frozenset[int]) -> bool:
        one = message.arbitration_id
        return one in only and message.is_extended_id == (one > MOST_11_BITS)

    @property
    def bitrate(self) -> int | None:
        """Bit/s, None where the system has set them."""
        return self._bitrate

    @property
    def sets_bitrate(self) -> bool:
        """Whether `set_bitrate` can work on this interface."""
        return self._reopen is not None

    def set_bitrate(self, bitrate: int) -> None:
        """Open the bus anew at another rate (bit/s); what was queued is lost. Raises BusDown."""
        if self._reopen is None:
            raise BitrateFixed(f"{self.name}: the bit rate can't be changed to {bitrate} from here")
        self.close()
        self._bus = self._reopen(bitrate)
        self._bitrate = bitrate
        self.clock = getattr(self._bus, "quarry_clock", MONOTONIC)

    def frame_s(self, *, extended: bool, fd: bool) -> float:
        """The longest time that one full frame takes on this wire: 8 bytes, 64 with `fd`."""
        return longest_frame_s(self._bitrate, self._data_bitrate, extended=extended, fd=fd)

    @contextmanager
    def masked(self) -> Iterator[None]:
        """For the time of the block frames carry secrets: a trace gets their heads only."""
        self._mask = True
        try:
            yield
        finally:
            self._mask = False

    def close_too(self, close: Callable[[], None]) -> None:
        """Have `close`, which may raise OSError, called when this is closed."""
        self._closed_too.callback(close)

    def close(self) -> None:
        """Give the bus back; never raises."""
        try:
            self._closed_too.close()
        except OSError as error:
            log.warning("flasher.bus_closed_badly", bus=self.name, error=str(error))
        try:
            self._bus.shutdown()
        except (can.CanError, OSError) as error:
            log.warning("flasher.bus_closed_badly", bus=self.name, error=str(error))


@dataclass(frozen=True, kw_only=True)
class LinkSettings:
    """How a CAN interface is opened.

    `bitrate` and `data_bitrate` (bit/s) are for interfaces that set them themselves; SocketCAN has them
    from the system. `trace` is a file for all frames, its format by its suffix (see can_trace). `holder`
    is what another program is told that wants the interface meanwhile.
    """

    interface: str
    channel: str
    bitrate: int | None = None
    fd: bool = False
    data_bitrate: int | None = None
    trace: Path | None = None
    holder: str = "quarry"
    lock_folder: Path | None = None


@contextmanager
def nothing_touched() -> Iterator[None]:
    """What fails here fails before an ECU was asked anything."""
    try:
        yield
    except FlashError as error:
        error.touched = False
        raise


class Link:
    """An interface held by this program; each conversation gets its own view of it by `connect`."""

    def __init__(self, settings: LinkSettings) -> None:
        self.settings = settings
        self.name = f"{settings.interface}:{settings.channel}"
        self._stack = ExitStack()
        self._trace: Trace | None = None

    def __enter__(self) -> Self:
        """Lock the interface. Raises InterfaceBusy that names the holder, BusDown, ConfigError (trace)."""
        settings = self.settings
        with ExitStack() as stack, nothing_touched():
            stack.enter_context(
                interface_lock(
                    settings.interface, settings.channel, holder=settings.holder, folder=settings.lock_folder
                )
            )
            trace = (
                nullcontext() if settings.trace is None else Trace(settings.trace, channel=settings.channel)
            )
            self._trace = stack.enter_context(trace)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def traced(self) -> bool:
        """Whether frames are written down, so that every frame must pass through `CanLink`."""
        return self._trace is not None

    def connect(self, rx_ids: Collection[int] | None = None) -> CanLink:
        """Open the bus for one conversation, blocking; the caller closes it.

        It hears the identifiers of `rx_ids` only (those over 0x7FF are 29-bit ones), everything with
        None. Raises BusDown; an interface that only one may open says so here.
        """
        filters: list[can.typechecking.CanFilter] | None = None
        if rx_ids is not None:
            filters = [
                {
                    "can_id": one,
                    "can_mask": MOST_29_BITS if one > MOST_11_BITS else MOST_11_BITS,
                    "extended": one > MOST_11_BITS,
                }
                for one in rx_ids
            ]

        def open_bus(bitrate: int | None) -> can.BusABC:
            return self._open(bitrate, filters)

        reopen = None if self.settings.interface in BITRATE_OF_THE_SYSTEM else open_bus
        return CanLink(
            open_bus(self.settings.bitrate),
            name=self.name,
            fd=self.settings.fd,
            trace=self._trace,
            reopen=reopen,
            only=rx_ids,
            bitrate=self.settings.bitrate,
            data_bitrate=self.settings.data_bitrate,
        )

    def _open(self, bitrate: int | None, filters: list[can.typechecking.CanFilter] | None) -> can.BusABC:
        more: dict[str, Any] = {}
        if bitrate is not None:
            more["bitrate"] = bitrate
        if self.settings.fd:
            more["fd"] = True
            if self.settings.data_bitrate is not None:
                more["data_bitrate"] = self.settings.data_bitrate
        try:
            # The settings are ours alone: no ~/.canrc of whoever happens to run this.
            bus = can.Bus(
                self.settings.channel,
                interface=self.settings.interface,
                ignore_config=True,
                can_filters=filters,
                **more,
            )
        # Drivers raise whatever their vendors' libraries do when they are opened; all of it means: no bus.
        except Exception as error:
            raise BusDown(f"the CAN bus {self.name} can't be opened: {error}") from error
        if not filters_in_driver(bus):
            # python-can would filter itself, and a look that is not to wait would end at a foreign frame.
            bus.set_filters(None)
        if self.settings.interface == "socketcan":
            deepen(bus)
        return bus


@asynccontextmanager
async def open_link(
    *,
    interface: str,
    channel: str,
    bitrate: int | None = None,
    fd: bool = False,
    data_bitrate: int | None = None,
    trace: Path | None = None,
    holder: str = "quarry",
    lock_folder: Path | None = None,
) -> AsyncIterator[Link]:
    """Hold an interface for the time of the block; see LinkSettings for the arguments, Link for errors."""
    link = Link(
        LinkSettings(
            interface=interface,
            channel=channel,
            bitrate=bitrate,
            fd=fd,
            data_bitrate=data_bitrate,
            trace=trace,
            holder=holder,
            lock_folder=lock_folder,
        )
    )
    await asyncio.to_thread(link.__enter__)
    try:
        yield link
    finally:
        # Taking an uncontended lock's file away is quick, and must happen whatever is being cancelled.
        link.__exit__(None, None, None)
