"""The simulated MCU on a bus, asked by an independent ISO-TP stack: programming, faults, power."""

from __future__ import annotations

import hashlib
from typing import Any

import can
import pytest

from sim.mcu.boot import Verdict
from sim.mcu.faults import Faults
from sim.mcu.flash import FlashFileError
from sim.mcu.profile import Timing
from sim.mcu.server import Stm32Mcu

SLOT = 0x0801_0000
RUNS = b"\x62\xfd\x01\x00"
WAITS = b"\x62\xfd\x01\x01"


@pytest.mark.parametrize("interface", ["quarry-hub", "virtual"])
def test_an_independent_tester_programs_it(make_bench: Any, sign: Any, interface: str) -> None:
    old, new = sign("1.0.0", 8192), sign("1.1.0", 60_000)
    bench = make_bench(holds=old, interface=interface)
    assert bench.tester.ask(b"\x22\xfd\x00") == b"\x62\xfd\x00" + hashlib.sha256(old.image).digest()
    assert bench.mcu.programmed_bytes == 0
    bench.tester.program(new)
    assert bench.mcu.programmed_bytes == 60_000
    assert bench.mcu.content(60_000) == new.image
    assert bench.mcu.boots().spec == new.spec
    bench.mcu.power_cycle()
    assert bench.tester.ask(b"\x22\xf1\x89") == b"\x62\xf1\x89" + b"1.1.0"
    assert bench.tester.ask(b"\x22\xfd\x01") == RUNS


def test_a_lost_answer_is_met_by_a_repeated_block(make_bench: Any, sign: Any) -> None:
    bench = make_bench(holds=sign("1.0.0", 8192))
    bench.tester.enter()
    bench.tester.erase()
    open_, first, second, *_, end = bench.tester.requests(SLOT, bytes(range(256)) * 24)
    assert bench.tester.ask(open_)[0] == 0x74
    bench.mcu.order(Faults(lose_response=1))
    assert bench.tester.ask(first, within_s=0.3) == b""
    assert bench.tester.ask(first) == b"\x76\x01"
    assert bench.tester.ask(second) == b"\x76\x02"
    assert bench.tester.ask(end) == b"\x77"
    assert bench.mcu.content(6144) == bytes(range(256)) * 24


@pytest.mark.parametrize(
    "order", [Faults(drop_frame=3), Faults(lose_response_frame=1)], ids=["request", "flow"]
)
def test_a_lost_frame_costs_one_message(make_bench: Any, sign: Any, order: Faults) -> None:
    bench = make_bench(holds=sign("1.0.0", 8192))
    bench.tester.enter()
    bench.tester.erase()
    open_, first, *_ = bench.tester.requests(SLOT, bytes(4096))
    bench.tester.ask(open_)
    bench.mcu.order(order)
    assert bench.tester.ask(first, within_s=1.5) == b""
    assert bench.tester.ask(first) == b"\x76\x01"


def test_power_cut_at_a_frame_and_what_the_file_keeps(make_bench: Any, sign: Any) -> None:
    new = sign("1.1.0", 20_000)
    bench = make_bench(holds=sign("1.0.0", 8192))
    bench.tester.enter()
    bench.tester.erase()
    requests = bench.tester.requests(SLOT, new.image)
    for request in requests[:3]:
        bench.tester.ask(request)
    bench.mcu.order(Faults(power_cut_at_frame=300))
    assert bench.tester.ask(requests[3], within_s=1.0) == b""
    assert bench.mcu.wait_dark(10)
    assert bench.tester.ask(b"\x3e\x00", within_s=0.2) == b"", "without power nobody answers"
    assert bench.mcu.content(8188) == new.image[:8184] + b"\xff" * 4, "what filled no word was in RAM"
    assert bench.mcu.boots().verdict is Verdict.NO_DOCUMENT
    bench.mcu.power_cycle()
    assert bench.tester.ask(b"\x22\xfd\x01") == WAITS
    assert bench.tester.ask(b"\x22\xf1\x89") == b"\x7f\x22\x31"
    bench.tester.program(new)
    assert bench.tester.ask(b"\x22\xfd\x01") == RUNS


def test_power_cut_in_the_middle_of_a_long_erase(make_bench: Any, sign: Any) -> None:
    bench = make_bench(holds=sign("1.0.0", 8192), timing=Timing(erase_s=30.0, pending_every_s=60.0))
    bench.tester.enter()
    erase = b"\x31\x01\xff\x00\x44" + (0x0800_8000).to_bytes(4, "big") + (0x4000).to_bytes(4, "big")
    assert bench.tester.ask(erase, waits=False) == b"\x7f\x31\x78"
    bench.mcu.power_cut()
    assert bench.mcu.boots().verdict is not Verdict.BOOTABLE
    bench.mcu.power_cycle()
    assert bench.tester.ask(b"\x22\xfd\x01") == WAITS


def test_one_flash_has_one_mcu(make_bench: Any, sign: Any) -> None:
    bench = make_bench(holds=sign("1.0.0", 8192))
    with pytest.raises(FlashFileError, match="another MCU"):
        Stm32Mcu(bench.settings, bench.open_bus()).__enter__()


def test_a_bus_that_goes_ends_the_mcu_and_is_told(make_bench: Any, sign: Any) -> None:
    bench = make_bench(holds=sign("1.0.0", 8192))
    bench.tester.close()
    assert not bench.mcu.wait_ended(0)
    bench.hang_up()
    assert bench.mcu.wait_ended(10)


def test_requests_meanwhile_are_answered_afterwards(make_bench: Any, sign: Any) -> None:
    """TesterPresent to all, while a long answer waits for flow control, must not lose it."""
    bench = make_bench(holds=sign("1.0.0", 8192))
    bench.tester.close()
    bus = bench.open_bus()

    def send(can_id: int, data: str) -> None:
        raw = bytes.fromhex(data).ljust(8, b"\xcc")
        bus.send(can.Message(arbitration_id=can_id, data=raw, is_extended_id=False))

    def receive() -> str:
        got = bus.recv(10)
        assert got is not None
        return bytes(got.data).hex()

    send(0x7E0, "0322fd00")
    assert receive().startswith("102362fd00")
    send(0x7DF, "023e00")
    send(0x7E0, "300000")
    assert [receive()[:2] for _ in range(5)] == ["21", "22", "23", "24", "25"]
    assert receive() == "027e00aaaaaaaaaa"
