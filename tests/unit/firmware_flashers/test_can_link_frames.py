"""Which frames a conversation hears where the driver does not filter, and what waits to be dropped."""

from __future__ import annotations

from collections import deque
from typing import Any

import can
import pytest

from firmware_flashers import can_driver
from firmware_flashers.base import BusDown
from firmware_flashers.can_link import MOST_FOREIGN_FRAMES, CanLink


class Bus(can.BusABC):
    def __init__(self, *waiting: can.Message) -> None:
        super().__init__(channel="scripted")
        self.waiting = deque(waiting)
        self.looks: list[float | None] = []

    def send(self, msg: can.Message, timeout: float | None = None) -> None:
        raise AssertionError("nothing is sent here")

    def recv(self, timeout: float | None = None) -> can.Message | None:
        self.looks.append(timeout)
        return self.waiting.popleft() if self.waiting else None


def frame(one: int, *, extended: bool | None = None, **more: Any) -> can.Message:
    far = one > 0x7FF if extended is None else extended
    return can.Message(arbitration_id=one, is_extended_id=far, data=b"\x01", **more)


OURS = (0x7E8, 0x18DAF110)


@pytest.mark.parametrize("foreign", [0x7E9, 0x123, 0x18DAF111])
@pytest.mark.parametrize("timeout_s", [0.0, 0.5])
def test_foreign_frames_are_passed_over(foreign: int, timeout_s: float) -> None:
    link = CanLink(Bus(*[frame(foreign)] * 50, frame(0x7E8), frame(0x18DAF110)), name="x", only=OURS)
    heard = [link.receive(timeout_s), link.receive(timeout_s), link.receive(0.0)]
    assert [one and one.arbitration_id for one in heard] == [0x7E8, 0x18DAF110, None]


def test_the_same_number_of_another_length_is_foreign() -> None:
    link = CanLink(
        Bus(frame(0x7E8, extended=True), frame(0x110, extended=False)), name="x", only=(0x7E8, 0x18DAF110)
    )
    assert link.receive(0.0) is None


def test_without_identifiers_all_are_heard() -> None:
    link = CanLink(Bus(frame(1), frame(0x12345)), name="x")
    assert [link.receive(0.0) is not None for _ in range(3)] == [True, True, False]


def test_a_bus_full_of_foreign_frames_holds_nobody() -> None:
    bus = Bus(*[frame(0x123)] * (MOST_FOREIGN_FRAMES + 1))
    assert CanLink(bus, name="x", only=OURS).receive(0.0) is None
    assert len(bus.waiting) == 1


def test_foreign_frames_use_up_the_time_out() -> None:
    class Clock:
        at = 0.0

        def now(self) -> float:
            self.at += 0.1
            return self.at

    bus = Bus(*[frame(0x123)] * 20)
    bus.quarry_clock = Clock()  # type: ignore[attr-defined]
    assert CanLink(bus, name="x", only=OURS).receive(1.0) is None
    assert bus.looks[0] == 1.0
    assert bus.looks[-1] == 0.0
    assert all(later <= earlier for earlier, later in zip(bus.looks, bus.looks[1:], strict=False))  # type: ignore[operator]


def test_what_waits_is_dropped_whatever_it_is() -> None:
    bus = Bus(
        frame(0x7E8),
        frame(0x20000004, extended=True, is_error_frame=True),
        frame(0x123),
        frame(0x7E8, is_remote_frame=True),
        frame(0x7E8),
    )
    CanLink(bus, name="x", only=OURS).drop_received()
    assert not bus.waiting


def test_a_bus_that_babbles_is_dropped_to_a_bound() -> None:
    bus = Bus(*[frame(0x7E8)] * (MOST_FOREIGN_FRAMES + 1))
    CanLink(bus, name="x").drop_received()
    assert len(bus.waiting) == 1


def test_bus_off_among_what_is_dropped_is_bus_down() -> None:
    link = CanLink(Bus(frame(0x7E8), frame(0x40, extended=True, is_error_frame=True)), name="x")
    with pytest.raises(BusDown, match="bus-off"):
        link.drop_received()


@pytest.mark.parametrize(
    ("rates", "extended", "fd", "seconds"),
    [
        ((500_000, None), False, False, 135 / 500_000),
        ((500_000, None), True, False, 160 / 500_000),
        ((None, None), False, False, 135 / 250_000),
        ((500_000, 2_000_000), False, True, 407e-6),
        ((500_000, 5_000_000), False, True, 203.6e-6),
        ((500_000, None), False, True, 712 / 500_000),
    ],
)
def test_what_a_frame_may_take(rates: Any, extended: bool, fd: bool, seconds: float) -> None:
    link = CanLink(Bus(), name="x", bitrate=rates[0], data_bitrate=rates[1])
    assert link.frame_s(extended=extended, fd=fd) == pytest.approx(seconds)


def test_what_belongs_to_it_is_closed_with_it() -> None:
    closed: list[str] = []

    def fail() -> None:
        closed.append("second")
        raise OSError("it was gone")

    bus = Bus()
    link = CanLink(bus, name="x")
    link.close_too(lambda: closed.append("first"))
    link.close_too(fail)
    link.close()
    assert closed == ["second", "first"]


class Socket:
    def __init__(self, *, may_force: bool) -> None:
        self.may_force = may_force
        self.options: list[int] = []

    def setsockopt(self, level: int, option: int, value: int) -> None:
        if option == can_driver.SO_RCVBUFFORCE and not self.may_force:
            raise PermissionError
        self.options.append(option)


@pytest.mark.parametrize("may_force", [True, False])
def test_a_sockets_buffer_is_made_as_deep_as_may_be(may_force: bool) -> None:
    import socket

    bus = Bus()
    bus.socket = Socket(may_force=may_force)  # type: ignore[attr-defined]
    can_driver.deepen(bus)
    assert bus.socket.options == [can_driver.SO_RCVBUFFORCE if may_force else socket.SO_RCVBUF]  # type: ignore[attr-defined]
