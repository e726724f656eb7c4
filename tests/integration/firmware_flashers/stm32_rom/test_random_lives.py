"""A part's life as it comes: flashes that are cut, disturbed or finished, in any order, of any image."""

from __future__ import annotations

import asyncio
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from firmware_flashers.base import FlashError
from sim.mcu.faults import Faults, parse_faults
from sim.mcu.rom_loader import mark_of

SIZES = st.tuples(*[st.integers(min_value=300, max_value=6000).map(lambda size: size // 4 * 4)] * 3)
FAULTS = st.sampled_from(
    [
        "drop_frame",
        "lose_response_frame",
        "corrupt_response_frame",
        "repeat_frame",
        "reset_at_frame",
        "bus_off_at_frame",
        "power_cut_at_frame",
        "power_cut_at_response_frame",
        "power_cut_at_byte",
        "power_cut_at_erase",
        "bus",
        "nothing",
    ]
)
ATTEMPTS = st.lists(st.tuples(st.integers(0, 2), FAULTS, st.integers(1, 900)), min_size=1, max_size=6)


def image_of(images: Any, number: int, size: int, seed: bytes) -> Any:
    body = (seed * size)[: size - 0x104]
    # The application knows its length (vector 7): what an older image left behind it is none of its business.
    head = struct.pack("<II20xI", 0x2000_1800, 0x0800_0101, size).ljust(0x100, b"\xff")
    return images.signed(f"{number}.0.0", head + bytes([number + 1]) * 4 + body)


@pytest.mark.parametrize("kind", ["stm32-rom", "stm32-rom-fd"])
def test_any_life(open_benches: Callable[..., Any], images: Any, kind: str) -> None:
    @given(
        sizes=SIZES,
        seeds=st.tuples(*[st.binary(min_size=1, max_size=40)] * 3),
        attempts=ATTEMPTS,
    )
    @settings(max_examples=20, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
    def life(sizes: tuple[int, ...], seeds: tuple[bytes, ...], attempts: list[tuple[int, str, int]]) -> None:
        made = [image_of(images, number, *each) for number, each in enumerate(zip(sizes, seeds, strict=True))]
        with tempfile.TemporaryDirectory() as folder, open_benches(Path(folder)) as make:
            asyncio.run(live(make(kind, old=made[0]), made, attempts))

    life()


async def live(bench: Any, made: list[Any], attempts: list[tuple[int, str, int]]) -> None:
    whole = {None, *(mark_of(image.data) for image in made)}
    for which, fault, at in attempts:
        done = False
        if fault == "bus":
            bench.model.cut_after(at)
        elif fault != "nothing":
            bench.mcu.order(parse_faults([f"{fault}={at}"]))
        try:
            await bench.flash(made[which])
            done = True
        except FlashError:
            pass
        bench.model.mend()
        bench.mcu.order(Faults())
        # A loader in the middle of a command is found so by the next one, unless it was started.
        if at % 2 or bench.mcu.running is not None or fault.startswith("power"):
            mark = await asyncio.to_thread(bench.mcu.boot_application)
            await asyncio.to_thread(bench.mcu.enter_loader)
        else:
            mark = bench.mcu.boots()
        assert mark in whole
        if done:
            assert mark == mark_of(made[which].data)
    await bench.flash(made[-1])
    assert bench.runs(made[-1])
