"""The kernel's ISO-TP seen through a socket that says what a kernel says when things go wrong.

What it does when they go right is shown on a real kernel (`tests/integration/socketcan`).
"""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import can
import pytest

from firmware_flashers import isotp_kernel
from firmware_flashers.base import BusDown, FlashError, NoAnswer
from firmware_flashers.can_link import CanLink, Link, LinkSettings
from firmware_flashers.isotp import EcuOverflow, Interrupted, IsoTpAddress, IsoTpTransport, NotSent
from firmware_flashers.isotp_frames import AT_ONCE, Ask

ADDRESS = IsoTpAddress(tx_id=0x7E0, rx_id=0x7E8, functional_id=0x7DF)


class Clock:
    """Each look costs a millisecond."""

    def __init__(self) -> None:
        self.at = 0.0

    def now(self) -> float:
        self.at += 0.001
        return self.at

    def sleep(self, seconds: float) -> None:
        self.at += seconds

    def attending(self) -> AbstractContextManager[None]:
        return nullcontext()


class Bus(can.BusABC):
    def __init__(self) -> None:
        super().__init__(channel="scripted")
        self.quarry_clock = Clock()
        self.waiting: deque[str] = deque()
        self.sent: list[bytes] = []

    def send(self, msg: can.Message, timeout: float | None = None) -> None:
        self.sent.append(bytes(msg.data))

    def _recv_internal(self, timeout: float | None) -> tuple[can.Message | None, bool]:
        if not self.waiting:
            return None, True
        data = bytes.fromhex(self.waiting.popleft())
        return can.Message(arbitration_id=0x7E8, is_extended_id=False, data=data), True


class Socket:
    """`busy` looks find a message under way; then `error` is what became of it."""

    def __init__(self) -> None:
        self._end, self._other = socket.socketpair()
        self._other.close()  # so that no poll waits
        self.busy = 0
        self.error = 0
        self.refusals: list[int] = []
        self.incoming: deque[bytes | int] = deque()
        self.sent: list[bytes] = []
        self.closed = threading.Event()

    def fileno(self) -> int:
        return self._end.fileno()

    def send(self, payload: bytes, flags: int) -> int:
        assert flags == socket.MSG_DONTWAIT
        if self.busy:
            self.busy -= 1
            raise BlockingIOError(errno.EAGAIN, "busy")
        if not payload:
            raise OSError(errno.EINVAL, "no message")
        if self.refusals:
            code = self.refusals.pop(0)
            raise OSError(code, os.strerror(code))
        self.sent.append(payload)
        return len(payload)

    def recv(self, most: int, flags: int) -> bytes:
        assert flags == socket.MSG_DONTWAIT
        if not self.incoming:
            raise BlockingIOError(errno.EAGAIN, "nothing")
        got = self.incoming.popleft()
        if isinstance(got, int):
            raise OSError(got, os.strerror(got))
        return got[:most]

    def getsockopt(self, level: int, option: int) -> int:
        assert (level, option) == (socket.SOL_SOCKET, socket.SO_ERROR)
        # What is asked before a message is sent is of the one before.
        code, self.error = (self.error, 0) if self.sent else (0, self.error)
        return code

    def close(self) -> None:
        self._end.close()
        self.closed.set()


class Bench:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sockets: list[Socket] = []
        self.interrupt = threading.Event()
        self.bus = Bus()
        self.link = CanLink(self.bus, name="vcan0")
        monkeypatch.setattr(isotp_kernel, "open_socket", self.open)
        self.transport = isotp_kernel.KernelIsoTpTransport(
            self.link,
            "vcan0",
            ADDRESS,
            interrupt=self.interrupt,
            padding=0xCC,
            consecutive_s=1.0,
        )

    def open(self, interface: str, address: IsoTpAddress, *, padding: int, fd: bool, ask: Ask) -> Socket:
        assert (interface, address, padding, fd, ask) == ("vcan0", ADDRESS, 0xCC, False, AT_ONCE)
        self.sockets.append(Socket())
        return self.sockets[-1]

    @property
    def socket(self) -> Socket:
        return self.sockets[-1]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    made = Bench(monkeypatch)
    yield made
    made.socket.busy = 0
    made.link.close()
    assert made.socket.closed.wait(5)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (errno.ECOMM, NotSent),
        (errno.EBADMSG, NotSent),
        (errno.EMSGSIZE, EcuOverflow),
        (errno.ENETDOWN, BusDown),
        (errno.ENODEV, BusDown),
        (errno.EIO, NoAnswer),
    ],
    ids=errno.errorcode.get,
)
def test_what_ends_a_transmission_is_named(bench: Bench, code: int, expected: type[FlashError]) -> None:
    bench.socket.error = code
    with pytest.raises(expected) as caught:
        bench.transport.send(bytes(100), timeout_s=10)
    assert isinstance(caught.value, NotSent) == issubclass(expected, NotSent)


