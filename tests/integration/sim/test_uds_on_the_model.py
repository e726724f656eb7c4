"""UDS parts and their neighbour in virtual time: what they cost the wire, what they cost beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import can
import pytest

from sim.can_model import ModelBus
from sim.mcu.assembly import McuSettings
from sim.mcu.bystander import Bystander, BystanderSettings
from sim.mcu.faults import Faults
from sim.mcu.isotp import Receiver, Transport, send_message
from sim.mcu.profile import Downloads, EcuIdentity, Timing
from sim.mcu.security import key_of
from sim.mcu.server import Stm32Mcu

SECRET = bytes(range(32))
SLOT = 0x0801_0000


class ModelTester:
    """Asks in virtual time; a tester's ISO-TP is a server's with the roles changed."""

    def __init__(self, bus: Any, tx_id: int = 0x7E0, rx_id: int = 0x7E8, *, fd: bool = False) -> None:
        self._bus = bus
        self._tx_id = tx_id
        self._rx_id = rx_id
        self._fd = fd
        self._clock = bus.quarry_clock
        self._receiver = Receiver(self._send, clock=self._clock.now, transport=Transport())

    def _send(self, data: bytes) -> None:
        self._bus.send(
            can.Message(
                arbitration_id=self._tx_id,
                data=data,
                is_extended_id=self._tx_id > 0x7FF,
                is_fd=self._fd,
                bitrate_switch=self._fd,
            )
        )

    def _frame(self, within_s: float) -> bytes | None:
        until = self._clock.now() + within_s
        while (left_s := until - self._clock.now()) > 0:
            message = self._bus.recv(left_s)
            if message is not None and message.arbitration_id == self._rx_id:
                return bytes(message.data)
        return None

    def _flow_control(self) -> bytes | None:
        while (frame := self._frame(1.0)) is not None:
            if frame[0] >> 4 == 3:
                return frame
        return None

    def ask(self, request: bytes, *, within_s: float = 5.0) -> list[bytes]:
        """All answers up to the final one, or those until it was silent for so long."""
        with self._clock.attending():
            send_message(request, self._send, self._flow_control, self._clock.sleep, fd=self._fd)
            answers: list[bytes] = []
            while (frame := self._frame(within_s)) is not None:
                answer = self._receiver.feed(frame, functional=False)
                if answer is not None:
                    answers.append(answer)
                    if answer[:1] != b"\x7f" or answer[2] != 0x78:
                        break
            return answers

    def sleep(self, seconds: float) -> None:
        with self._clock.attending():
            self._clock.sleep(seconds)

    def enter(self) -> None:
        for request in (b"\x10\x03", b"\x10\x02"):
            assert self.ask(request)[-1][0] == 0x50
        seed = self.ask(b"\x27\x01")[-1][2:]
        assert self.ask(b"\x27\x02" + key_of(SECRET, seed)) == [b"\x67\x02"]
        assert self.ask(b"\x2e\xf1\x5aworkshop") == [b"\x6e\xf1\x5a"]
        assert self.ask(b"\x31\x01\xff\x00" + area(SLOT, 0x1_0000))[-1] == b"\x71\x01\xff\x00\x00"


def area(start: int, size: int) -> bytes:
    return b"\x44" + start.to_bytes(4, "big") + size.to_bytes(4, "big")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as all_of_it:
        yield all_of_it


MakeBench = Callable[..., tuple[ModelBus, Stm32Mcu, ModelTester]]


@pytest.fixture
def make_bench(stack: ExitStack, tmp_path: Path, keys: tuple[bytes, bytes]) -> MakeBench:
    def make(*, fd: bool = False, **words: Any) -> tuple[ModelBus, Stm32Mcu, ModelTester]:
        model = stack.enter_context(ModelBus(bitrate=500_000, data_bitrate=2_000_000 if fd else None))
        settings = McuSettings(
            flash_file=tmp_path / "flash.bin",
            identity=EcuIdentity(kind="k", hardware="h"),
            public_keys=(keys[1],),
            security_secret=SECRET,
            fd=fd,
            **words,
        )
        part = stack.enter_context(model.endpoint(fd=fd, driver=False))
        mcu = stack.enter_context(Stm32Mcu(settings, part))
        bus = stack.enter_context(model.endpoint(fd=fd))
        tester = ModelTester(bus, settings.request_id, settings.response_id, fd=fd)
        return model, mcu, tester

    return make


BLOCKS = 8


def download(tester: ModelTester, data: bytes) -> list[bytes]:
    """Everything that was answered to the blocks and the end."""
    room = int.from_bytes(tester.ask(b"\x34\x00" + area(SLOT, len(data)))[-1][2:], "big") - 2
    answers: list[bytes] = []
    for number, at in enumerate(range(0, len(data), room)):
        answers += tester.ask(bytes([0x36, number + 1]) + data[at : at + room])
    return answers + tester.ask(b"\x37")


@pytest.mark.parametrize("fd", [False, True], ids=["classic", "fd"])
def test_a_part_without_times_of_its_own_costs_the_wire_alone(make_bench: MakeBench, fd: bool) -> None:
    model, mcu, tester = make_bench(fd=fd)
    tester.enter()
    data = bytes(range(256)) * 128
    began, busy = model.now(), model.bus_s
    answers = download(tester, data)
    assert set(answers[:-1]) == {bytes([0x76, number + 1]) for number in range(len(answers) - 1)}
    assert answers[-1] == b"\x77"
    assert mcu.content(len(data)) == data
    assert model.now() - began == pytest.approx(model.bus_s - busy, abs=1e-6)


@pytest.mark.parametrize("pipelined", [False, True])
def test_programming_costs_its_time_unless_it_is_pipelined(make_bench: MakeBench, pipelined: bool) -> None:
    program_s = 0.04
    model, mcu, tester = make_bench(
        timing=Timing(program_s=program_s), downloads=Downloads(pipelined=pipelined)
    )
    tester.enter()
    data = (bytes(range(256)) * 128)[: BLOCKS * 4093]
    began, busy = model.now(), model.bus_s
    answers = download(tester, data)
    idle_s = (model.now() - began) - (model.bus_s - busy)
    assert mcu.content(len(data)) == data
    if pipelined:
        # The end waits for the last block; a block takes longer to arrive than to be programmed.
        assert idle_s == pytest.approx(program_s, abs=0.002)
        assert answers[-2:] == [b"\x7f\x37\x78", b"\x77"]
    else:
        assert idle_s == pytest.approx(BLOCKS * program_s, abs=0.003)
        assert answers.count(b"\x7f\x36\x78") == BLOCKS


def test_an_erase_takes_its_time_for_each_sector(make_bench: MakeBench) -> None:
    model, _, tester = make_bench(timing=Timing(erase_s=2.5))
    tester.enter()
    began = model.now()
    answers = tester.ask(b"\x31\x01\xff\x00" + area(SLOT, 0x7_0000))
    assert answers == [b"\x7f\x31\x78"] * 9 + [b"\x71\x01\xff\x00\x00"]
    assert model.now() - began == pytest.approx(10.0, abs=0.01)


def test_small_blocks_and_separation_times_are_asked_for(make_bench: MakeBench) -> None:
    model, _, tester = make_bench(
        transport=Transport(block_size=8, st_min=1, waits=1, wait_s=0.3),
        downloads=Downloads(block_bytes=130),
    )
    tester.enter()
    assert tester.ask(b"\x34\x00" + area(SLOT, 128)) == [b"\x74\x20\x00\x82"]
    began = model.now()
    assert tester.ask(b"\x36\x01" + bytes(128)) == [b"\x76\x01"]
    # 18 consecutive frames of 1 ms each, in three blocks that each wait first.
    assert model.now() - began == pytest.approx(3 * 0.3 + 18 * 0.001, abs=0.006)


def test_29_bit_ids_are_another_world(make_bench: MakeBench, stack: ExitStack) -> None:
    ids = {"request_id": 0x18DA10F1, "response_id": 0x18DAF110, "functional_id": 0x18DB33F1}
    model, _, tester = make_bench(**ids)
    assert tester.ask(b"\x22\xf1\x97") == [b"\x62\xf1\x97k"]
    bus = stack.enter_context(model.endpoint())
    assert ModelTester(bus, 0x18DB33F1, 0x18DAF110).ask(b"\x3e\x00") == [b"\x7e\x00"]
    assert ModelTester(bus).ask(b"\x3e\x00") == []


def test_a_classic_part_is_deaf_to_can_fd(make_bench: MakeBench, stack: ExitStack) -> None:
    model, _, tester = make_bench()
    fd_bus = stack.enter_context(model.endpoint(fd=True))
    assert ModelTester(fd_bus, fd=True).ask(b"\x3e\x00") == []
    assert tester.ask(b"\x3e\x00") == [b"\x7e\x00"]


def test_a_stuck_part_ends_with_its_power(make_bench: MakeBench) -> None:
    _, mcu, tester = make_bench()
    mcu.order(Faults(stuck_at_request=1))
    answers = first_answers(tester, b"\x3e\x00", 30)
    assert set(answers) == {b"\x7f\x3e\x78"}
    mcu.power_cycle()
    assert tester.ask(b"\x3e\x00") == [b"\x7e\x00"]


def first_answers(tester: ModelTester, request: bytes, answers: int) -> list[bytes]:
    """The first so many answers of one that never comes to an end."""
    found: list[bytes] = []
    with tester._clock.attending():
        tester._send(bytes([len(request)]) + request)
        while len(found) < answers:
            frame = tester._frame(5.0)
            assert frame is not None
            found.append(frame[1 : 1 + frame[0]])
    return found


# --- the neighbour ------------------------------------------------------------------------------


Node = tuple[ModelBus, Bystander, ModelTester]


@pytest.fixture
def node(stack: ExitStack) -> Node:
    model = stack.enter_context(ModelBus(bitrate=500_000, log_frames=2000))
    part = stack.enter_context(model.endpoint(driver=False))
    bystander = stack.enter_context(Bystander(part, BystanderSettings(period_s=0.1)))
    bus = stack.enter_context(model.endpoint())
    return model, bystander, ModelTester(bus, 0x7E1, 0x7E9)


def periodic(model: ModelBus, since: float) -> int:
    return sum(1 for at, can_id, _ in model.log if can_id == 0x1A0 and at > since)


def words(bystander: Bystander) -> list[str]:
    return [event.word for event in bystander.events]


def test_a_neighbour_is_silenced_and_comes_back_as_it_is_told(node: Node) -> None:
    model, bystander, tester = node
    tester.sleep(1.05)
    assert bystander.sent == 11
    assert tester.ask(b"\x28\x01\x01") == [b"\x7f\x28\x7f"], "not in the default session"
    assert tester.ask(b"\x10\x03") == [b"\x50\x03\x00\x32\x01\xf4"]
    assert tester.ask(b"\x85\x02") == [b"\xc5\x02"]
    assert tester.ask(b"\x28\x01\x01") == [b"\x68\x01"]
    assert (bystander.is_silenced, bystander.are_dtcs_off) == (True, True)
    since = model.now()
    for _ in range(6):
        tester.sleep(2.0)
        assert tester.ask(b"\x3e\x80", within_s=0.05) == []
    assert periodic(model, since) == 0
    assert bystander.is_silenced
    for request in (b"\x28\x00\x01", b"\x85\x01", b"\x10\x01"):
        assert tester.ask(request)[-1][0] == request[0] + 0x40
    since = model.now()
    tester.sleep(1.0)
    assert periodic(model, since) == 10
    assert words(bystander) == ["extended", "dtcs_off", "silenced", "audible", "dtcs_on", "default"]


def test_a_neighbour_comes_back_by_itself_when_its_tester_is_gone(node: Node) -> None:
    model, bystander, tester = node
    for request in (b"\x10\x03", b"\x85\x02", b"\x28\x01\x01"):
        tester.ask(request)
    since = model.now()
    tester.sleep(6.0)
    assert words(bystander)[-3:] == ["default", "audible", "dtcs_on"]
    assert bystander.events[-1].at - since == pytest.approx(5.0, abs=0.15)
    assert not bystander.is_silenced
    assert not bystander.are_dtcs_off


def test_a_neighbour_that_restarts_is_audible(node: Node) -> None:
    _, bystander, tester = node
    tester.ask(b"\x10\x03")
    tester.ask(b"\x28\x01\x01")
    bystander.power_cycle()
    assert not bystander.is_silenced
    assert tester.ask(b"\x28\x01\x01") == [b"\x7f\x28\x7f"]


def test_a_neighbour_knows_no_programming(node: Node) -> None:
    _, bystander, tester = node
    tester.ask(b"\x10\x03")
    asked = {b"\x10\x02": 0x12, b"\x27\x01": 0x11, b"\x22\xf1\x97": 0x11, b"\x11\x01": 0x11}
    assert [tester.ask(one)[-1][2] for one in asked] == list(asked.values())
    bystander.order(Faults(lose_response=1))
    assert tester.ask(b"\x3e\x00", within_s=0.5) == []
    assert tester.ask(b"\x3e\x00") == [b"\x7e\x00"]
