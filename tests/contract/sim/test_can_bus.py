"""python-can's in-process bus and the hub's keep the same promises to whoever opens a `can.Bus`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import can
import pytest

from sim.can_bus import hub_in_thread

Open = Callable[..., can.BusABC]


@pytest.fixture(params=["virtual", "quarry-hub"])
def open_bus(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens further endpoints of one bus."""
    with ExitStack() as stack:
        channel = str(tmp_path / "can.sock")
        if request.param == "quarry-hub":
            stack.enter_context(hub_in_thread(channel))

        def opened(**options: Any) -> can.BusABC:
            return stack.enter_context(
                can.Bus(channel, interface=request.param, ignore_config=True, **options)
            )

        yield opened


def frame(number: int, can_id: int = 0x123, *, extended: bool = False) -> can.Message:
    return can.Message(arbitration_id=can_id, data=number.to_bytes(8, "big"), is_extended_id=extended)


SHAPES = {
    "empty": can.Message(arbitration_id=0, data=b"", is_extended_id=False),
    "one byte": can.Message(arbitration_id=0x7FF, data=b"\xff", is_extended_id=False),
    "eight bytes": can.Message(arbitration_id=0x7E0, data=bytes(range(8)), is_extended_id=False),
    "29 bit": can.Message(arbitration_id=0x1FFF_FFFF, data=b"\x01\x02", is_extended_id=True),
    "29 bit, small": can.Message(arbitration_id=0x7E0, data=b"\x01", is_extended_id=True),
    "remote": can.Message(arbitration_id=0x100, dlc=4, is_remote_frame=True, is_extended_id=False),
    "remote, 29 bit": can.Message(
        arbitration_id=0x18DAF110, dlc=0, is_remote_frame=True, is_extended_id=True
    ),
}


@pytest.mark.parametrize("message", SHAPES.values(), ids=SHAPES)
def test_every_classic_frame_arrives_as_it_was(open_bus: Open, message: can.Message) -> None:
    one, other = open_bus(), open_bus()
    one.send(message)
    got = other.recv(5)
    assert got is not None
    assert got.equals(message, timestamp_delta=None, check_channel=False, check_direction=False)
    assert got.is_rx
    assert abs(got.timestamp - time.time()) < 60


def test_a_frame_reaches_all_others_and_not_its_sender(open_bus: Open) -> None:
    sender, *others = open_bus(), open_bus(), open_bus()
    sender.send(frame(1))
    for other in others:
        got = other.recv(5)
        assert got is not None
        assert bytes(got.data) == bytes(frame(1).data)
    assert sender.recv(0) is None
    others[0].send(frame(2))
    got = sender.recv(5)
    assert got is not None, "its own frame would have come first"
    assert bytes(got.data) == bytes(frame(2).data)


def test_a_sender_that_wants_its_own_frames_has_them_in_order(open_bus: Open) -> None:
    one, other = open_bus(receive_own_messages=True), open_bus()
    one.send(frame(1))
    assert other.recv(5) is not None
    other.send(frame(2))
    got = [one.recv(5), one.recv(5)]
    assert [(bytes(m.data)[-1], m.is_rx) for m in got if m] == [(1, False), (2, True)]


def test_order_is_kept_both_ways_at_once(open_bus: Open) -> None:
    one, other = open_bus(), open_bus()
    count = 3000
    seen: dict[str, list[int]] = {"one": [], "other": []}

    def receive(name: str, bus: can.BusABC) -> None:
        while len(seen[name]) < count and (got := bus.recv(10)):
            seen[name].append(int.from_bytes(got.data, "big"))

    def send(bus: can.BusABC) -> None:
        for number in range(count):
            bus.send(frame(number))

    threads = [
        threading.Thread(target=receive, args=("one", one)),
        threading.Thread(target=receive, args=("other", other)),
        threading.Thread(target=send, args=(one,)),
        threading.Thread(target=send, args=(other,)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert seen == {"one": list(range(count)), "other": list(range(count))}


def test_filters_hold(open_bus: Open) -> None:
    sender = open_bus()
    picky = open_bus(can_filters=[{"can_id": 0x7E8, "can_mask": 0x7FF, "extended": False}])
    for can_id, extended in ((0x7E0, False), (0x7E8, True), (0x7E8, False)):
        sender.send(frame(can_id, can_id, extended=extended))
    got = picky.recv(5)
    assert got is not None
    assert (got.arbitration_id, got.is_extended_id) == (0x7E8, False)
    assert picky.recv(0) is None


def test_nothing_comes_of_a_silent_bus(open_bus: Open) -> None:
    assert open_bus().recv(0) is None
    assert open_bus().recv(0.01) is None


def test_a_closed_bus_says_so(open_bus: Open) -> None:
    bus, other = open_bus(), open_bus()
    bus.shutdown()
    bus.shutdown()
    with pytest.raises(can.CanOperationError):
        bus.send(frame(1))
    with pytest.raises(can.CanOperationError):
        bus.recv(0)
    other.send(frame(2))


def test_a_notifier_feeds_listeners(open_bus: Open) -> None:
    sender, receiver = open_bus(), open_bus()
    reader = can.BufferedReader()
    notifier = can.Notifier(receiver, [reader], timeout=0.05)
    try:
        for number in range(100):
            sender.send(frame(number))
        got = [reader.get_message(5) for _ in range(100)]
        assert [int.from_bytes(m.data, "big") for m in got if m] == list(range(100))
    finally:
        notifier.stop()
