"""ISO-TP by the kernel's own CAN_ISOTP socket: the same transport as isotp.IsoTpTransport, without
Python between the frames.

Segmentation, flow control and STmin run in the kernel, whose timers see when a frame has left. Other
than in Python its N_Bs and N_Cr are 1 s whatever the profile says, an FD socket hears no classic frame,
and a block that was begun is finished by the kernel even when the step is interrupted. A reserved flow
status ends a transmission without a word, so that only the missing answer tells.
Sources: linux/can/isotp.h, net/can/isotp.c of Linux 6.1.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import threading
from typing import Literal

from firmware_flashers.base import BusDown, NoAnswer
from firmware_flashers.can_link import CanLink, Link
from firmware_flashers.isotp import (
    MOST_PAYLOAD_BYTES,
    SLICE_S,
    EcuOverflow,
    Interrupted,
    IsoTpAddress,
    IsoTpTransport,
    NotSent,
    SingleFrames,
    too_long,
)
from firmware_flashers.isotp_frames import AT_ONCE, FD_BYTES, Ask, Format, Kind
from shared.logs import get_log

log = get_log("firmware_flashers")

OLDEST_KERNEL = (6, 1)
"""Before 5.18 consecutive frames don't wait for one another to leave, and a full queue loses them."""

SOL_CAN_ISOTP = 106  # SOL_CAN_BASE + CAN_ISOTP
OPTS, RECV_FC, LL_OPTS = 1, 2, 5
OPTIONS = struct.Struct("=IIBBBB")  # flags, frame_txtime, ext_address, txpad, rxpad, rx_ext_address
FC_OPTIONS = struct.Struct("=BBB")  # bs, stmin, wftmax
LL_OPTIONS = struct.Struct("=BBB")  # mtu, tx_dl, tx_flags
TX_PADDING, HALF_DUPLEX = 0x0004, 0x0040
FRAME_TXTIME_ZERO = 0xFFFFFFFF
CANFD_MTU, CANFD_BRS = 72, 0x01
CAN_EFF_FLAG = 0x80000000
ECHO_S = 2.0
"""ISOTP_ECHO_TIMEOUT: so long the kernel waits for a frame to leave."""

GONE = frozenset({errno.ENETDOWN, errno.ENODEV, errno.ENXIO, errno.EBADF, errno.ENETUNREACH})
LOST_ON_THE_WAY = frozenset({errno.EILSEQ, errno.ETIMEDOUT, errno.EBADMSG, errno.ECOMM, errno.EMSGSIZE})
"""A message broke off: wrong sequence number, N_Cr, not a message; one of before, no flow control, OVFLW."""
POLL_S = 0.001
QUEUE_FULL_S = 2.0
MOST_STALE_MESSAGES = 1000
MOST_FRAMES = 10_000
LONGEST_ANSWER_S = 10.0
CLOSE_S = 2.0

Prefer = Literal["auto", "kernel", "python"]


class NoKernelIsoTp(BusDown):
    """The kernel's ISO-TP was asked for and can't be had."""

    code = "no_kernel_isotp"
    retryable = False
    advice = 'Load the module can-isotp, or let the Python stack speak (isotp = "auto").'


def available() -> str | None:
    """Why this machine's kernel can't do it; None when it can."""
    if not hasattr(socket, "CAN_ISOTP"):
        return "this Python knows no ISO-TP sockets"
    release = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2] if part.isdigit())
    if release < OLDEST_KERNEL:
        return f"the ISO-TP of kernel {os.uname().release} loses frames; it takes 6.1 or newer"
    try:
        socket.socket(socket.AF_CAN, socket.SOCK_DGRAM, socket.CAN_ISOTP).close()
    except OSError as error:
        return f"the kernel has no ISO-TP: {error.strerror}"
    return None


def open_socket(interface: str, address: IsoTpAddress, *, padding: int, fd: bool, ask: Ask) -> socket.socket:
    """A bound socket with our options. Raises OSError."""
    flag = CAN_EFF_FLAG if address.extended else 0
    made = socket.socket(socket.AF_CAN, socket.SOCK_DGRAM, socket.CAN_ISOTP)
    try:
        options = OPTIONS.pack(TX_PADDING | HALF_DUPLEX, FRAME_TXTIME_ZERO, 0, padding, 0, 0)
        made.setsockopt(SOL_CAN_ISOTP, OPTS, options)
        made.setsockopt(SOL_CAN_ISOTP, RECV_FC, FC_OPTIONS.pack(ask.block_size, ask.st_min, 0))
        if fd:
            made.setsockopt(SOL_CAN_ISOTP, LL_OPTS, LL_OPTIONS.pack(CANFD_MTU, FD_BYTES, CANFD_BRS))
        made.setblocking(False)
        made.bind((interface, address.rx_id | flag, address.tx_id | flag))
    except OSError:
        made.close()
        raise
    return made