def test_a_frame_that_may_leave_the_controller_yet_is_not_surely_unsent(bench: Bench) -> None:
    started = bench.socket.send

    def send(payload: bytes, flags: int) -> int:
        done = started(payload, flags)
        bench.socket.busy = 10**6
        return done

    def getsockopt(level: int, option: int) -> int:
        return errno.ECOMM if bench.bus.quarry_clock.at > 2.5 else 0

    bench.socket.send = send  # type: ignore[method-assign]
    bench.socket.getsockopt = getsockopt  # type: ignore[method-assign]
    with pytest.raises(NoAnswer) as caught:
        bench.transport.send(bytes(100), timeout_s=10)
    assert not isinstance(caught.value, NotSent)


@pytest.mark.parametrize("code", [errno.EILSEQ, errno.ETIMEDOUT], ids=errno.errorcode.get)
def test_an_answer_that_broke_off_is_no_error_of_the_request(bench: Bench, code: int) -> None:
    bench.socket.error = code
    bench.transport.send(bytes(100), timeout_s=10)
    assert bench.socket.sent == [bytes(100)]


def test_a_full_queue_is_waited_out(bench: Bench) -> None:
    bench.socket.refusals = [errno.ENOBUFS] * 20
    bench.transport.send(b"\x10\x03", timeout_s=10)
    assert bench.socket.sent == [b"\x10\x03"]


def test_a_queue_that_stays_full_is_bus_down(bench: Bench) -> None:
    bench.socket.refusals = [errno.ENOBUFS] * 100_000
    with pytest.raises(BusDown, match="queue is full"):
        bench.transport.send(b"\x10\x03", timeout_s=1000)
    assert bench.bus.quarry_clock.at < 5


@pytest.mark.parametrize(
    ("code", "expected"),
    [(errno.EINVAL, "payload_too_long"), (errno.ENXIO, "bus_down"), (errno.ENETDOWN, "bus_down")],
)
def test_a_message_that_the_kernel_refuses(bench: Bench, code: int, expected: str) -> None:
    bench.socket.refusals = [code]
    with pytest.raises(FlashError) as caught:
        bench.transport.send(bytes(4000), timeout_s=10)
    assert caught.value.code == expected


def test_a_message_under_way_at_the_time_out_may_still_arrive(bench: Bench) -> None:
    def send(payload: bytes, flags: int) -> int:
        if bench.socket.sent:
            raise BlockingIOError
        return sent(payload, flags)

    sent = bench.socket.send
    bench.socket.send = send  # type: ignore[method-assign]
    with pytest.raises(NoAnswer) as caught:
        bench.transport.send(bytes(100), timeout_s=1)
    assert not isinstance(caught.value, NotSent)
    # The next one is not even begun.
    with pytest.raises(NotSent):
        bench.transport.send(b"\x10\x03", timeout_s=1)
    assert bench.socket.sent == [bytes(100)]
    bench.socket.send = sent  # type: ignore[method-assign]


def test_an_interrupt_does_not_wait_for_the_kernel(bench: Bench) -> None:
    started = bench.socket.send

    def send(payload: bytes, flags: int) -> int:
        done = started(payload, flags)
        bench.socket.busy = 10**6
        bench.interrupt.set()
        return done

    bench.socket.send = send  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        bench.transport.send(bytes(100), timeout_s=1000)
    # A last word goes by the link itself.
    bench.transport.send_single(b"\x11\x01")
    assert bench.bus.sent == [b"\x02\x11\x01" + b"\xcc" * 5]


def test_a_socket_that_is_still_sending_is_closed_all_the_same(bench: Bench) -> None:
    bench.socket.busy = 10**6
    bench.link.close()
    assert bench.socket.closed.wait(5)


