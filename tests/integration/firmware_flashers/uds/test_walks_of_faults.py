"""Random walks of faults over a big image: one after the other, each in the middle of somewhere.

Whatever happened before, what is reported done is done, nothing torn ever runs, and a run without a
fault ends with the right image. Wrong answers of any kind end in a named error within bounded time.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sim.mcu.faults import Faults
from sim.mcu.profile import Downloads, Timing

KIB = 1024
MOST_FRAMES, MOST_REQUESTS, MOST_BYTES = 6000, 60, 40 * KIB
MOST_SECONDS = 300.0
"""Of the wire, for one run with one fault: far below what an agent waits."""

FRAMES = [
    *("drop_frame", "corrupt_frame", "delay_frame", "repeat_frame", "lose_response_frame"),
    *("corrupt_response_frame", "delay_response_frame", "repeat_response_frame", "bus_off_at_frame"),
    *("reset_at_frame", "power_cut_at_frame", "power_cut_at_response_frame"),
]
REQUESTS = [
    "lose_response",
    "stuck_at_request",
    "refuse_at_request",
    "wrong_counter_at_block",
    "reset_at_block",
]

# Close to the beginning, where most kinds of requests are, and anywhere.
NUMBERS = st.one_of(st.integers(1, 80), st.integers(1, MOST_FRAMES))
ONE = st.one_of(
    st.tuples(st.sampled_from(FRAMES), NUMBERS),
    st.tuples(st.sampled_from(REQUESTS), st.integers(1, MOST_REQUESTS)),
    st.tuples(st.just("power_cut_at_byte"), st.integers(1, MOST_BYTES)),
    st.tuples(st.just("power_cut_at_erase"), st.integers(1, 12)),
    st.tuples(st.sampled_from(["tester", "bus"]), NUMBERS),
)
STEPS = st.lists(st.tuples(ONE, st.integers(0, 255), st.booleans()), min_size=1, max_size=4)


def order(ecu: Any, fault: tuple[str, int], nrc: int) -> None:
    kind, n = fault
    match kind:
        case "tester":
            ecu.model.freeze_after(n, arbitration_id=ecu.ids["tx_id"])
        case "bus":
            ecu.model.cut_after(n)
        case _:
            # Busy, pending and the states of the vehicle have tests of their own.
            how: dict[str, Any] = {kind: n, "refuse_with": nrc if nrc not in {0x00, 0x21, 0x78} else 0x10}
            ecu.mcu.order(Faults(delay_s=0.7, **how))


async def walk(lab: Any, fails: Any, word: str, fd: bool, steps: Any, **how: Any) -> None:
    lab_ecu = lab.ecu(word)
    new = lab_ecu.image("2.0.0", 36 * KIB)
    ecu = lab.ecu(
        word,
        fd=fd,
        old=lab_ecu.old,
        new=new,
        downloads=Downloads(deflate=True, pipelined=how.get("compression") == "deflate"),
        # Wrong keys lock for a while; that is no fault of this walk.
        timing=Timing(security_delay_s=0.5),
    )
    for fault, nrc, hasty in steps:
        await ecu.settle()
        order(ecu, fault, nrc)
        begun = ecu.model.now()
        error = await fails(ecu.flash(hasty=hasty, **how))
        if error is None:
            assert ecu.runs() == new.spec
            ecu.new, ecu.old = ecu.old, ecu.new
            new = ecu.new
        else:
            assert error.code != "internal", error.message
            assert error.advice
        assert ecu.model.now() - begun < MOST_SECONDS
        ecu.model.freeze_after(10**9, arbitration_id=ecu.ids["tx_id"])
        ecu.model.mend()
        ecu.mcu.order(Faults())
        if ecu.mcu.wait_dark(0) or fault[0] == "stuck_at_request":
            await asyncio.to_thread(ecu.mcu.power_cycle)
        await ecu.settle(1.0)
        assert ecu.runs() in {ecu.old.spec, ecu.new.spec, None}
    await ecu.flash(**how)
    assert ecu.runs() == new.spec


def run_walks(new_lab: Any, fails: Any, word: str, fd: bool, examples: int) -> None:
    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
    @given(steps=STEPS, compression=st.sampled_from(["none", "deflate"]))
    def walks(steps: Any, compression: str) -> None:
        with tempfile.TemporaryDirectory() as folder, new_lab(Path(folder)) as lab:
            asyncio.run(walk(lab, fails, word, fd, steps, compression=compression))

    walks()


@pytest.mark.parametrize("fd", [False, True], ids=["classic", "fd"])
@pytest.mark.parametrize("word", ["stm32-uds", "esp32-uds"])
def test_a_few_walks(new_lab: Any, fails: Any, word: str, fd: bool) -> None:
    run_walks(new_lab, fails, word, fd, 5)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("fd", [False, True], ids=["classic", "fd"])
@pytest.mark.parametrize("word", ["stm32-uds", "esp32-uds"])
def test_many_walks(new_lab: Any, fails: Any, word: str, fd: bool) -> None:
    run_walks(new_lab, fails, word, fd, 100)