class KernelIsoTpTransport(SingleFrames):
    """One ISO-TP connection of the kernel's beside an open link, which closes it with itself."""

    def __init__(
        self,
        link: CanLink,
        interface: str,
        address: IsoTpAddress,
        *,
        interrupt: threading.Event,
        padding: int,
        consecutive_s: float,
        fd: bool = False,
        most_bytes: int = MOST_PAYLOAD_BYTES,
        ask: Ask = AT_ONCE,
    ) -> None:
        """See IsoTpTransport; `interface` is the network device. Raises BusDown."""
        super().__init__(link, address, Format(fd=fd, padding=padding))
        self._clock = link.clock
        self._name = interface
        self._padding = padding
        self._interrupt = interrupt
        self._consecutive_s = consecutive_s
        self._most_bytes = most_bytes
        self._ask = ask
        self._may_be_receiving = False
        self._has_begun = False
        self._socket = self._open()
        link.close_too(self.close)

    def send(self, payload: bytes, *, timeout_s: float) -> None:
        """See IsoTpTransport; returns when the kernel has seen the last frame leave.

        Raises NoAnswer where the ECU may have got the whole payload all the same.
        """
        if len(payload) > self._most_bytes:
            raise too_long(payload, self._most_bytes)
        self._look_up()
        deadline = self._clock.now() + timeout_s
        if self._may_be_receiving:
            # Its N_Cr may still run, and half duplex it would overhear the ECU's flow control.
            self.close()
            self._socket = self._open()
            self._may_be_receiving = False
        self._wait_until_idle(deadline, len(payload))
        self._forget()
        self._hand_over(payload)
        self._wait_until_sent(deadline, len(payload))

    def receive(self, timeout_s: float) -> bytes | None:
        """See IsoTpTransport."""
        now = self._clock.now()
        deadline, most = now + timeout_s, now + timeout_s + LONGEST_ANSWER_S
        self._has_begun = False
        while True:
            self._look_up()
            payload = self._read()
            if payload is not None:
                return payload
            now = self._clock.now()
            if now >= deadline:
                if now >= most or not self._is_coming():
                    self._may_be_receiving = True
                    return None
                deadline = min(most, now + self._consecutive_s)
            self._poll(select.POLLIN, min(deadline - now, SLICE_S))

    def close(self) -> None:
        """Close the socket; what the kernel has begun to send it finishes first."""
        deadline = self._clock.now() + CLOSE_S
        while not self._is_idle() and self._clock.now() < deadline:
            self._clock.sleep(POLL_S)
        if self._is_idle():
            self._socket.close()
            return
        # Closing waits until the kernel is done, which at a slow ECU's pace may take a minute.
        log.warning("flasher.socket_closes_later", bus=self._name)
        threading.Thread(target=self._socket.close, name=f"closes-{self._name}", daemon=True).start()

    def _open(self) -> socket.socket:
        try:
            return open_socket(
                self._name, self._address, padding=self._padding, fd=self._format.fd, ask=self._ask
            )
        except OSError as error:
            raise BusDown(f"{self._name}: no ISO-TP socket can be opened: {error}") from error

    def _look_up(self) -> None:
        if self._interrupt.is_set():
            raise Interrupted("the step was interrupted")

    def _poll(self, events: int, timeout_s: float) -> None:
        waiting = select.poll()
        waiting.register(self._socket, events)
        waiting.poll(max(0.0, timeout_s) * 1000)

    def _error(self) -> int:
        """What happened to the socket since the last look."""
        code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code in GONE:
            raise BusDown(f"{self._name}: {os.strerror(code)}")
        return code

    # -- sending

    def _is_idle(self) -> bool:
        """Whether nothing is being sent: a message of no length is refused as such only then."""
        try:
            self._socket.send(b"", socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    def _wait_until_idle(self, deadline: float, size: int) -> None:
        """A message of before that was interrupted, or not sent in time, is still the kernel's to finish."""
        while not self._is_idle():
            self._look_up()
            if self._clock.now() >= deadline:
                raise NotSent(f"{size} bytes could not be sent: the message before is still under way")
            self._poll(select.POLLOUT, SLICE_S)
            self._clock.sleep(POLL_S)

    def _forget(self) -> None:
        self._link.drop_received()
        for _ in range(MOST_STALE_MESSAGES):
            if self._read() is None:
                break
        self._error()

    def _hand_over(self, payload: bytes) -> None:
        deadline = self._clock.now() + QUEUE_FULL_S
        while True:
            try:
                self._socket.send(payload, socket.MSG_DONTWAIT)
            except OSError as error:
                if error.errno not in {errno.ENOBUFS, errno.EAGAIN}:
                    raise self._bus_down(error, payload) from error
                self._look_up()
                if self._clock.now() >= deadline:
                    raise BusDown(
                        f"{self._name}: the transmit queue is full for {QUEUE_FULL_S} s: "
                        "nobody acknowledges frames on this bus"
                    ) from error
                self._clock.sleep(POLL_S)
            else:
                return

    def _bus_down(self, error: OSError, payload: bytes) -> Exception:
        if error.errno in {errno.EINVAL, errno.EMSGSIZE}:
            return too_long(payload, len(payload) - 1)
        return BusDown(f"{self._name}: a message can't be sent: {error.strerror}")

    def _wait_until_sent(self, deadline: float, size: int) -> None:
        begun = self._clock.now()
        while True:
            self._look_up()
            idle = self._is_idle()
            # Asked in this order: an error is set before the transmission ends.
            match self._error():
                case 0 | errno.EILSEQ | errno.ETIMEDOUT:  # the latter two of something that was received
                    if idle:
                        return
                case errno.EMSGSIZE:
                    raise EcuOverflow(f"sending {size} bytes to the ECU failed: Overflow, it takes fewer")
                case errno.EBADMSG:
                    raise NotSent(f"sending {size} bytes to the ECU failed: its flow control is invalid")
                case errno.ECOMM if self._clock.now() - begun < ECHO_S:
                    raise NotSent(f"sending {size} bytes to the ECU failed: no flow control in time")
                case code:
                    # A last frame may be stuck in the controller and leave it yet.
                    raise NoAnswer(f"sending {size} bytes to the ECU failed: {os.strerror(code)}")
            if self._clock.now() >= deadline:
                raise NoAnswer(f"{size} bytes are not with the ECU in time; the kernel still sends them")
            self._poll(select.POLLOUT, SLICE_S)
            if not idle:
                # Kernels before 6.3 say that they are writable all the time.
                self._clock.sleep(POLL_S / 10)

    # -- receiving

    def _read(self) -> bytes | None:
        """The next message that is here already; what broke off on the way is passed over."""
        for _ in range(MOST_STALE_MESSAGES):
            try:
                payload = self._socket.recv(self._most_bytes + 1, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return None
            except OSError as error:
                if error.errno not in LOST_ON_THE_WAY:
                    raise BusDown(f"{self._name}: nothing can be received: {error.strerror}") from error
                continue
            if len(payload) <= self._most_bytes:
                return payload
        return None

    def _is_coming(self) -> bool:
        """Whether frames of a longer answer came since the last look."""
        found = False
        for _ in range(MOST_FRAMES):
            message = self._link.receive(0.0)
            if message is None:
                break
            kind = message.data[0] >> 4 if message.data else None
            self._has_begun |= kind == Kind.FIRST
            found |= self._has_begun and kind in {Kind.FIRST, Kind.CONSECUTIVE}
        return found


def transport(
    link: Link,
    can_link: CanLink,
    address: IsoTpAddress,
    *,
    interrupt: threading.Event,
    padding: int,
    flow_control_s: float,
    consecutive_s: float,
    fd: bool = False,
    most_bytes: int = MOST_PAYLOAD_BYTES,
    ask: Ask = AT_ONCE,
    prefer: Prefer = "auto",
) -> IsoTpTransport | KernelIsoTpTransport:
    """The kernel's stack where it can be had and no trace must see each frame; else Python's.

    `prefer="kernel"` insists. Raises NoKernelIsoTp then, BusDown.
    """
    why_not = _why_not(link)
    if prefer == "kernel" and why_not is not None:
        raise NoKernelIsoTp(f"{link.name}: {why_not}")
    if prefer == "python" or why_not is not None:
        return IsoTpTransport(
            can_link,
            address,
            interrupt=interrupt,
            padding=padding,
            flow_control_s=flow_control_s,
            consecutive_s=consecutive_s,
            fd=fd,
            most_bytes=most_bytes,
            ask=ask,
        )
    return KernelIsoTpTransport(
        can_link,
        link.settings.channel,
        address,
        interrupt=interrupt,
        padding=padding,
        consecutive_s=consecutive_s,
        fd=fd,
        most_bytes=most_bytes,
        ask=ask,
    )


def _why_not(link: Link) -> str | None:
    if link.settings.interface != "socketcan":
        return f"{link.settings.interface} is no network device of the kernel"
    if link.traced:
        return "each frame must pass through the trace"
    return available()
