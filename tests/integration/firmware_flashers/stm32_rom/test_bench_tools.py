"""What an engineer does at the bench: memory, sectors, protection, bit rates; the hook into the loader."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from firmware_flashers.base import FlashError, MemoryRange, NotProved
from firmware_flashers.rom_enter import EnterFailed
from firmware_flashers.rom_session import ReadoutProtected
from firmware_flashers.rom_words import BusNotIsolated

START = 0x0800_0000


async def test_read(make_bench: Callable[..., Any], images: Any, protocol: str) -> None:
    image = images.dense("1.0.0", 3000)
    bench = make_bench(protocol, old=image)
    seen: list[int] = []
    async with bench.flasher() as flasher:
        content = await flasher.read(START + 5, 1000, progress=lambda now: seen.append(now.done_bytes))
        assert await flasher.read(START, 0) == b""
        with pytest.raises(FlashError) as caught:
            await flasher.read(0x6000_0000, 16)
    assert content == image.data[5:1005]
    assert seen == [0, 256, 512, 768, 1000]
    assert (caught.value.code, caught.value.touched) == ("bad_address", False)


async def test_erase(make_bench: Callable[..., Any], images: Any, protocol: str) -> None:
    image = images.dense("1.0.0", 4 * 2048)
    bench = make_bench(protocol, old=image)
    async with bench.flasher() as flasher:
        await flasher.erase(START + 2048, 4096)
        for start, length in ((START + 1, 2048), (START, 1000), (START, 0), (START - 2048, 4096)):
            with pytest.raises(FlashError) as caught:
                await flasher.erase(start, length)
            assert (caught.value.code, caught.value.touched) == ("bad_address", False)
    assert bench.mcu.content(START, 8192) == image.data[:2048] + b"\xff" * 4096 + image.data[6144:]


async def test_what_is_never_erased(make_bench: Callable[..., Any], images: Any, protocol: str) -> None:
    slot = MemoryRange(start=START + 4096, end=START + 8192)
    kept = MemoryRange(start=START, end=START + 2048)
    bench = make_bench(protocol, slot=slot, old=images.small("1.0.0", start=slot.start), never_erased=(kept,))
    async with bench.flasher() as flasher:
        with pytest.raises(FlashError) as caught:
            await flasher.erase(START, 4096)
        assert kept in flasher.capabilities.never_erased
    assert (caught.value.code, caught.value.touched) == ("never_erased", False)


async def test_an_erase_that_does_nothing(make_bench: Callable[..., Any], images: Any, protocol: str) -> None:
    bench = make_bench(protocol, old=images.dense("1.0.0", 4096), prepare=lambda mcu: mcu.protect([1]))
    async with bench.flasher() as flasher:
        with pytest.raises(FlashError) as caught:
            await flasher.erase(START + 2048, 2048)
    assert caught.value.code == "not_erased"


@pytest.mark.parametrize("third", [False, True])
async def test_mass_erase_needs_two_words(
    make_bench: Callable[..., Any], images: Any, protocol: str, third: bool
) -> None:
    image = images.dense("1.0.0", 4096)
    bench = make_bench(protocol, old=image, part={"third_mass_erase_ack": third, "mass_erase_s": 1.0})
    for profile, argument in ((False, True), (True, False)):
        async with bench.flasher(mass_erase=profile) as flasher:
            with pytest.raises(FlashError) as caught:
                await flasher.mass_erase(allow_mass_erase=argument)
            assert (caught.value.code, caught.value.touched) == ("mass_erase_not_allowed", False)
    assert bench.holds(image)
    async with bench.flasher(mass_erase=True) as flasher:
        await flasher.mass_erase(allow_mass_erase=True)
        await flasher.stage(image)
    assert bench.holds(image)


async def test_write_protection(make_bench: Callable[..., Any], images: Any, protocol: str) -> None:
    old, new = images.dense("1.0.0", 4096), images.dense("1.1.0", 4096)
    bench = make_bench(protocol, old=old)
    async with bench.flasher() as flasher:
        await flasher.write_protect([1, 9, 2, 3, 4, 5, 6, 7, 8])
        with pytest.raises(FlashError) as caught:
            await flasher.stage(new)
        assert caught.value.code == "not_erased"
        await flasher.write_unprotect()
        await flasher.stage(new)
        with pytest.raises(FlashError):
            await flasher.write_protect([10_000])
    assert bench.holds(new)


async def test_readout_protection_and_back(
    make_bench: Callable[..., Any], images: Any, protocol: str
) -> None:
    old, new = images.dense("1.0.0", 4096), images.dense("1.1.0", 4096)
    bench = make_bench(protocol, old=old)
    async with bench.flasher(mass_erase=True) as flasher:
        await flasher.readout_protect()
        for step in (flasher.read(START, 8), flasher.stage(new), flasher.erase(START, 2048)):
            with pytest.raises(ReadoutProtected):
                await step
        assert bench.holds(old)
        with pytest.raises(FlashError) as caught:
            await flasher.readout_unprotect()
        assert caught.value.code == "mass_erase_not_allowed"
        await flasher.readout_unprotect(allow_mass_erase=True)
        assert await flasher.read(START, 4096) == b"\xff" * 4096
        await flasher.stage(new)
    assert bench.holds(new)


async def test_a_higher_bit_rate(make_bench: Callable[..., Any], images: Any) -> None:
    """8 times the rate, an eighth of the time; a part that fell back, or was left there, is found again."""
    image = images.dense("1.0.0", 8192)
    took = []
    for speed in (None, 1_000_000):
        bench = make_bench(speed=speed)
        async with bench.flasher() as flasher:
            await flasher.identify()
            from_s = bench.model.now()
            await flasher.stage(image)
            took.append(bench.model.now() - from_s)
        assert bench.holds(image)
    assert took[1] < took[0] / 7
    # Left at 1 Mbit/s by the flasher above, which nobody ended properly.
    async with bench.flasher(speed=1_000_000) as flasher:
        await flasher.stage(image)
        # Reset meanwhile: back at 125 kbit/s.
        await asyncio.to_thread(bench.mcu.enter_loader)
        assert await flasher.read(START, 8192) == image.data
        await flasher.activate()
        assert (await flasher.verify(image)).version == "1.0.0"


async def test_a_change_of_the_bit_rate_that_fails(make_bench: Callable[..., Any], images: Any) -> None:
    """The part resets instead and is back at its first rate."""
    bench = make_bench(speed=500_000, part={"speed_fails": True})
    with pytest.raises(FlashError) as caught:
        await bench.flash(images.small("1.0.0"))
    assert not caught.value.touched
    assert await bench.flash(images.small("1.0.0"), speed=None)


async def test_a_cancelled_step(make_bench: Callable[..., Any], images: Any, protocol: str) -> None:
    """It stops at once, in the middle of a write, and the next one finds the loader there."""
    image = images.dense("1.0.0", 16 * 1024)
    bench = make_bench(protocol, on="virtual", old=images.dense("0.9.0", 4096))
    async with bench.flasher() as flasher:
        writing = asyncio.Event()

        def on_progress(now: Any) -> None:
            if now.step == "writing":
                writing.set()

        step = asyncio.create_task(flasher.stage(image, progress=on_progress))
        await writing.wait()
        step.cancel()
        with pytest.raises(asyncio.CancelledError):
            await step
        assert bench.mcu.boots() is None
        await flasher.stage(image)
        await flasher.activate()
        await flasher.verify(image)
    assert bench.runs(image)


# -- the hook that brings a part into its loader

HOOK = """
import pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
(folder / "asked").touch()
while not (folder / "done").exists():
    time.sleep(0.01)
