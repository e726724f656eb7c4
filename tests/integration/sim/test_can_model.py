"""The bus in virtual time: exact, in order, and never stuck, whoever comes, goes or loses power."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import can
import pytest

from shared.errors import ConfigError
from sim import virtual_time
from sim.can_bits import classic_bits, fd_bits
from sim.can_model import ModelBus, ModelEndpoint
from sim.can_wire import MOST_OUTGOING

REAL_S = 30.0
"""How long the tests wait in real time for what must happen."""


def frame(number: int, can_id: int = 0x7E0, *, extended: bool = False) -> can.Message:
    return can.Message(arbitration_id=can_id, data=number.to_bytes(8, "big"), is_extended_id=extended)


def fd_frame(size: int, *, brs: bool = True) -> can.Message:
    data = bytes(range(size))
    return can.Message(arbitration_id=0x7E0, data=data, is_extended_id=False, is_fd=True, bitrate_switch=brs)


def of(message: can.Message | None) -> int:
    assert message is not None
    return int.from_bytes(message.data, "big")


class Bench:
    """A bus, endpoints and threads that end with the test."""

    def __init__(self, stack: ExitStack, **options: Any) -> None:
        self._stack = stack
        self.model = stack.enter_context(ModelBus(**options))
        self._threads = ThreadPoolExecutor(8)
        stack.callback(self._threads.shutdown)

    def open(self, **options: Any) -> ModelEndpoint:
        return self._stack.enter_context(self.model.endpoint(**options))

    def runs(self, act: Callable[[], Any]) -> Future[Any]:
        return self._threads.submit(act)

    def part(self, act: Callable[[ModelEndpoint], Any], **options: Any) -> tuple[ModelEndpoint, Future[Any]]:
        """A simulated part: its thread works in the time, and has begun to."""
        endpoint, began = self.open(driver=False, **options), threading.Event()

        def live() -> Any:
            with endpoint.quarry_clock.attending():
                began.set()
                try:
                    return act(endpoint)
                except can.CanOperationError:
                    return None

        done = self.runs(live)
        assert began.wait(REAL_S)
        return endpoint, done

    def echo(self, request: int, response: int) -> ModelEndpoint:
        def answer(endpoint: ModelEndpoint) -> None:
            while True:
                got = endpoint.recv()
                if got is not None and got.arbitration_id == request:
                    endpoint.send(frame(of(got), response))

        return self.part(answer)[0]


@pytest.fixture
def make() -> Iterator[Callable[..., Bench]]:
    with ExitStack() as stack:
        yield lambda **options: Bench(stack, **options)


# --- what frames cost ---------------------------------------------------------------------------


def test_frames_take_their_exact_bits(make: Callable[..., Bench]) -> None:
    bench = make(bitrate=250_000)
    sender, reader = bench.open(), bench.open()
    frames = [frame(number, 0x100 + number, extended=number % 3 == 0) for number in range(200)]
    frames.append(can.Message(arbitration_id=0x321, is_remote_frame=True, dlc=4, is_extended_id=False))
    expected, ends = 0.0, []
    for one in frames:
        dlc = 4 if one.is_remote_frame else None
        expected += classic_bits(one.arbitration_id, one.is_extended_id, one.data, remote_dlc=dlc) / 250_000
        ends.append(expected)
    with sender.quarry_clock.attending():
        for one in frames:
            sender.send(one)
        sender.quarry_clock.sleep(1.0)
    got = [reader.recv(0) for _ in frames]
    assert [message.timestamp for message in got if message] == pytest.approx(ends)
    for message, one in zip(got, frames, strict=True):
        assert message is not None
        assert message.equals(one, timestamp_delta=None, check_channel=False, check_direction=False)
    assert bench.model.bus_s == pytest.approx(expected)
    assert bench.model.frames == len(frames)
    # 32 frames queue up at once, 17 more whenever 16 are left; the sleep begins with the last one's.
    assert bench.model.now() > 1.0


def test_the_data_of_fd_frames_go_at_their_own_rate(make: Callable[..., Bench]) -> None:
    bench = make(bitrate=500_000, data_bitrate=2_000_000, log_frames=10)
    sender, reader = bench.open(fd=True), bench.open(fd=True)
    with sender.quarry_clock.attending():
        sender.send(fd_frame(64))
        sender.send(fd_frame(12, brs=False))
        sender.quarry_clock.sleep(0.1)
    slow, fast = fd_bits(0x7E0, False, bytes(range(64)), True)
    nominal, none = fd_bits(0x7E0, False, bytes(range(12)), False)
    assert none == 0
    assert bench.model.bus_s == pytest.approx(slow / 500_000 + fast / 2_000_000 + nominal / 500_000)
    first = reader.recv(0)
    assert first is not None
    assert (len(first.data), first.is_fd, first.bitrate_switch) == (64, True, True)
    assert [data for _, _, data in bench.model.log] == [bytes(range(64)), bytes(range(12))]


def test_who_hears_what(make: Callable[..., Bench]) -> None:
    bench = make(bitrate=500_000, data_bitrate=2_000_000)
    sender = bench.open(fd=True)
    classic, other_rate, other_data_rate = (
        bench.open(),
        bench.open(bitrate=125_000),
        bench.open(fd=True, data_bitrate=5_000_000),
    )
    picky = bench.open()
    picky.set_filters([{"can_id": 0x7E8, "can_mask": 0x7FF, "extended": False}])
    own = can.Bus(bench.model.name, interface="quarry-model", ignore_config=True, receive_own_messages=True)
    with own, sender.quarry_clock.attending():
        for one in (frame(1), fd_frame(16), fd_frame(20, brs=False), frame(2, 0x7E8)):
            sender.send(one)
        own.send(frame(3, 0x7FF))
        sender.quarry_clock.sleep(1.0)

        def heard(bus: can.BusABC) -> list[int]:
            return [len(got.data) if got.is_fd else of(got) for got in iter(lambda: bus.recv(0), None)]

        assert heard(classic) == [1, 2, 3]
        assert heard(other_rate) == []
        assert heard(other_data_rate) == [1, 20, 2, 3]
        assert heard(picky) == [2]
        assert heard(own) == [1, 2, 3]
        assert heard(sender) == [3]
        other_rate.send(frame(9))
        sender.quarry_clock.sleep(1.0)
        assert heard(classic) == []
        other_rate.set_bitrate(500_000)
        other_rate.send(frame(9))
        sender.quarry_clock.sleep(1.0)
        assert heard(classic) == [9]


def test_the_lowest_identifier_goes_first(make: Callable[..., Bench]) -> None:
    bench = make()
    reader = bench.open()
    queued = [(0x700, False), (0x123 << 18 | 5, True), (0x123, False), (0x001 << 18, True), (0x002, False)]
    buses = [bench.open() for _ in queued]
    with reader.quarry_clock.attending():
        for bus, (can_id, extended) in zip(buses, queued, strict=True):
            bus.send(frame(0, can_id, extended=extended))
        # Within one queue the order stays, whatever the identifiers.
        buses[0].send(frame(0, 0x000))
        got = [reader.recv(1.0) for _ in range(6)]
    ids = [message.arbitration_id for message in got if message]
    assert ids == [0x001 << 18, 0x002, 0x123, 0x123 << 18 | 5, 0x700, 0x000]


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (can.Message(arbitration_id=0x800, is_extended_id=False, check=False), "out of range"),
        (can.Message(is_error_frame=True), "no frame"),
        (can.Message(data=bytes(9), check=False), "up to 8 bytes"),
        (can.Message(data=bytes(9), is_fd=True, check=False), "no frame"),
        (fd_frame(12), "not set to CAN FD"),
    ],
    ids=["identifier", "error frame", "long classic", "length of no DLC", "FD on a classic endpoint"],
)
def test_what_no_node_could_send_is_refused(make: Callable[..., Bench], message: Any, why: str) -> None:
    with pytest.raises(can.CanOperationError, match=why):
        make().open(fd="not set" not in why).send(message)


# --- when time moves ----------------------------------------------------------------------------


def test_time_stands_still_unless_somebody_attends(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.echo(0x7E0, 0x7E8)
    tester = bench.open()
    tester.send(frame(1))
    assert tester.recv(0.05) is None, "a time-out of the real clock"
    assert bench.model.now() == 0.0
    with tester.quarry_clock.attending():
        assert of(tester.recv(1.0)) == 1
        after_one = bench.model.now()
        assert after_one == pytest.approx(bench.model.bus_s)
        assert tester.recv(3600.0) is None
        tester.quarry_clock.sleep(3600.0)
    assert bench.model.now() == pytest.approx(after_one + 7200.0)


def test_time_waits_for_whoever_computes(make: Callable[..., Bench]) -> None:
    """A part that takes its time in the real world answers at the moment that it was asked."""
    bench = make()
    tester, onlooker, thinks = bench.open(), bench.open(), threading.Event()

    def slow(endpoint: ModelEndpoint) -> None:
        got = endpoint.recv()
        assert thinks.wait(REAL_S)
        endpoint.send(frame(of(got), 0x7E8))

    _, done = bench.part(slow)

    def ask() -> int:
        with tester.quarry_clock.attending():
            tester.send(frame(5))
            return of(tester.recv(0.001))

    answer = bench.runs(ask)
    assert of(onlooker.recv(REAL_S)) == 5
    assert not answer.done()
    thinks.set()
    assert answer.result(REAL_S) == 5
    done.result(REAL_S)


def test_held_time_goes_on_where_it_stood(make: Callable[..., Bench]) -> None:
    bench = make()
    tester = bench.open()

    def sleep() -> None:
        with tester.quarry_clock.attending():
            tester.quarry_clock.sleep(5.0)

    with bench.model.hold():
        with bench.model.hold():
            sleeping = bench.runs(sleep)
        bench.open().recv(0.02)
        assert bench.model.now() == 0.0
        assert not sleeping.done()
    sleeping.result(REAL_S)
    assert bench.model.now() == pytest.approx(5.0)


def test_a_full_queue_makes_its_sender_wait(make: Callable[..., Bench]) -> None:
    bench = make()
    sender, reader = bench.open(), bench.open()
    for number in range(MOST_OUTGOING):
        sender.send(frame(number))
    with pytest.raises(can.CanTimeoutError):
        sender.send(frame(99), timeout=0.02)
    with sender.quarry_clock.attending():
        for number in range(MOST_OUTGOING, 100):
            sender.send(frame(number), timeout=1.0)
        assert [of(reader.recv(1.0)) for _ in range(100)] == list(range(100))


# --- comings and goings -------------------------------------------------------------------------


def converse(bench: Bench, tester: ModelEndpoint, request: int, rounds: int) -> int:
    """Ping-pong with a part; returns how many answers came."""
    with tester.quarry_clock.attending():
        for number in range(rounds):
            tester.send(frame(number, request))
            if of(tester.recv(1.0)) != number:
                return number
    return rounds


def only(can_id: int) -> list[can.typechecking.CanFilter]:
    return [{"can_id": can_id, "can_mask": 0x7FF, "extended": False}]


def test_two_drivers_share_the_wire_exactly(make: Callable[..., Bench]) -> None:
    bench, rounds = make(), 300
    acts = []
    for request in (0x7E0, 0x7E1):
        bench.echo(request, request + 8)
        tester = bench.open()
        tester.set_filters(only(request + 8))
        acts.append((tester, request))
    with bench.model.hold():
        done = [bench.runs(partial(converse, bench, *act, rounds)) for act in acts]
    assert [one.result(REAL_S) for one in done] == [rounds, rounds]
    assert bench.model.frames == 4 * rounds
    # Either always has a frame to send while the other's is on the wire.
    assert bench.model.bus_s == pytest.approx(bench.model.now(), rel=0.01)


@pytest.mark.parametrize("leaves", ["between", "shut down", "with an error"])
def test_a_driver_that_leaves_stops_nobody(make: Callable[..., Bench], leaves: str) -> None:
    bench, rounds = make(), 200
    for request in (0x7E0, 0x7E1):
        bench.echo(request, request + 8)
    stays, goes = bench.open(), bench.open()
    stays.set_filters(only(0x7E8))
    goes.set_filters(only(0x7E9))

    talked = threading.Event()

    def leave() -> None:
        converse(bench, goes, 0x7E1, 20)
        talked.set()
        if leaves == "with an error":
            with goes.quarry_clock.attending():
                raise RuntimeError
        elif leaves == "shut down":
            with pytest.raises(can.CanOperationError, match="closed"), goes.quarry_clock.attending():
                goes.recv()

    leaving = bench.runs(leave)
    assert bench.runs(lambda: converse(bench, stays, 0x7E0, rounds)).result(REAL_S) == rounds
    assert talked.wait(REAL_S)
    goes.shutdown()
    if leaves == "with an error":
        with pytest.raises(RuntimeError):
            leaving.result(REAL_S)
    else:
        leaving.result(REAL_S)
    assert converse(bench, stays, 0x7E0, rounds) == rounds


def test_what_a_driver_queued_is_sent_when_it_has_gone(make: Callable[..., Bench]) -> None:
    bench = make()
    reader = bench.open()
    with bench.model.endpoint() as goes:
        for number in range(5):
            goes.send(frame(number))
    with reader.quarry_clock.attending():
        assert [of(reader.recv(1.0)) for _ in range(5)] == list(range(5))


def test_a_part_without_power_forgets_what_it_was_sending(make: Callable[..., Bench]) -> None:
    bench = make()
    part, reader = bench.open(driver=False), bench.open()
    for number in range(5):
        part.send(frame(number))
    part.reset_controller()
    with reader.quarry_clock.attending():
        assert reader.recv(1.0) is None


def test_a_part_is_woken_while_time_stands_still(make: Callable[..., Bench]) -> None:
    bench = make()
    woken: list[str] = []

    def live(endpoint: ModelEndpoint) -> None:
        endpoint.quarry_clock.sleep(3600.0)
        woken.append("asleep")
        assert endpoint.recv(3600.0) is None
        woken.append("hearing")

    endpoint, done = bench.part(live)
    while not done.done():
        endpoint.wake()
    done.result(REAL_S)
    assert woken == ["asleep", "hearing"]
    assert bench.model.now() == 0.0


def test_the_end_of_the_bus_ends_every_wait(make: Callable[..., Bench]) -> None:
    bench = make()
    tester = bench.open()
    waits: list[Callable[[], Any]] = [tester.recv, lambda: tester.quarry_clock.sleep(1.0)]

    def act(wait: Callable[[], Any]) -> None:
        with bench.model.hold(), tester.quarry_clock.attending():
            wait()

    waiting = [bench.runs(partial(act, wait)) for wait in waits]
    with bench.model.wire.time.lock:
        bench.model.wire.time.end()
    for one in waiting:
        with pytest.raises(can.CanOperationError, match="closed"):
            one.result(REAL_S)
    with pytest.raises(can.CanOperationError, match="closed"):
        tester.send(frame(1))


def test_who_keeps_the_time_from_moving_is_named(
    make: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(virtual_time, "STALL_S", 0.05)
    bench, release = make(), threading.Event()
    tester = bench.open()
    _, done = bench.part(lambda _: release.wait(REAL_S))
    with (
        pytest.raises(can.CanOperationError, match=r"not moved for 0.05 s: it waits for ThreadPool"),
        tester.quarry_clock.attending(),
    ):
        tester.recv(1.0)
    release.set()
    done.result(REAL_S)
    with tester.quarry_clock.attending():
        assert tester.recv(1.0) is None, "and goes on afterwards"


@pytest.mark.parametrize("seed", range(3))
def test_no_coming_and_going_gets_it_stuck(make: Callable[..., Bench], seed: int) -> None:
    """Threads that attend or not, send, hear, sleep, hold the time and shut down, in any order."""
    bench = make(bitrate=1_000_000)
    woken = bench.part(lambda endpoint: [endpoint.recv(0.5) for _ in range(10_000)])[0]

    def live(number: int) -> int:
        dice, done = random.Random(f"{seed}.{number}"), 0
        while done < 200:
            with bench.model.endpoint() as bus, ExitStack() as stack:
                if dice.random() < 0.8:
                    stack.enter_context(bus.quarry_clock.attending())
                for _ in range(dice.randrange(20)):
                    done += 1
                    match dice.randrange(6):
                        case 0 | 1:
                            with suppress(can.CanTimeoutError):
                                bus.send(frame(done, number), timeout=0.01)
                        case 2:
                            bus.recv(dice.choice([0, 0.0001, 0.01]))
                        case 3:
                            bus.quarry_clock.sleep(dice.choice([0.00001, 0.001]))
                        case 4:
                            with bench.model.hold():
                                bus.recv(0)
                        case _:
                            woken.wake()
        return done

    done = [bench.runs(partial(live, number)) for number in range(4)]
    assert all(one.result(REAL_S) >= 200 for one in done)
    woken.shutdown()


# --- faults of the wire -------------------------------------------------------------------------


def test_an_endpoint_is_frozen_after_its_nth_frame(make: Callable[..., Bench]) -> None:
    bench = make()
    victim, other = bench.open(), bench.open()
    bench.model.freeze_after(3, arbitration_id=0x7E0)
    with other.quarry_clock.attending():
        victim.send(frame(100, 0x123))
        for number in range(2 * MOST_OUTGOING):
            victim.send(frame(number))
        again = bench.open()
        again.send(frame(50))
        assert [of(other.recv(1.0)) for _ in range(5)] == [100, 0, 1, 2, 50]
        other.send(frame(7, 0x7E8))
        assert of(again.recv(1.0)) == 7
        assert victim.recv(1.0) is None, "it hears nothing"
        victim.send(frame(11))
        assert other.recv(1.0) is None


def test_a_cut_wire_carries_nothing_until_it_is_mended(make: Callable[..., Bench]) -> None:
    bench = make()
    sender, reader = bench.open(), bench.open()
    bench.model.cut_after(2)
    with sender.quarry_clock.attending():
        for number in range(5):
            sender.send(frame(number))
        assert [of(reader.recv(1.0)) for _ in range(2)] == [0, 1]
        assert reader.recv(1.0) is None
        assert bench.model.frames == 2
        bench.model.mend()
        sender.send(frame(9))
        assert of(reader.recv(1.0)) == 9


# --- names --------------------------------------------------------------------------------------


def test_buses_are_found_by_name_and_have_one_each() -> None:
    with ModelBus(name="bench-7") as model:
        with can.Bus("bench-7", interface="quarry-model", ignore_config=True, bitrate=500_000) as bus:
            assert isinstance(bus, ModelEndpoint)
        with pytest.raises(ConfigError, match="bench-7 already"), ModelBus(name="bench-7"):
            pass
        with pytest.raises(can.CanInitializationError, match="bitrate 5"):
            model.endpoint(bitrate=5)
    with pytest.raises(can.CanInitializationError, match="no model bus of the name bench-7"):
        ModelEndpoint("bench-7")
    with pytest.raises(ConfigError, match="data_bitrate 100000"):
        ModelBus(data_bitrate=100_000)
