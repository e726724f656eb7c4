"""ISO-TP's times to the microsecond, on the model bus: STmin, N_Bs, N_Cr, and a full wire."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

import can
import pytest

from firmware_flashers.can_link import Link, LinkSettings
from firmware_flashers.isotp import IsoTpAddress, IsoTpTransport, NotSent
from sim.can_bits import classic_bits
from sim.can_model import ModelBus

BITRATE = 250_000
N_BS_S, N_CR_S = 0.5, 0.3
FF20 = bytes.fromhex("101462FD00010203")
REST = (bytes.fromhex("2104050607080910"), bytes.fromhex("2211121314151617"))


Acts = Sequence[Any]
"""Pauses in seconds, and frames."""


class Bench:
    """A tester on the wire, and an ECU that answers each frame by what `react` gives: seconds, frames."""

    def __init__(self, folder: Any, stack: ExitStack, bitrate: int | None) -> None:
        self.model = stack.enter_context(
            ModelBus(bitrate=BITRATE, name=f"times-{folder.name}", log_frames=2000)
        )
        settings = LinkSettings(
            interface="quarry-model", channel=self.model.name, bitrate=bitrate, lock_folder=folder
        )
        link = stack.enter_context(Link(settings))
        self.can_link = link.connect([0x7E8])
        stack.callback(self.can_link.close)
        self.clock = self.can_link.clock
        self.transport = IsoTpTransport(
            self.can_link,
            IsoTpAddress(tx_id=0x7E0, rx_id=0x7E8),
            interrupt=threading.Event(),
            padding=0xCC,
            flow_control_s=N_BS_S,
            consecutive_s=N_CR_S,
        )
        self.react: Callable[[bytes], Acts] = lambda _: ()
        self._part = self.model.endpoint(driver=False)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="timed-ecu")
        self._thread.start()
        stack.callback(self._end)
        stack.enter_context(self.clock.attending())

    def _end(self) -> None:
        self._stop.set()
        self._part.wake()
        self._thread.join(10)
        self._part.shutdown()

    def _run(self) -> None:
        clock = self._part.quarry_clock
        with clock.attending():
            while not self._stop.is_set():
                message = self._part.recv(10)
                for act in self.react(bytes(message.data)) if message else ():
                    if self._stop.is_set():
                        break
                    if isinstance(act, float):
                        clock.sleep(act)
                    else:
                        self._part.send(can.Message(arbitration_id=0x7E8, is_extended_id=False, data=act))

    def sent(self, kind: int) -> list[tuple[float, bytes]]:
        """The tester's frames of a kind: when their last bit had gone."""
        return [(at, data) for at, one, data in self.model.log if one == 0x7E0 and data[0] >> 4 == kind]


def duration(data: bytes) -> float:
    return classic_bits(0x7E0, False, data) / BITRATE