(folder / "done").unlink()
"""


@contextmanager
def pins(bench: Any, folder: Path) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """What the hook's command moves: it asks by a file, the part is reset into its loader."""
    ended, calls = threading.Event(), []

    def serve() -> None:
        while not ended.wait(0.01):
            if (folder / "asked").exists():
                (folder / "asked").unlink()
                bench.mcu.enter_loader()
                bench.mcu.boot0 = False
                calls.append("entered")
                (folder / "done").touch()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield (sys.executable, "-c", HOOK, str(folder)), calls
    finally:
        ended.set()
        thread.join()


async def test_the_hook(make_bench: Callable[..., Any], images: Any, protocol: str, tmp_path: Path) -> None:
    old, new = images.small("1.0.0"), images.small("1.1.0")
    part = {"boot0": False, "application_s": 0.02}
    bench = make_bench(protocol, on="virtual", old=old, part=part)
    with pins(bench, tmp_path) as (enter, calls):
        async with bench.flasher(enter=enter) as flasher:
            # Asked while it runs, it runs again afterwards.
            assert (await flasher.identify()).in_bootloader is False
            assert bench.runs(old)
            assert (await flasher.verify(old)).in_bootloader is False
            assert bench.runs(old)
            with pytest.raises(NotProved):
                await flasher.verify(new)
            assert bench.runs(old)
            await flasher.stage(new)
            await flasher.activate()
            assert (await flasher.verify(new)).version == "1.1.0"
    assert bench.runs(new)
    # Once for identify, verify and stage; where it was started by us, its proof decides.
    assert len(calls) == 3


@pytest.mark.parametrize(
    "enter", [("/nowhere/at/all",), (sys.executable, "-c", "raise SystemExit(3)")], ids=["missing", "fails"]
)
async def test_a_hook_that_does_not_work(
    make_bench: Callable[..., Any], images: Any, enter: tuple[str, ...]
) -> None:
    bench = make_bench(on="virtual", old=images.small("1.0.0"), part={"boot0": False, "application_s": 0.02})
    async with bench.flasher(enter=enter) as flasher:
        with pytest.raises(EnterFailed) as caught:
            await flasher.stage(images.small("1.1.0"))
    assert not caught.value.touched


async def test_a_hook_that_changes_nothing(make_bench: Callable[..., Any], images: Any) -> None:
    bench = make_bench(on="virtual", old=images.small("1.0.0"), part={"boot0": False, "application_s": 0.02})
    async with bench.flasher(enter=(sys.executable, "-c", "")) as flasher:
        with pytest.raises(BusNotIsolated):
            await flasher.stage(images.small("1.1.0"))
