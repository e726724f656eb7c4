"""What every ISO-TP transport keeps, whoever implements it: one suite, run by `test_transports.py` here on
every bus of python-can's and by `tests/integration/socketcan` on a kernel's.

The ECU's end is a plain python-can bus with an ISO-TP of a few lines of its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import can
import pytest

from firmware_flashers.base import FlashError, NoAnswer
from firmware_flashers.clock import MONOTONIC, Clock
from firmware_flashers.isotp import EcuOverflow, Interrupted, NotSent

REQUEST, RESPONSE, FUNCTIONAL = 0x7E0, 0x7E8, 0x7DF
FAR_REQUEST, FAR_RESPONSE, FAR_FUNCTIONAL = 0x18DA10F1, 0x18DAF110, 0x18DB33F1
MOST_BYTES = 8300
LENGTHS = (8, 12, 16, 20, 24, 32, 48, 64)
GO = "300000"

React = Callable[[bytes], Iterable["str | bytes"]]


def silent(_: bytes) -> list[str]:
    return []


@dataclass(frozen=True, kw_only=True)
class Form:
    """How frames look: 11- or 29-bit identifiers, classic or FD."""

    extended: bool = False
    fd: bool = False

    @property
    def frame_bytes(self) -> int:
        return 64 if self.fd else 8

    @property
    def ids(self) -> tuple[int, int, int]:
        """Request, response, functional."""
        near = (REQUEST, RESPONSE, FUNCTIONAL)
        return (FAR_REQUEST, FAR_RESPONSE, FAR_FUNCTIONAL) if self.extended else near


FORMS = {
    "classic": Form(),
    "29-bit": Form(extended=True),
    "fd": Form(fd=True),
    "fd-29-bit": Form(fd=True, extended=True),
}


def segments(payload: bytes, form: Form) -> list[bytes]:
    """A message as frames, filled up with 0xAA."""
    size, count = form.frame_bytes, len(payload)
    if count <= 7:
        frames = [bytes([count]) + payload]
    elif form.fd and count <= 62:
        frames = [bytes([0, count]) + payload]
    else:
        head = (0x1000 | count).to_bytes(2, "big") if count < 4096 else b"\x10\x00" + count.to_bytes(4, "big")
        room = size - len(head)
        frames = [head + payload[:room]]
        for number, at in enumerate(range(room, count, size - 1), start=1):
            frames.append(bytes([0x20 | number % 16]) + payload[at : at + size - 1])
    return [one.ljust(next(n for n in LENGTHS if n >= len(one)), b"\xaa") for one in frames]


class Ecu:
    """A thread on the other end: `react` gives the answers to each frame that comes on `ids`."""

    def __init__(self, bus: can.BusABC, form: Form) -> None:
        self.form = form
        self.react: React = silent
        self.seen: list[can.Message] = []
        self.times: list[float] = []
        self._bus = bus
        self._clock = getattr(bus, "quarry_clock", MONOTONIC)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="suite-ecu", daemon=True)
        self._thread.start()

    @property
    def frames(self) -> list[bytes]:
        """What the tester has sent."""
        return [bytes(one.data) for one in self.seen]

    def say(self, *frames: str | bytes, arbitration_id: int | None = None) -> None:
        for frame in frames:
            data = bytes.fromhex(frame) if isinstance(frame, str) else frame
            self._bus.send(
                can.Message(
                    arbitration_id=arbitration_id or self.form.ids[1],
                    is_extended_id=self.form.extended,
                    data=data,
                    is_fd=self.form.fd,
                    bitrate_switch=self.form.fd,
                )
            )

    def close(self) -> None:
        self._stop.set()
        # A model bus's time has stopped when nobody attends any more.
        getattr(self._bus, "wake", lambda: None)()
        self._thread.join(10)

    def _run(self) -> None:
        with self._clock.attending():
            while not self._stop.is_set():
                message = self._bus.recv(0.02)
                if message is None or message.arbitration_id == self.form.ids[1]:
                    continue
                self.times.append(self._clock.now())
                self.seen.append(message)
                self.say(*self.react(bytes(message.data)))


@dataclass
class Echo:
    """A React that answers each message with itself; its flow controls ask for `flow`."""

    form: Form
    flow: bytes = b"\x30\x00\x00"
    messages: list[bytes] = field(default_factory=list)
    _data: bytes = b""
    _size: int = 0
    _since: int = 0
    _rest: list[bytes] = field(default_factory=list)

    def __call__(self, frame: bytes) -> list[bytes]:
        kind, low = frame[0] >> 4, frame[0] & 15
        if kind == 0:
            payload = frame[2 : 2 + frame[1]] if low == 0 else frame[1 : 1 + low]
            return self._answer(payload)
        if kind == 1:
            size = low << 8 | frame[1]
            escape = size == 0
            self._size = int.from_bytes(frame[2:6], "big") if escape else size
            self._data, self._since = frame[6 if escape else 2 :], 0
            return [self.flow]
        if kind == 2:
            self._data += frame[1:]
            self._since += 1
            if len(self._data) >= self._size:
                return self._answer(self._data[: self._size])
            return [self.flow] if self.flow[1] and self._since % self.flow[1] == 0 else []
        return self._rest

    def _answer(self, payload: bytes) -> list[bytes]:
        self.messages.append(payload)
        first, *self._rest = segments(payload, self.form)
        return [first]


@dataclass
class Rig:
    """A transport under test, and its ECU."""

    transport: Any
    ecu: Ecu
    form: Form
    interrupt: threading.Event
    n_bs_s: float
    clock: Clock

    def ask(self, payload: bytes, timeout_s: float = 5.0) -> bytes | None:
        self.transport.send(payload, timeout_s=timeout_s)
        got: bytes | None = self.transport.receive(timeout_s)
        return got

    def works(self) -> None:
        """Whatever was before, the next exchange is clean."""
        self.ecu.react = lambda frame: ["025003"] if frame[:3] == b"\x02\x10\x03" else []
        assert self.ask(b"\x10\x03") == b"\x50\x03"


def long_payload(count: int, seed: int = 7) -> bytes:
    return bytes((n * seed + n // 251) & 0xFF for n in range(count))


class TransportContract:
    """Fixture `rig` comes from the module that runs it."""

    def test_a_message_arrives_as_it_is_and_so_does_its_answer(self, rig: Rig) -> None:
        echo = rig.ecu.react = Echo(rig.form)
        for count in (1, 2, 6, 7, 8, 12, 13, 14, 20, 61, 62, 63, 64, 125, 126, 4095):
            payload = long_payload(count)
            assert (count, rig.ask(payload)) == (count, payload)
            assert echo.messages.pop() == payload

    def test_messages_over_4095_bytes_use_the_escape(self, rig: Rig) -> None:
        rig.ecu.react = Echo(rig.form)
        for count in (4096, MOST_BYTES):
            payload = long_payload(count)
            assert rig.ask(payload, 20) == payload
        assert any(one[:2] == b"\x10\x00" for one in rig.ecu.frames)

    def test_a_message_that_is_too_long_is_refused_and_named(self, rig: Rig) -> None:
        with pytest.raises(FlashError) as caught:
            rig.transport.send(bytes(MOST_BYTES + 1), timeout_s=1)
        assert caught.value.code == "payload_too_long"
        rig.works()
        assert len(rig.ecu.seen) == 1

    def test_frames_are_padded_to_sizes_that_exist(self, rig: Rig) -> None:
        rig.ecu.react = Echo(rig.form)
        for count in (1, 7, 8, 20, 65, 70):
            rig.ask(long_payload(count))
        own = [one for one in rig.ecu.seen if one.data[0] >> 4 != 3]
        assert {len(one.data) for one in own} <= set(LENGTHS if rig.form.fd else (8,))
        assert all((one.is_fd, one.bitrate_switch) == (rig.form.fd, rig.form.fd) for one in rig.ecu.seen)
        assert bytes(own[0].data) == b"\x01\x00" + b"\xcc" * 6
        assert own[-1].data[-1] == 0xCC

    def test_sequence_numbers_begin_with_one_and_wrap(self, rig: Rig) -> None:
        rig.ecu.react = Echo(rig.form)
        rig.ask(long_payload(2000))
        numbers = [one[0] & 15 for one in rig.ecu.frames if one[0] >> 4 == 2]
        assert numbers == [n % 16 for n in range(1, len(numbers) + 1)]

    @pytest.mark.parametrize("block_size", [1, 2, 8])
    def test_block_sizes_are_kept(self, rig: Rig, block_size: int) -> None:
        echo = Echo(rig.form, flow=bytes([0x30, block_size, 0]))
        rig.ecu.react = echo
        payload = long_payload(600)
        assert rig.ask(payload) == payload

    def test_the_separation_time_is_kept(self, rig: Rig) -> None:
        rig.ecu.react = Echo(rig.form, flow=b"\x30\x00\x05")
        count = 6 + 7 * 4 if not rig.form.fd else 62 + 63 * 4
        assert rig.ask(long_payload(count)) == long_payload(count)
        times = [at for at, one in zip(rig.ecu.times, rig.ecu.frames, strict=True) if one[0] >> 4 == 2]
        # From the first to the last of four frames; where the ECU's thread is late for one, none is early.
        assert times[-1] - times[0] >= 0.005 * 2

    @pytest.mark.parametrize("raw", [0xF1, 0xF9, 0x80, 0xFA])
    def test_small_and_reserved_separation_times_are_no_error(self, rig: Rig, raw: int) -> None:
        echo = rig.ecu.react = Echo(rig.form, flow=bytes([0x30, 0, raw]))
        rig.ask(long_payload(rig.form.frame_bytes + 2))
        assert echo.messages == [long_payload(rig.form.frame_bytes + 2)]

    def test_a_wait_is_waited_out(self, rig: Rig) -> None:
        echo = Echo(rig.form)
        rig.ecu.react = lambda frame: (
            ["310000", "310000", *echo(frame)] if frame[0] >> 4 == 1 else echo(frame)
        )
        assert rig.ask(long_payload(200)) == long_payload(200)

    def test_an_ecu_that_only_asks_to_wait_is_no_answer_in_time(self, rig: Rig) -> None:
        def wait(frame: bytes) -> list[str]:
            return ["310000"] * 3 if frame[0] >> 4 == 1 else []

        rig.ecu.react = wait
        with pytest.raises(NoAnswer):
            rig.transport.send(long_payload(200), timeout_s=rig.n_bs_s / 2)

    def test_without_flow_control_it_is_surely_not_sent(self, rig: Rig) -> None:
        with pytest.raises(NotSent):
            rig.transport.send(long_payload(200), timeout_s=rig.n_bs_s * 3)
        assert len(rig.ecu.seen) == 1
        rig.works()

    def test_without_flow_control_behind_a_block_it_is_no_answer(self, rig: Rig) -> None:
        flows = iter(["300200"])
        rig.ecu.react = lambda frame: [next(flows, "")] if frame[0] >> 4 == 1 else []
        with pytest.raises(NoAnswer):
            rig.transport.send(long_payload(400), timeout_s=rig.n_bs_s * 3)
        assert len(rig.ecu.seen) == 3
        rig.works()

    def test_an_overflow_is_named(self, rig: Rig) -> None:
        rig.ecu.react = lambda frame: ["320000"] if frame[0] >> 4 == 1 else []
        with pytest.raises(EcuOverflow):
            rig.transport.send(long_payload(200), timeout_s=5)
        rig.works()

    @pytest.mark.parametrize("flow", ["330000", "3F0000", "30", "3000"])
    def test_a_flow_control_that_is_none_never_passes_for_leave_to_send(self, rig: Rig, flow: str) -> None:
        rig.ecu.react = lambda frame: [flow] if frame[0] >> 4 == 1 else []
        try:
            rig.transport.send(long_payload(200), timeout_s=rig.n_bs_s * 3)
        except NoAnswer:
            pass
        else:
            # The kernel ends such a transmission without a word.
            assert rig.transport.receive(0.05) is None
        assert len(rig.ecu.seen) == 1
        rig.works()

    def test_nobody_answers_in_time(self, rig: Rig) -> None:
        rig.transport.send(b"\x3e\x00", timeout_s=1)
        assert rig.transport.receive(0.05) is None

    @pytest.mark.parametrize(
        "broken",
        ["a frame is missing", "a frame comes twice", "the second frame first", "it stops", "only the rest"],
    )
    def test_a_torn_answer_is_none_and_the_next_one_clean(self, rig: Rig, broken: str) -> None:
        frames = segments(long_payload(300), rig.form)
        torn = {
            "a frame is missing": frames[:2] + frames[3:],
            "a frame comes twice": [*frames[:2], *frames[1:]],
            "the second frame first": [frames[0], *frames[2:]],
            "it stops": frames[:2],
            "only the rest": frames[1:],
        }[broken]
        rig.ecu.react = lambda frame: torn if frame[:2] == b"\x02\x10" else []
        assert rig.ask(b"\x10\x02", 0.2) is None
        rig.works()

    @pytest.mark.parametrize(
        "stray",
        ["00", "0F" + "11" * 7, "300000", "210203", "40", "F0" * 8, "1006010203040506", "1000000000080102"],
    )
    def test_frames_that_nobody_expects_are_passed_over(self, rig: Rig, stray: str) -> None:
        rig.ecu.react = lambda frame: [stray, "025003"] if frame[:2] == b"\x02\x10" else []
        assert rig.ask(b"\x10\x03") == b"\x50\x03"

    def test_an_empty_frame_is_passed_over(self, rig: Rig) -> None:
        rig.ecu.react = lambda frame: [b"", "025003"] if frame[:2] == b"\x02\x10" else []
        assert rig.ask(b"\x10\x03") == b"\x50\x03"

    def test_a_single_frame_ends_an_unfinished_answer(self, rig: Rig) -> None:
        frames = segments(long_payload(300), rig.form)
        rig.ecu.react = lambda frame: [*frames[:2], "037F1078", *frames[2:]] if frame[0] == 2 else []
        assert rig.ask(b"\x10\x02") == b"\x7f\x10\x78"
        assert rig.transport.receive(0.05) is None

    def test_a_first_frame_begins_anew(self, rig: Rig) -> None:
        old, new = segments(long_payload(300), rig.form), segments(long_payload(200, seed=3), rig.form)
        rig.ecu.react = lambda frame: [*old[:3], *new] if frame[0] == 2 else []
        assert rig.ask(b"\x10\x02") == long_payload(200, seed=3)

    def test_answers_need_no_padding(self, rig: Rig) -> None:
        rig.ecu.react = lambda frame: ["025003"] if frame[0] == 2 else []
        assert rig.ask(b"\x10\x03") == b"\x50\x03"
        first, *rest = segments(long_payload(rig.form.frame_bytes + 3), rig.form)
        last = rest[-1][: -(len(rest[-1]) - 6)]
        rig.ecu.react = lambda frame: [first, *rest[:-1], last] if frame[0] == 2 else []
        assert rig.ask(b"\x10\x03") == long_payload(rig.form.frame_bytes + 3)

    def test_old_answers_are_forgotten_before_a_request(self, rig: Rig) -> None:
        rig.ecu.say("035003AA", "027605", *segments(long_payload(100), rig.form)[:1])
        self.settle(rig)
        rig.ecu.react = lambda frame: ["027606"] if frame[0] == 2 else []
        assert rig.ask(b"\x36\x06") == b"\x76\x06"
        assert rig.transport.receive(0.0) is None

    def test_a_late_answer_in_the_middle_of_a_request_is_not_its_answer(self, rig: Rig) -> None:
        echo = Echo(rig.form)

        def react(frame: bytes) -> list[bytes]:
            late = [b"\x02\x76\x05"] if frame[0] >> 4 in {1, 2} else []
            if frame[0] >> 4 == 1:
                echo(frame)
                return [*late, b"\x30\x01\x00"]
            answer = echo(frame)
            # Behind the last frame nothing tells a late answer from the right one.
            return answer or [*late, b"\x30\x01\x00"]

        rig.ecu.react = react
        payload = long_payload(20 if not rig.form.fd else 200)
        assert rig.ask(payload) == payload

    def test_foreign_frames_are_nobodys_answer(self, rig: Rig) -> None:
        other = rig.form.ids[1] + 1

        def react(_: bytes) -> list[str]:
            rig.ecu.say("025002", arbitration_id=other)
            return ["025003"]

        rig.ecu.react = react
        assert rig.ask(b"\x10\x03") == b"\x50\x03"
        assert rig.transport.receive(0.02) is None

    def test_two_answers_come_one_after_the_other(self, rig: Rig) -> None:
        rig.ecu.react = lambda _: ["037F3178", "057101FF0000"]
        assert rig.ask(b"\x31\x01\xff\x00") == b"\x7f\x31\x78"
        assert rig.transport.receive(5) == b"\x71\x01\xff\x00\x00"

    def test_single_frames_without_an_answer(self, rig: Rig) -> None:
        rig.transport.send_single(b"\x3e\x80")
        rig.transport.send_functional(b"\x10\x83")
        self.until(rig, lambda: len(rig.ecu.seen) == 2)
        assert [one.arbitration_id for one in rig.ecu.seen] == [rig.form.ids[0], rig.form.ids[2]]
        assert rig.ecu.frames == [b"\x02\x3e\x80" + b"\xcc" * 5, b"\x02\x10\x83" + b"\xcc" * 5]
        with pytest.raises(ValueError, match="single frame"):
            rig.transport.send_functional(bytes(63))

    def test_an_interrupt_stops_a_wait_and_a_send(self, rig: Rig) -> None:
        def interrupt() -> None:
            with rig.clock.attending():
                rig.clock.sleep(0.05)
                rig.interrupt.set()

        timer = threading.Thread(target=interrupt)
        timer.start()
        with pytest.raises(Interrupted):
            rig.transport.receive(60)
        with pytest.raises(Interrupted):
            rig.transport.send(long_payload(100), timeout_s=60)
        timer.join()
        assert not rig.ecu.seen
        # A last word goes out all the same.
        rig.transport.send_single(b"\x11\x01")
        self.until(rig, lambda: len(rig.ecu.seen) == 1)
        rig.interrupt.clear()
        rig.works()

    def test_an_interrupt_stops_the_wait_for_flow_control(self, rig: Rig) -> None:
        def react(_: bytes) -> list[str]:
            rig.interrupt.set()
            return []

        rig.ecu.react = react
        with pytest.raises(Interrupted):
            rig.transport.send(long_payload(1000), timeout_s=60)
        rig.interrupt.clear()
        rig.works()

    def test_an_ecu_that_babbles_holds_nobody(self, rig: Rig) -> None:
        stop = threading.Event()

        def babble() -> None:
            with rig.clock.attending():
                while not stop.is_set():
                    rig.ecu.say(b"\x21" * 8)
                    rig.clock.sleep(0.0005)

        thread = threading.Thread(target=babble)
        thread.start()
        try:
            rig.transport.send(b"\x10\x03", timeout_s=1)
            assert rig.transport.receive(0.1) is None
            with pytest.raises(NoAnswer):
                rig.transport.send(long_payload(100), timeout_s=rig.n_bs_s * 2)
        finally:
            stop.set()
            self.until(rig, lambda: not thread.is_alive())
        rig.works()

    @staticmethod
    def until(rig: Rig, done: Callable[[], bool]) -> None:
        for _ in range(1000):
            if done():
                return
            rig.clock.sleep(0.005)
            time.sleep(0)
        pytest.fail("it did not come about within 5 s")

    def settle(self, rig: Rig) -> None:
        """All that was said is with the driver."""
        rig.transport.send_single(b"\x3e\x80")
        self.until(rig, lambda: bool(rig.ecu.seen))
        rig.clock.sleep(0.01)
        rig.ecu.seen.clear()