@pytest.mark.parametrize(
    "code", [errno.EILSEQ, errno.ETIMEDOUT, errno.EBADMSG, errno.ECOMM], ids=errno.errorcode.get
)
def test_an_answer_that_is_lost_is_waited_out(bench: Bench, code: int) -> None:
    bench.socket.incoming.extend([code, b"\x50\x03"])
    assert bench.transport.receive(1) == b"\x50\x03"


def test_a_dead_interface_is_bus_down(bench: Bench) -> None:
    bench.socket.incoming.append(errno.ENETDOWN)
    with pytest.raises(BusDown):
        bench.transport.receive(1)


def test_a_message_longer_than_allowed_is_dropped(bench: Bench) -> None:
    bench.socket.incoming.extend([bytes(5000), b"\x50\x03"])
    assert bench.transport.receive(1) == b"\x50\x03"


def test_after_silence_a_fresh_socket_forgets_what_was_half_received(bench: Bench) -> None:
    assert bench.transport.receive(0.1) is None
    bench.transport.send(b"\x10\x03", timeout_s=1)
    assert len(bench.sockets) == 2
    assert bench.sockets[0].closed.is_set()
    bench.socket.incoming.append(b"\x50\x03")
    assert bench.transport.receive(0.1) == b"\x50\x03"
    bench.transport.send(b"\x10\x03", timeout_s=1)
    assert len(bench.sockets) == 2


def test_an_answer_whose_frames_keep_coming_is_waited_for(bench: Bench) -> None:
    begun = bench.bus.quarry_clock.at
    bench.bus.waiting.extend(["10FF6201020304"] + ["2101020304050607"] * 5)
    assert bench.transport.receive(0.1) is None
    assert 1.0 < bench.bus.quarry_clock.at - begun < 3.0


def test_frames_of_no_message_prolong_nothing(bench: Bench) -> None:
    begun = bench.bus.quarry_clock.at
    bench.bus.waiting.extend(["2101020304050607"] * 50)
    assert bench.transport.receive(0.1) is None
    assert bench.bus.quarry_clock.at - begun < 0.5


def test_stale_answers_are_forgotten(bench: Bench) -> None:
    bench.socket.incoming.extend([b"\x76\x05", errno.EILSEQ, b"\x76\x04"])
    bench.transport.send(b"\x36\x06", timeout_s=1)
    assert bench.transport.receive(0.1) is None


# -- which stack is taken

MORE: dict[str, Any] = {"padding": 0xCC, "flow_control_s": 1.0, "consecutive_s": 1.0}


def chosen(folder: Path, interface: str, prefer: Any = "auto") -> Any:
    link = Link(LinkSettings(interface=interface, channel="none0", lock_folder=folder))
    return isotp_kernel.transport(
        link, CanLink(Bus(), name="x"), ADDRESS, interrupt=threading.Event(), prefer=prefer, **MORE
    )


def test_other_interfaces_take_pythons_stack(tmp_path: Path) -> None:
    assert isinstance(chosen(tmp_path, "virtual"), IsoTpTransport)
    with pytest.raises(isotp_kernel.NoKernelIsoTp, match="virtual"):
        chosen(tmp_path, "virtual", "kernel")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda patch: patch.setattr(isotp_kernel, "available", lambda: "it is not there"), "not there"),
        (lambda patch: patch.setattr(os, "uname", lambda: SimpleNamespace(release="5.15.148-tegra")), "5.15"),
        (lambda patch: patch.delattr(socket, "CAN_ISOTP"), "Python"),
    ],
    ids=["none", "old", "no name"],
)
def test_without_a_kernel_that_can_it_is_pythons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], None], said: str
) -> None:
    change(monkeypatch)
    assert isinstance(chosen(tmp_path, "socketcan"), IsoTpTransport)
    with pytest.raises(isotp_kernel.NoKernelIsoTp, match=said) as caught:
        chosen(tmp_path, "socketcan", "kernel")
    assert not caught.value.retryable
    assert isinstance(chosen(tmp_path, "socketcan", "python"), IsoTpTransport)


def test_an_interface_without_isotp_sockets_is_bus_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENODEV, "No such device")

    monkeypatch.setattr(isotp_kernel, "available", lambda: None)
    monkeypatch.setattr(isotp_kernel, "open_socket", fail)
    with pytest.raises(BusDown, match="No such device"):
        chosen(tmp_path, "socketcan")
