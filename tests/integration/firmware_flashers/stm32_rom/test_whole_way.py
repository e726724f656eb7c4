"""Stage, activate and verify against simulated parts: every bus, every habit of parts, every family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from firmware_flashers.base import Identity, MemoryRange

ERASES = {0x43, 0x44}
WRITE, READ = 0x31, 0x11
COMMANDS = {0x43, 0x44, 0x31, 0x11, 0x21}


def headers(bench: Any) -> list[tuple[int, bytes]]:
    """What the tester has ordered: identifier and data of the first frames of commands, in their order."""
    return [
        (can_id, data) for _, can_id, data in bench.model.log if can_id in COMMANDS and len(data) in {2, 4, 5}
    ]


@pytest.mark.parametrize("on", ["model", "virtual", "quarry-hub"])
async def test_the_whole_way(make_bench: Callable[..., Any], images: Any, protocol: str, on: str) -> None:
    bench = make_bench(protocol, on=on, old=images.small("1.0.0"))
    new = images.small("1.1.0")
    async with bench.flasher() as flasher:
        before = await flasher.identify()
        assert before == Identity(
            kind="brake-controller", hardware="rev-b", version=None, sha256=None, in_bootloader=True
        )
        await flasher.stage(new)
        assert (await flasher.identify()).sha256 == new.spec.sha256
        await flasher.activate()
        after = await flasher.verify(new)
    assert after == Identity(
        kind="brake-controller",
        hardware="rev-b",
        version="1.1.0",
        sha256=new.spec.sha256,
        in_bootloader=False,
    )
    assert bench.runs(new)


@pytest.mark.parametrize(
    ("part", "profile"),
    [
        ({"get_n_one_less": True}, {}),
        ({"read_single_bytes": True}, {}),
        ({"extra_write_acks": 1}, {}),
        ({"extra_write_acks": 7}, {}),
        ({"synced_again": "ack"}, {}),
        ({"dialect": "zycet"}, {"dialect": "zycet"}),
        ({"dialect": "count"}, {"dialect": "count"}),
        ({"erase_s": 0.8, "program_s": 0.001}, {}),
        ({}, {"blank_check": "full"}),
        ({}, {"skip_unchanged": False}),
    ],
    ids=str,
)
async def test_habits_of_an3154_parts(
    make_bench: Callable[..., Any], images: Any, part: dict[str, Any], profile: dict[str, Any]
) -> None:
    bench = make_bench(old=images.small("1.0.0"), part=part, **profile)
    new = images.dense("1.1.0", 5000)
    assert (await bench.flash(new)).sha256 == new.spec.sha256
    assert bench.runs(new)


@pytest.mark.parametrize("part", [{"counts_frames": True}, {"erase_counts_from_zero": True}], ids=str)
async def test_habits_of_an5405_parts(
    make_bench: Callable[..., Any], images: Any, part: dict[str, Any]
) -> None:
    bench = make_bench("stm32-rom-fd", old=images.small("1.0.0"), part=part)
    new = images.dense("1.1.0", 5000)
    assert (await bench.flash(new)).sha256 == new.spec.sha256
    assert bench.runs(new)


@pytest.mark.parametrize(
    ("protocol", "family"),
    [
        ("stm32-rom", "stm32f40x"),  # words of 4
        ("stm32-rom", "stm32f76x"),
        ("stm32-rom", "stm32l43x"),  # words of 8
        ("stm32-rom-fd", "stm32g0b1"),
        ("stm32-rom-fd", "stm32h563"),  # words of 16
        ("stm32-rom-fd", "stm32h743"),  # words of 32
    ],
)
async def test_families(make_bench: Callable[..., Any], images: Any, protocol: str, family: str) -> None:
    """A length that is no whole number of flash words; sectors of 2 to 128 KiB."""
    bench = make_bench(protocol, family=family)
    new = images.dense("2.0.0", 6004)
    assert (await bench.flash(new)).sha256 == new.spec.sha256
    assert bench.runs(new)


async def test_a_torn_image_has_no_vector_table(
    make_bench: Callable[..., Any], images: Any, protocol: str
) -> None:
    """On the wire: the first erase is the vector table's sector, its first words are written last, and
    everything has been read back before.
    """
    bench = make_bench(protocol, old=images.small("1.0.0"))
    async with bench.flasher() as flasher:
        await flasher.stage(images.small("1.1.0"))
    orders = headers(bench)
    frames = [(can_id, data) for _, can_id, data in bench.model.log]
    first_erase = next(at for at, (can_id, _) in enumerate(frames) if can_id in ERASES)
    codes = frames[first_erase + 1 : first_erase + 5]
    expected = b"\x00\x00" * 32 if protocol == "stm32-rom-fd" else b"\x00"
    assert expected in [data for _, data in codes]
    writes = [at for at, (can_id, _) in enumerate(orders) if can_id == WRITE]
    assert orders[writes[-1]][1] == bytes.fromhex("0800000007")
    assert all(orders[at][1][:4] != bytes.fromhex("08000000") for at in writes[:-1])
    read_back = {data[:4] for can_id, data in orders[writes[-2] : writes[-1]] if can_id == READ}
    assert {bytes.fromhex("08000000"), bytes.fromhex("08000100"), bytes.fromhex("08000800")} <= read_back


async def test_erased_bytes_are_not_written(
    make_bench: Callable[..., Any], images: Any, protocol: str
) -> None:
    bench = make_bench(protocol)
    async with bench.flasher() as flasher:
        await flasher.stage(images.small("1.1.0"))
    writes = [data for can_id, data in headers(bench) if can_id == WRITE]
    # 64 bytes in each page, then the vectors.
    assert [data.hex() for data in writes] == ["080001003f", "080008003f", "0800000007"]


async def test_an_image_that_stands_there_is_not_written_again(
    make_bench: Callable[..., Any], images: Any, protocol: str
) -> None:
    image = images.small("1.0.0")
    bench = make_bench(protocol, old=image)
    assert (await bench.flash(image)).version == "1.0.0"
    assert not [can_id for can_id, _ in headers(bench) if can_id in {WRITE, *ERASES}]
    assert bench.runs(image)


def erased_pages(bench: Any) -> list[int]:
    """The sectors whose codes went over the wire, in order."""
    frames = [(can_id, data) for _, can_id, data in bench.model.log if data not in {b"\x79", b"\x1f"}]
    if bench.protocol == "stm32-rom-fd":
        return [data[1] for can_id, data in frames if can_id == 0x44 and len(data) == 64]
    return [data[0] for can_id, data in frames if can_id == 0x43][1::2]


async def test_one_changed_sector_costs_two(
    make_bench: Callable[..., Any], images: Any, protocol: str
) -> None:
    old = images.dense("1.0.0", 5 * 2048)
    changed = bytearray(old.data)
    changed[3 * 2048 + 500] ^= 1
    new = images.signed("1.0.1", bytes(changed))
    bench = make_bench(protocol, old=old)
    await bench.flash(new)
    assert bench.runs(new)
    assert erased_pages(bench) == [0, 3]


async def test_after_an_interrupted_attempt_everything_is_erased(
    make_bench: Callable[..., Any], images: Any, protocol: str
) -> None:
    """The vector table is missing: an attempt was cut, and no sector counts however it reads."""
    image = images.dense("1.0.0", 3 * 2048)
    bench = make_bench(protocol, old=images.signed("cut", b"\xff" * 8 + image.data[8:]))
    await bench.flash(image)
    assert erased_pages(bench) == [0, 1, 2]
    assert bench.runs(image)


async def test_a_slot_behind_something_else(
    make_bench: Callable[..., Any], images: Any, protocol: str
) -> None:
    """Sectors outside the slot are never touched."""
    slot = MemoryRange(start=0x0800_2000, end=0x0800_6000)
    bench = make_bench(protocol, slot=slot, old=images.small("1.0.0", start=slot.start))
    new = images.small("1.1.0", start=slot.start)
    await bench.flash(new)
    assert bench.runs(new)
    assert set(erased_pages(bench)) == {4, 5}


async def test_the_wire_is_never_idle(make_bench: Callable[..., Any], images: Any, protocol: str) -> None:
    """At zero turnaround the frames of a dense image stand back to back."""
    bench = make_bench(protocol)
    async with bench.flasher() as flasher:
        await flasher.identify()
        from_s, busy_s = bench.model.now(), bench.model.bus_s
        await flasher.stage(images.dense("1.0.0", 16 * 1024))
    took_s = bench.model.now() - from_s
    assert (bench.model.bus_s - busy_s) / took_s > 0.95
