"""One of them goes at any frame: what boots is the old image or the new one whole, or the loader waits.

In virtual time, so that all frames of a small flash can be walked. The next run always ends with the right
image, and nothing reports done before it runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from firmware_flashers.base import FlashError, MemoryRange
from sim.mcu.faults import Faults, parse_faults
from sim.mcu.rom_loader import mark_of

STRIDE = {"stm32-rom": 13, "stm32-rom-fd": 3}
"""AN3154 has 620 frames of 8 bytes where AN5405 has 150 of 64; with --long each of them."""
long = pytest.mark.long


def walk(stride: int) -> Iterator[int]:
    """Frame numbers from 1; whoever walks stops when a flash had fewer."""
    return iter(range(1, 5000, stride))


class Life:
    """One part through cut and completion, from the old image on."""

    def __init__(self, make_bench: Callable[..., Any], images: Any, protocol: str, **more: Any) -> None:
        slot = more.get("slot")
        start = {} if slot is None else {"start": slot.start}
        self.old, self.new = images.small("1.0.0", **start), images.small("1.1.0", **start)
        self.bench = make_bench(protocol, old=self.old, **more)
        self.done = False
        self.frames = 0

    async def cut(self, cut: Callable[[], None]) -> None:
        """Flash, with something ordered to go wrong once the loader is met."""
        async with self.bench.flasher() as flasher:
            await flasher.identify()
            before = self.bench.frames()
            cut()
            try:
                await flasher.stage(self.new)
                await flasher.activate()
                await flasher.verify(self.new)
            except FlashError:
                pass
            else:
                self.done = True
            self.frames = self.bench.frames() - before
        self.bench.mcu.order(Faults())

    def check(self, mark: bytes | None) -> None:
        """`mark` is of what boots."""
        assert mark in {None, mark_of(self.old.data), mark_of(self.new.data)}
        if self.done:
            assert mark == mark_of(self.new.data)

    async def finish(self) -> None:
        await self.bench.flash(self.new)
        assert self.bench.runs(self.new)


async def no_tester(life: Life, frame: int) -> None:
    """Its frames go nowhere from there on; a new one finds the loader in the middle of a command."""
    bench = life.bench
    await life.cut(lambda: bench.model.cut_after(frame))
    life.check(bench.mcu.boots())
    bench.model.mend()
    if bench.mcu.running is not None:
        await asyncio.to_thread(bench.mcu.enter_loader)


async def bus_dead(life: Life, frame: int) -> None:
    """Then the part loses its power as well."""
    bench = life.bench
    await life.cut(lambda: bench.model.cut_after(frame))
    bench.model.mend()
    life.check(await asyncio.to_thread(bench.mcu.boot_application))
    await asyncio.to_thread(bench.mcu.enter_loader)


async def power_cut(life: Life, frame: int) -> None:
    """The part goes dark behind a frame that it got."""
    bench = life.bench
    await life.cut(lambda: bench.mcu.order(Faults(power_cut_at_frame=frame)))
    life.check(await asyncio.to_thread(bench.mcu.boot_application))
    await asyncio.to_thread(bench.mcu.enter_loader)


async def power_cut_behind_an_answer(life: Life, frame: int) -> None:
    bench = life.bench
    await life.cut(lambda: bench.mcu.order(Faults(power_cut_at_response_frame=frame)))
    life.check(await asyncio.to_thread(bench.mcu.boot_application))
    await asyncio.to_thread(bench.mcu.enter_loader)


CUTS = [no_tester, bus_dead, power_cut, power_cut_behind_an_answer]


async def walk_all(make_bench: Callable[..., Any], images: Any, protocol: str, cut: Any, stride: int) -> None:
    states = set()
    for frame in walk(stride):
        life = Life(make_bench, images, protocol)
        await cut(life, frame)
        states.add(life.bench.mcu.boots())
        await life.finish()
        if frame > life.frames:
            break
    # The walk went through all of it: old, nothing that boots, new.
    assert states == {None, mark_of(life.old.data), mark_of(life.new.data)}


@pytest.mark.parametrize("cut", CUTS)
async def test_cut_at_a_frame(make_bench: Callable[..., Any], images: Any, protocol: str, cut: Any) -> None:
    await walk_all(make_bench, images, protocol, cut, STRIDE[protocol])


@long
@pytest.mark.parametrize("cut", CUTS)
async def test_cut_at_every_frame(
    make_bench: Callable[..., Any], images: Any, protocol: str, cut: Any
) -> None:
    await walk_all(make_bench, images, protocol, cut, 1)


@pytest.mark.parametrize(
    "faults",
    [Faults(power_cut_at_erase=n) for n in (1, 2)] + [Faults(power_cut_at_byte=n) for n in range(1, 137, 9)],
)
async def test_the_power_goes_inside_the_flash(
    make_bench: Callable[..., Any], images: Any, protocol: str, faults: Faults
) -> None:
    """64 bytes a page, then the 8 of the vectors."""
    life = Life(make_bench, images, protocol)
    await life.cut(lambda: life.bench.mcu.order(faults))
    assert not life.done
    assert await asyncio.to_thread(life.bench.mcu.boot_application) is None
    await asyncio.to_thread(life.bench.mcu.enter_loader)
    await life.finish()


async def test_what_lies_before_the_slot_stays(
    make_bench: Callable[..., Any], images: Any, protocol: str
) -> None:
    """A tester that dies between the two frames of an Erase leaves one that takes the next for a code."""
    slot = MemoryRange(start=0x0800_2000, end=0x0800_4000)
    mine = bytes(range(256)) * 32
    for frame in walk(STRIDE[protocol] + 4):
        life = Life(make_bench, images, protocol, slot=slot)
        life.bench.mcu.flash.write(0x0800_0000, mine)
        await no_tester(life, frame)
        await life.finish()
        assert life.bench.mcu.content(0x0800_0000, len(mine)) == mine
        if frame > life.frames:
            break


FAULTS = (
    "drop_frame",
    "lose_response_frame",
    "corrupt_frame",
    "corrupt_response_frame",
    "repeat_frame",
    "repeat_response_frame",
    "delay_frame",
    "delay_response_frame",
    "bus_off_at_frame",
    "reset_at_frame",
)


async def walk_faults(
    make_bench: Callable[..., Any], images: Any, protocol: str, fault: str, stride: int
) -> None:
    for frame in walk(stride):
        life = Life(make_bench, images, protocol)
        mcu = life.bench.mcu
        await life.cut(partial(mcu.order, parse_faults([f"{fault}={frame}"])))
        # One bad frame is repaired on the way.
        assert life.done
        life.check(mcu.running)
        if frame > life.frames:
            break


@pytest.mark.parametrize("fault", FAULTS)
async def test_one_bad_frame(make_bench: Callable[..., Any], images: Any, protocol: str, fault: str) -> None:
    await walk_faults(make_bench, images, protocol, fault, 4 * STRIDE[protocol] + 1)


@long
@pytest.mark.parametrize("fault", FAULTS)
async def test_any_bad_frame(make_bench: Callable[..., Any], images: Any, protocol: str, fault: str) -> None:
    await walk_faults(make_bench, images, protocol, fault, 1)
