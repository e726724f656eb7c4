"""A CAN time-out is what it says, whatever somebody does to the wall clock meanwhile."""

from __future__ import annotations

import time
from typing import Any

import can
import pytest

from firmware_flashers.can_link import CanLink
from firmware_flashers.can_wait import receive

FOREIGN = can.Message(arbitration_id=0x123, is_extended_id=False)
OURS = can.Message(arbitration_id=0x7E8, is_extended_id=False)


class Bus(can.BusABC):
    """A driver that leaves filtering to python-can; it notes how long it was told to wait."""

    def __init__(self, *frames: can.Message | None) -> None:
        super().__init__(channel="none", can_filters=[{"can_id": 0x7E8, "can_mask": 0x7FF}])
        self._frames = list(frames)
        self.waits: list[float | None] = []

    def _recv_internal(self, timeout: float | None) -> tuple[can.Message | None, bool]:
        self.waits.append(timeout)
        if self._frames:
            return self._frames.pop(0), False
        time.sleep(min(timeout or 0.0, 0.02))
        return None, False

    def send(self, msg: can.Message, timeout: float | None = None) -> None:
        raise NotImplementedError

    def shutdown(self) -> None:
        super().shutdown()


@pytest.fixture(params=[-56 * 365 * 86400.0, -7 * 86400.0, 31 * 86400.0], ids=["1970", "week", "month"])
def jumping(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the wall clock finds it set by so much more."""
    now, step_s = time.time(), float(request.param)

    def wall() -> float:
        nonlocal now
        now += step_s
        return now

    monkeypatch.setattr("can.bus.time", wall)


@pytest.mark.usefixtures("jumping")
@pytest.mark.parametrize("by", ["receive", "link"])
def test_it_waits_no_longer_and_no_shorter_than_it_was_told(by: str) -> None:
    bus = Bus(FOREIGN, None, FOREIGN, OURS)
    link = CanLink(bus, name="test") if by == "link" else None
    act: Any = link.receive if link is not None else lambda timeout_s: receive(bus, timeout_s)
    assert act(0.2) == OURS
    assert act(0.1) is None
    assert all(one is not None and 0 <= one <= 0.2 for one in bus.waits)
    assert act(0.0) is None
    bus.shutdown()


def test_with_no_time_it_takes_what_is_there() -> None:
    bus = Bus(OURS)
    assert receive(bus, 0.0) == OURS
    bus.shutdown()


def test_a_bus_with_a_receive_of_its_own_is_left_to_it() -> None:
    class Own(Bus):
        def recv(self, timeout: float | None = None) -> can.Message | None:
            return OURS if timeout == 0.5 else None

    bus = Own()
    assert receive(bus, 0.5) == OURS
    bus.shutdown()
