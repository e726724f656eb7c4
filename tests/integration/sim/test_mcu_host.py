"""Any device on any bus: power, resets and the faults of single frames, the same for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import can
import pytest

from firmware_flashers.clock import MONOTONIC, Clock
from sim.can_bus import hub_in_thread
from sim.can_model import ModelBus
from sim.mcu.faults import Faults, FaultState
from sim.mcu.flash import Flash
from sim.mcu.host import Host
from sim.mcu.memory import FlashMap
from sim.mcu.server import Mcu

REQUEST, RESPONSE = 0x100, 0x108
RESET_WORD, SLEEP_WORD = 0xEE, 0xDD
MAP = FlashMap(sectors=(1024,) * 4, word_bytes=8)


class Echo:
    """Answers each frame with its data and how many it has heard since it booted; keeps them in its flash."""

    def __init__(self, flash: Flash, _: FaultState) -> None:
        self._flash = flash
        self.heard = 0

    def accepts(self, message: can.Message) -> bool:
        return message.arbitration_id == REQUEST

    def run(self, host: Host, booted: Callable[[], None]) -> None:
        booted()
        while True:
            got = host.receive(0.1)
            if got is None:
                continue
            self.heard += 1
            if got.data[0] == RESET_WORD:
                return
            if got.data[0] == SLEEP_WORD:
                host.wait(3600.0)
            host.send(RESPONSE, bytes(got.data) + bytes([self.heard]))


class Bench:
    def __init__(self, bus: can.BusABC, mcu: Mcu[Echo], clock: Clock) -> None:
        self.bus, self.mcu, self.clock = bus, mcu, clock

    def say(self, first: int) -> None:
        self.bus.send(can.Message(arbitration_id=REQUEST, data=[first, 0x11], is_extended_id=False))

    def answers(self, within_s: float = 0.15) -> list[str]:
        """What comes until the part is silent for a while."""
        return [bytes(got.data).hex() for got in iter(lambda: self.bus.recv(within_s), None)]

    def ask(self, first: int) -> list[str]:
        self.say(first)
        return self.answers()


Make = Callable[..., Bench]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """A part and a tester whose thread is the test's."""
    with ExitStack() as stack:

        def made(interface: str = "quarry-model", faults: Faults | None = None) -> Bench:
            channel = str(tmp_path / "can.sock")
            part_options: dict[str, Any] = {}
            if interface == "quarry-model":
                stack.enter_context(ModelBus(name=channel))
                part_options = {"driver": False}
            elif interface == "quarry-hub":
                stack.enter_context(hub_in_thread(channel))
            part = stack.enter_context(
                can.Bus(channel, interface=interface, ignore_config=True, **part_options)
            )
            tester = stack.enter_context(can.Bus(channel, interface=interface, ignore_config=True))
            mcu = stack.enter_context(Mcu(Echo, part, flash_file=tmp_path / "f", memory=MAP, faults=faults))
            clock: Clock = getattr(tester, "quarry_clock", MONOTONIC)
            stack.enter_context(clock.attending())
            return Bench(tester, mcu, clock)

        yield made


EVERY = ["quarry-model", "quarry-hub", "virtual"]


@pytest.mark.parametrize(
    ("faults", "answers"),
    [
        (Faults(), ["011101", "021102", "031103"]),
        (Faults(drop_frame=2), ["011101", "031102"]),
        (Faults(lose_response_frame=2), ["011101", "031103"]),
        (Faults(corrupt_frame=2), ["011101", "023102", "031103"]),
        (Faults(corrupt_response_frame=2), ["011101", "023102", "031103"]),
        (Faults(repeat_frame=2), ["011101", "021102", "021103", "031104"]),
        (Faults(repeat_response_frame=2), ["011101", "021102", "021102", "031103"]),
        (Faults(reset_at_frame=2), ["011101", "031101"]),
        (Faults(bus_off_at_frame=2, bus_off_s=0.01), ["011101", "031102"]),
        (Faults(power_cut_at_frame=2), ["011101"]),
        (Faults(power_cut_at_response_frame=2), ["011101", "021102"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_faults_of_single_frames(make: Make, faults: Faults, answers: list[str]) -> None:
    bench = make(faults=faults)
    assert [answer for first in (1, 2, 3) for answer in bench.ask(first)] == answers
    goes_dark = bool(faults.power_cut_at_frame or faults.power_cut_at_response_frame)
    assert bench.mcu.wait_dark(0) == goes_dark
    if goes_dark:
        bench.mcu.power_cycle()
    bench.mcu.order(Faults())
    assert bench.ask(4)[0][:4] == "0411", "nothing is left of the order"


@pytest.mark.parametrize(
    "faults",
    [Faults(delay_frame=2, delay_s=0.3), Faults(delay_response_frame=2, delay_s=0.3)],
    ids=["in", "out"],
)
def test_a_late_frame_is_late_by_so_much(make: Make, faults: Faults) -> None:
    bench = make(faults=faults)
    took: list[float] = []
    for first in (1, 2, 3):
        began = bench.clock.now()
        bench.say(first)
        assert bench.bus.recv(1.0) is not None
        took.append(bench.clock.now() - began)
    assert took[1] - took[0] == pytest.approx(0.3, abs=1e-4)
    assert took[2] == pytest.approx(took[0], abs=1e-4)


@pytest.mark.parametrize("interface", EVERY)
def test_power_comes_and_goes_whatever_the_firmware_does(make: Make, interface: str) -> None:
    """On the model bus the test's thread attends, so that time stands still while it switches."""
    bench = make(interface)
    assert bench.ask(1) == ["011101"]
    for word in (5, SLEEP_WORD):
        bench.ask(word)
        bench.mcu.power_cycle()
        bench.mcu.power_cut()
        bench.mcu.power_cut()
        assert bench.mcu.wait_dark(0)
        bench.mcu.power_cycle()
        assert bench.ask(2) == ["021101"]
    bench.mcu.power_cut()
    assert bench.ask(6) == [], "without power nobody answers"
    bench.mcu.power_cycle()
    assert bench.ask(7) == ["071101"], "what came in the dark is gone"


def test_a_part_that_returns_is_reset(make: Make) -> None:
    bench = make()
    assert bench.ask(1) + bench.ask(2) == ["011101", "021102"]
    before = bench.mcu.device
    assert bench.ask(RESET_WORD) == []
    assert bench.mcu.device is not before
    assert bench.ask(3) == ["031101"]


def test_frames_wait_while_the_firmware_is_busy(make: Make) -> None:
    bench = make()
    bench.say(SLEEP_WORD)
    for first in range(20):
        bench.say(first)
    assert bench.answers(3599.0) == [], "an hour of virtual time is over soon"
    assert len(bench.answers(2.0)) == 21
