"""The tester vanishes, the part's power goes, or the bus dies behind frame n: for every n of a small flash.

No `finally` and no cancellation helps a tester whose frames go nowhere. After each cut the part runs the
image before, the new one, or none, never a torn one; nothing was reported done before it was; and the next
run always ends with the right image running.

Images go to and fro, so that one part serves a whole walk. All frames of a flash in CAN FD are walked
always; those of classic CAN by a long test, and a sample of them always.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from firmware_flashers.base import FlashError
from sim.mcu.faults import Faults

KINDS = ["tester", "power", "answer", "bus"]
WORDS = ["stm32-uds", "esp32-uds"]
SAMPLES = 12
TRAILING = 2
"""What is said last may be lost without harm: the session's end, which nobody waits for."""


def order(ecu: Any, kind: str, n: int) -> None:
    match kind:
        case "tester":
            ecu.model.freeze_after(n, arbitration_id=ecu.ids["tx_id"])
        case "power":
            ecu.mcu.order(Faults(power_cut_at_frame=n))
        case "answer":
            ecu.mcu.order(Faults(power_cut_at_response_frame=n))
        case "bus":
            ecu.model.cut_after(n)


async def mend(ecu: Any, kind: str) -> None:
    """The next run finds a whole bus and a part with power; a tester that died leaves the part as it is."""
    ecu.model.freeze_after(10**9, arbitration_id=ecu.ids["tx_id"])
    ecu.model.mend()
    ecu.mcu.order(Faults())
    if kind in {"power", "answer"}:
        await asyncio.to_thread(ecu.mcu.power_cycle)


async def kill_and_recover(ecu: Any, kind: str, n: int) -> bool:
    """One cut and the run after it, with the images changing places. False: it was done before the cut."""
    await ecu.settle()
    order(ecu, kind, n)
    finished = True
    try:
        await ecu.flash(ecu.new, hasty=True)
    except FlashError as error:
        finished = False
        if not error.touched:
            assert ecu.mcu.wait_dark(0) or ecu.runs() in {ecu.old.spec, None}
    if finished:
        assert ecu.runs() == ecu.new.spec  # what is reported done is done
    await mend(ecu, kind)
    assert ecu.runs() in {ecu.old.spec, ecu.new.spec, None}
    await ecu.flash(ecu.new)
    assert ecu.runs() == ecu.new.spec
    await asyncio.to_thread(ecu.mcu.power_cycle)
    assert ecu.runs() == ecu.new.spec  # for good
    ecu.old, ecu.new = ecu.new, ecu.old
    return not finished


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("kind", KINDS)
async def test_a_cut_at_frames_of_a_sample(lab: Any, word: str, kind: str) -> None:
    ecu = lab.ecu(word)
    last = await frames_of_a_flash(ecu, kind)
    for n in sorted({1 + round(part * (last - 1) / (SAMPLES - 1)) for part in range(SAMPLES)}):
        assert await kill_and_recover(ecu, kind, n) or n == last


@pytest.mark.parametrize(
    "fd", [pytest.param(False, marks=pytest.mark.long, id="classic"), pytest.param(True, id="fd")]
)
@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("kind", KINDS)
async def test_a_cut_at_every_frame(lab: Any, word: str, fd: bool, kind: str) -> None:
    ecu = lab.ecu(word, fd=fd)
    last = await frames_of_a_flash(ecu, kind)
    assert last > 30
    n = 1
    while await kill_and_recover(ecu, kind, n):
        n += 1
        assert n < 2 * last
    assert n >= last - TRAILING


async def frames_of_a_flash(ecu: Any, kind: str) -> int:
    """How many frames of that kind one flash has; there and back, so that the part is as before."""
    for image in (ecu.new, ecu.old):
        before = ecu.model.frames
        log_from = len(ecu.model.log)
        await ecu.flash(image)
        await ecu.settle()
    frames = ecu.model.log[log_from:]
    match kind:
        case "bus":
            return int(ecu.model.frames - before)
        case "answer":
            return sum(one[1] == ecu.ids["rx_id"] for one in frames)
        case _:
            return sum(one[1] == ecu.ids["tx_id"] for one in frames)