@pytest.fixture(params=[BITRATE, None], ids=["known rate", "guessed rate"])
def bench(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(tmp_path, stack, request.param)


@pytest.mark.parametrize(
    ("raw", "seconds"), [(1, 0.001), (0xF1, 0.0001), (0xF9, 0.0009), (127, 0.127), (0x80, 0.127)]
)
def test_the_separation_time_lies_between_one_frames_end_and_the_next_ones_beginning(
    bench: Bench, raw: int, seconds: float
) -> None:
    bench.react = lambda data: [bytes([0x30, 0, raw])] if data[0] >> 4 == 1 else []
    bench.transport.send(bytes(6 + 7 * 5), timeout_s=10)
    bench.clock.sleep(1)
    frames = bench.sent(2)
    assert len(frames) == 5
    for (ended, _), (next_ended, data) in pairwise(frames):
        gap = next_ended - duration(data) - ended
        assert seconds <= gap <= seconds + 160 / BITRATE


def test_a_slow_ecu_and_a_long_message_take_their_time_and_no_more(bench: Bench) -> None:
    bench.react = lambda data: [b"\x30\x00\x7f"] if data[0] >> 4 == 1 else []
    begun = bench.clock.now()
    bench.transport.send(bytes(4095), timeout_s=100)
    assert 0.127 * 584 <= bench.clock.now() - begun <= 0.128 * 585
    with pytest.raises(NotSent, match="127 ms between frames"):
        bench.transport.send(bytes(4095), timeout_s=10)


def test_without_separation_time_the_wire_is_never_idle(bench: Bench) -> None:
    bench.react = lambda data: [b"\x30\x00\x00"] if data[0] >> 4 == 1 else []
    begun, used = bench.clock.now(), bench.model.bus_s
    bench.transport.send(bytes(range(256)) * 15, timeout_s=10)
    bench.clock.sleep(0.05)
    last, _ = bench.sent(2)[-1]
    assert (bench.model.bus_s - used) / (last - begun) > 0.9999


def test_n_bs_begins_when_the_frame_has_gone(bench: Bench) -> None:
    # The latest moment at which a flow control is still in time: it has to be heard before N_Bs is over.
    frame_s = 135 / BITRATE
    bench.react = lambda data: [N_BS_S - 2 * frame_s, b"\x30\x00\x00"] if data[0] >> 4 == 1 else []
    bench.transport.send(bytes(30), timeout_s=10)
    bench.react = lambda data: [N_BS_S + frame_s, b"\x30\x00\x00"] if data[0] >> 4 == 1 else []
    begun = bench.clock.now()
    with pytest.raises(NotSent):
        bench.transport.send(bytes(30), timeout_s=10)
    assert N_BS_S <= bench.clock.now() - begun <= N_BS_S + 3 * frame_s


def test_each_wait_begins_n_bs_anew(bench: Bench) -> None:
    later = 0.9 * N_BS_S
    bench.react = lambda data: (
        [later, b"\x31\x00\x00"] * 4 + [later, b"\x30\x00\x00"] if data[0] >> 4 == 1 else []
    )
    begun = bench.clock.now()
    bench.transport.send(bytes(30), timeout_s=10)
    assert bench.clock.now() - begun > 4.5 * N_BS_S * 0.9


def test_behind_a_block_n_bs_begins_when_the_block_has_gone(bench: Bench) -> None:
    flows = iter([True])
    # 30 frames wait in the driver: on this wire for 16 ms.
    bench.react = lambda data: [b"\x30\x1e\x00"] if data[0] >> 4 == 1 and next(flows, False) else []
    begun = bench.clock.now()
    with pytest.raises(NotSent, match="behind a block"):
        bench.transport.send(bytes(4000), timeout_s=10)
    ended, _ = bench.sent(2)[-1]
    assert bench.clock.now() - ended >= N_BS_S
    assert bench.clock.now() - begun <= N_BS_S + 40 * 135 / BITRATE


@pytest.mark.parametrize(("pause", "arrives"), [(0.9 * N_CR_S, True), (1.1 * N_CR_S, False)])
def test_n_cr(bench: Bench, pause: float, arrives: bool) -> None:
    answers: dict[int, Acts] = {3: [FF20], 0x30: [REST[0], pause, REST[1]]}
    bench.react = lambda data: answers.get(data[0], ())
    bench.transport.send(b"\x22\xfd\x00", timeout_s=1)
    answer = bench.transport.receive(5)
    assert (answer is not None) == arrives


def test_an_answer_that_has_begun_in_time_may_end_later(bench: Bench) -> None:
    answers: dict[int, Acts] = {3: [0.05, FF20], 0x30: [0.2, REST[0], 0.2, REST[1]]}
    bench.react = lambda data: answers.get(data[0], ())
    bench.transport.send(b"\x22\xfd\x00", timeout_s=1)
    answer = bench.transport.receive(0.1)
    assert answer is not None
    assert len(answer) == 20


def test_an_answer_that_never_ends_is_given_up(bench: Bench) -> None:
    frames = [bytes([0x20 | n % 16]) + bytes(7) for n in range(1, 600)]
    paced: Acts = [part for one in frames for part in (0.25, one)]
    bench.react = lambda data: {3: [b"\x1f\xff" + bytes(6)], 0x30: paced}.get(data[0], [])
    bench.transport.send(b"\x22\xfd\x00", timeout_s=1)
    begun = bench.clock.now()
    # At this pace the message would take 146 s.
    assert bench.transport.receive(1) is None
    assert 13 < bench.clock.now() - begun < 14


def test_silence_costs_exactly_the_time_out(bench: Bench) -> None:
    bench.transport.send(b"\x10\x03", timeout_s=1)
    begun = bench.clock.now()
    assert bench.transport.receive(2.5) is None
    assert bench.clock.now() - begun == pytest.approx(2.5)
