"""ISO-TP frame by frame, on a scripted bus without threads: ISO 15765-2 as the tester must speak it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import can
import pytest

from firmware_flashers.base import BusDown, NoAnswer
from firmware_flashers.can_link import CanLink
from firmware_flashers.isotp import Interrupted, IsoTpAddress, IsoTpTransport

React = Callable[[bytes], list[str]]
CTS = "300000AAAAAAAAAA"


class ScriptedBus(can.BusABC):
    """Answers each frame that is sent by the frames that `react` gives for it, at once."""

    def __init__(self, react: React, *, answer_id: int = 0x7E8) -> None:
        super().__init__(channel="scripted")
        self.react = react
        self.answer_id = answer_id
        self.sent: list[can.Message] = []
        self.waiting: list[can.Message] = []

    def say(self, *frames: str, arbitration_id: int | None = None) -> None:
        for frame in frames:
            self.waiting.append(
                can.Message(
                    arbitration_id=arbitration_id or self.answer_id,
                    data=bytes.fromhex(frame),
                    is_extended_id=(arbitration_id or self.answer_id) > 0x7FF,
                )
            )

    def send(self, msg: can.Message, timeout: float | None = None) -> None:
        self.sent.append(msg)
        self.say(*self.react(bytes(msg.data)))

    def _recv_internal(self, timeout: float | None) -> tuple[can.Message | None, bool]:
        if self.waiting:
            return self.waiting.pop(0), True
        time.sleep(min(timeout or 0.0, 0.002))
        return None, True

    @property
    def frames(self) -> list[str]:
        return [bytes(one.data).hex().upper() for one in self.sent]


def transport(bus: can.BusABC, *, tx_id: int = 0x7E0, rx_id: int = 0x7E8, **more: Any) -> IsoTpTransport:
    return IsoTpTransport(
        CanLink(bus, name="scripted"),
        IsoTpAddress(tx_id=tx_id, rx_id=rx_id),
        interrupt=more.pop("interrupt", threading.Event()),
        padding=0xCC,
        flow_control_s=0.05,
        consecutive_s=0.05,
    )


@pytest.fixture
def bus() -> Any:
    made = ScriptedBus(lambda data: [CTS] if data[0] >> 4 == 1 else [])
    yield made
    made.shutdown()


def test_a_short_payload_is_one_padded_frame(bus: ScriptedBus) -> None:
    transport(bus).send(bytes.fromhex("22F197"), timeout_s=1)
    assert bus.frames == ["0322F197CCCCCCCC"]
    assert not bus.sent[0].is_extended_id


def test_a_long_payload_counts_its_frames_and_wraps(bus: ScriptedBus) -> None:
    payload = bytes(range(256)) * 8
    transport(bus).send(payload, timeout_s=5)
    first, *rest = [bytes(one.data) for one in bus.sent]
    assert first[:2] == bytes([0x10 | len(payload) >> 8, len(payload) & 0xFF])
    assert [one[0] for one in rest] == [0x20 | (n & 0xF) for n in range(1, len(rest) + 1)]
    assert (first[2:] + b"".join(one[1:] for one in rest))[: len(payload)] == payload
    assert bytes(bus.sent[-1].data).endswith(b"\xcc")


def test_29_bit_identifiers() -> None:
    bus = ScriptedBus(lambda data: [CTS] if data[0] >> 4 == 1 else ["0150"], answer_id=0x18DAF110)
    wire = transport(bus, tx_id=0x18DA10F1, rx_id=0x18DAF110)
    wire.send(bytes(20), timeout_s=1)
    assert {(m.arbitration_id, m.is_extended_id) for m in bus.sent} == {(0x18DA10F1, True)}
    wire.send(b"\x10\x01", timeout_s=1)
    assert wire.receive(1) == b"\x50"
    bus.shutdown()


def test_the_receivers_block_size_is_kept() -> None:
    bus = ScriptedBus(lambda _: [])
    sent = {"since": 0}

    def react(data: bytes) -> list[str]:
        if data[0] >> 4 == 1:
            return ["300200"]
        sent["since"] += 1
        return ["300200"] if sent["since"] % 2 == 0 else []

    bus.react = react
    transport(bus).send(bytes(6 + 7 * 6), timeout_s=1)
    assert len(bus.sent) == 7
    bus.shutdown()


def test_the_receivers_separation_time_is_kept() -> None:
    bus = ScriptedBus(lambda data: ["300005"] if data[0] >> 4 == 1 else [])
    times: list[float] = []
    send = bus.send

    def timed(msg: can.Message, timeout: float | None = None) -> None:
        times.append(time.monotonic())
        send(msg, timeout)

    bus.send = timed  # type: ignore[method-assign]
    transport(bus).send(bytes(6 + 7 * 4), timeout_s=1)
    # Between consecutive frames at least 5 ms: a lower bound, which no load can break.
    assert all(later - earlier >= 0.005 for earlier, later in pairwise(times[1:]))
    bus.shutdown()


def test_a_reserved_separation_time_is_the_longest_one_and_no_error() -> None:
    bus = ScriptedBus(lambda data: ["3000FA"] if data[0] >> 4 == 1 else [])
    transport(bus).send(bytes(6 + 7), timeout_s=1)
    assert len(bus.sent) == 2
    bus.shutdown()


def test_wait_frames_are_obeyed() -> None:
    bus = ScriptedBus(lambda data: ["310000", "310000", CTS] if data[0] >> 4 == 1 else [])
    transport(bus).send(bytes(30), timeout_s=1)
    assert len(bus.sent) == 5
    bus.shutdown()


def test_waiting_for_ever_ends_at_the_time_out() -> None:
    class Waits(ScriptedBus):
        def _recv_internal(self, timeout: float | None) -> tuple[can.Message | None, bool]:
            if self.sent:
                time.sleep(0.001)
                self.say("310000")
            return super()._recv_internal(timeout)

    bus = Waits(lambda _: [])
    with pytest.raises(NoAnswer):
        transport(bus).send(bytes(30), timeout_s=0.2)
    bus.shutdown()


@pytest.mark.parametrize(
    ("flow", "said"), [([], "no flow control in time"), (["320000"], "Overflow"), (["3F0000"], "invalid")]
)
def test_no_flow_control_is_no_answer(flow: list[str], said: str) -> None:
    bus = ScriptedBus(lambda data: flow if data[0] >> 4 == 1 else [])
    wire = transport(bus)
    with pytest.raises(NoAnswer, match=said):
        wire.send(bytes(30), timeout_s=1)
    # And the next payload is not spoilt by it.
    bus.react = lambda data: ["0250 01"] if data[0] == 2 else []
    wire.send(b"\x10\x01", timeout_s=1)
    assert wire.receive(1) == b"\x50\x01"
    bus.shutdown()


def test_a_long_answer_is_asked_for_in_one_go(bus: ScriptedBus) -> None:
    bus.react = lambda data: {
        0x03: ["1014 62FD00 010203"],
        0x30: ["21 04050607080910", "22 11121314151617"],
    }.get(data[0], [])
    wire = transport(bus)
    wire.send(bytes.fromhex("22FD00"), timeout_s=1)
    answer = wire.receive(1)
    assert answer is not None
    assert len(answer) == 20
    assert bus.frames[1] == "300000CCCCCCCCCC"


@pytest.mark.parametrize(
    "frames",
    [
        ["1014 62FD00 010203"],
        ["1014 62FD00 010203", "22 04050607080910"],
        ["1014 62FD00 010203", "21 04050607080910"],
        ["1FFF 62FD00 010203"],
        ["1000 7FFFFFFF 0102"],
        ["00"],
        ["08 01020304050607"],
        ["40 01"],
        ["21 04050607080910"],
        [""],
    ],
    ids=lambda frames: " ".join(frames) or "empty",
)
def test_a_torn_answer_is_none_within_the_time_out(bus: ScriptedBus, frames: list[str]) -> None:
    bus.react = lambda data: frames if data[0] == 3 else []
    wire = transport(bus)
    wire.send(bytes.fromhex("22FD00"), timeout_s=1)
    assert wire.receive(0.2) is None
    # The next exchange is clean.
    bus.react = lambda data: ["0250 03"] if data[0] == 2 else []
    wire.send(b"\x10\x03", timeout_s=1)
    assert wire.receive(1) == b"\x50\x03"


def test_old_answers_are_forgotten_before_a_request(bus: ScriptedBus) -> None:
    wire = transport(bus)
    bus.say("0350 0300", "0276 05")
    bus.react = lambda _: ["0276 06"]
    wire.send(b"\x36\x06", timeout_s=1)
    assert wire.receive(1) == b"\x76\x06"
    assert wire.receive(0.0) is None


def test_an_ecu_that_babbles_holds_nobody(bus: ScriptedBus) -> None:
    class Babbles(ScriptedBus):
        def _recv_internal(self, timeout: float | None) -> tuple[can.Message | None, bool]:
            return can.Message(arbitration_id=0x7E8, data=b"\x21" * 8, is_extended_id=False), True

    babbling = Babbles(lambda _: [])
    wire = transport(babbling)
    wire.send(b"\x10\x03", timeout_s=1)
    assert wire.receive(0.1) is None
    with pytest.raises(NoAnswer):
        wire.send(bytes(100), timeout_s=0.1)
    babbling.shutdown()


def test_foreign_frames_are_not_answers(bus: ScriptedBus) -> None:
    wire = transport(bus)
    wire.send(b"\x10\x03", timeout_s=1)
    bus.say("0250 03", arbitration_id=0x7E9)
    bus.say("0250 03", arbitration_id=0x18DAF110)
    assert wire.receive(0.05) is None


def test_an_interrupt_stops_a_wait_and_a_send(bus: ScriptedBus) -> None:
    interrupt = threading.Event()
    wire = transport(bus, interrupt=interrupt)
    bus.react = lambda _: []
    timer = threading.Timer(0.05, interrupt.set)
    timer.start()
    with pytest.raises(Interrupted):
        wire.receive(30)
    with pytest.raises(Interrupted):
        wire.send(bytes(100), timeout_s=30)
    timer.join()
    # A last word goes out all the same.
    wire.send_single(b"\x11\x01")
    assert bus.frames[-1] == "021101CCCCCCCCCC"


@pytest.mark.parametrize("flow", [CTS, "300005"])
def test_an_interrupt_stops_a_long_message_within_two_frames(bus: ScriptedBus, flow: str) -> None:
    interrupt = threading.Event()

    def react(_: bytes) -> list[str]:
        if len(bus.sent) == 5:
            interrupt.set()
        return [flow] if len(bus.sent) == 1 else []

    bus.react = react
    with pytest.raises(Interrupted):
        transport(bus, interrupt=interrupt).send(bytes(4000), timeout_s=30)
    assert len(bus.sent) <= 6


def test_a_bus_that_dies_in_the_middle_is_bus_down(bus: ScriptedBus) -> None:
    def die(_: bytes) -> list[str]:
        if len(bus.sent) > 3:
            raise can.CanOperationError("gone")
        return [CTS] if len(bus.sent) == 1 else []

    bus.react = die
    with pytest.raises(BusDown):
        transport(bus).send(bytes(100), timeout_s=1)


def test_payloads_never_reach_a_log(bus: ScriptedBus, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, logger="isotp")
    bus.react = lambda _: ["1014 670142 424242", "0467014242"]
    wire = transport(bus)
    wire.send(bytes.fromhex("2701"), timeout_s=1)
    wire.receive(0.1)
    assert "4242" not in caplog.text
    assert "2701" not in caplog.text
