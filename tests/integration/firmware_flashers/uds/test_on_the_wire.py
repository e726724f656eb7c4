"""What a flash costs on the wire: what is left out, what is compressed, what overlaps, what idles."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from firmware_flashers.can_link import open_link
from firmware_flashers.registry import EcuSettings, flasher_on
from firmware_flashers.uds_memory import MemoryMap as MapOfFlasher
from sim.mcu.faults import Faults
from sim.mcu.memory import Area, MemoryMap
from sim.mcu.profile import Downloads, Timing

KIB = 1024
MIB_SECTORS = (*(16 * KIB,) * 4, 64 * KIB, *(128 * KIB,) * 9)
"""A part with a slot of more than 1 MiB."""
SLOT_END = 0x0800_0000 + sum(MIB_SECTORS)
FRAME_BYTES = 7


@pytest.fixture
def big(lab: Any) -> Any:
    """An ECU with room for 1 MiB, which runs an image of that size."""

    def make(**how: Any) -> Any:
        first = lab.ecu()  # makes images; its part is not used
        old = first.image("1.0.0", 1024 * KIB)
        ecu = lab.ecu(
            old=old,
            memory=MemoryMap(sectors=MIB_SECTORS, slot=Area(start=0x0801_0000, end=SLOT_END)),
            **how,
        )
        memory = ecu.profile.memory
        slot = replace(memory.slot, end=SLOT_END)
        ecu.profile = replace(
            ecu.profile,
            memory=MapOfFlasher(sectors=MIB_SECTORS, slot=slot, document=memory.document),
        )
        return ecu

    return make


async def test_one_changed_sector_of_a_mebibyte_costs_about_that_sector(big: Any) -> None:
    ecu = big()
    body = bytearray(ecu.old.data)
    body[500 * KIB : 500 * KIB + 4] = b"new!"
    new = ecu.sign(bytes(body), "1.0.1")
    before = ecu.model.frames
    async with ecu.flasher() as flasher:
        await flasher.stage(new)
        await flasher.activate()
        await flasher.verify(new)
    frames = ecu.model.frames - before
    sector = 128 * KIB
    # All frames of the whole flash, identification, checksums and document with them.
    assert frames * FRAME_BYTES <= 1.05 * sector
    assert ecu.runs() == new.spec


async def test_a_mebibyte_with_an_empty_half_costs_half(big: Any) -> None:
    ecu = big()
    body = bytearray(ecu.image("2.0.0", 1024 * KIB).data)
    body[256 * KIB : 768 * KIB] = b"\xff" * (512 * KIB)
    new = ecu.sign(bytes(body), "2.0.0")
    before = ecu.model.frames
    await ecu.flash(new)
    assert (ecu.model.frames - before) * FRAME_BYTES < 0.52 * len(body)
    assert ecu.runs() == new.spec


@pytest.mark.parametrize("has_it", [True, False])
async def test_what_compresses_goes_compressed_where_the_ecu_can(lab: Any, has_it: bool) -> None:
    ecu = lab.ecu(downloads=Downloads(deflate=has_it))
    text = b"".join(b"%d: a line that says what another says\n" % n for n in range(2000))
    new = ecu.sign(ecu.new.data + text, "1.2.0")
    before = ecu.model.frames
    await ecu.flash(new, compression="deflate")
    assert ecu.runs() == new.spec
    cost = (ecu.model.frames - before) * FRAME_BYTES
    assert cost < len(new.data) / 2 if has_it else cost > len(new.data)


@pytest.mark.parametrize(
    ("bitrate", "data_bitrate"), [(500_000, None), (500_000, 2_000_000), (500_000, 5_000_000)]
)
async def test_the_wire_is_never_idle_for_long(lab: Any, bitrate: int, data_bitrate: int | None) -> None:
    fd = data_bitrate is not None
    ecu = lab.ecu(model=lab.bus(bitrate=bitrate, data_bitrate=data_bitrate), fd=fd)
    image = ecu.image("2.0.0", 200 * KIB)
    async with ecu.flasher() as flasher:
        begun = (ecu.model.now(), ecu.model.bus_s)
        await flasher.stage(image)
        taken, busy = ecu.model.now() - begun[0], ecu.model.bus_s - begun[1]
    # What is idle is the part's reset into its bootloader (20 ms) and the turnarounds.
    assert busy >= 0.95 * (taken - 0.05)


def settings_of(ecu: Any) -> EcuSettings:
    return EcuSettings(
        component=f"ecu-{ecu.ids['tx_id']:x}",
        flasher=ecu.word,
        interface="quarry-model",
        channel=ecu.model.name,
        kind="brake-controller",
        hardware="B2",
        security_secret_file=ecu.secret_file,
        profile=ecu.profile,
        **ecu.ids,
    )


async def flash_together(*ecus: Any) -> None:
    """All on one bus and one link, each by a flasher of its own."""
    async with open_link(interface="quarry-model", channel=ecus[0].model.name) as link:

        async def one(ecu: Any) -> None:
            async with flasher_on(link, settings_of(ecu)) as flasher:
                await flasher.stage(ecu.new)
                await flasher.activate()
                await flasher.verify(ecu.new)

        await asyncio.gather(*(one(ecu) for ecu in ecus))


async def test_the_erase_of_one_ecu_overlaps_the_transfer_to_another(lab: Any) -> None:
    model = lab.bus(bitrate=500_000)
    image = lab.ecu().image("2.0.0", 60 * KIB)
    slow = {"timing": Timing(erase_s=2.0), "new": image, "model": model}
    ecus = [lab.ecu(number=number, **slow) for number in range(2)]
    alone = []
    for number in range(2, 4):
        ecu = lab.ecu(number=number, **slow)
        begun = model.now()
        await flash_together(ecu)
        alone.append(model.now() - begun)
    begun = model.now()
    await flash_together(*ecus)
    together = model.now() - begun
    assert all(ecu.runs() == image.spec for ecu in ecus)
    # Each erases for 4 s and sends for 2 s: erases pass at once, and only the wire is shared.
    assert together < 0.75 * sum(alone)


async def test_flashes_on_one_bus_survive_each_others_faults(lab: Any) -> None:
    model = lab.bus(bitrate=500_000)
    good, bad = (lab.ecu(number=number, model=model) for number in range(2))
    bad.mcu.order(Faults(drop_frame=100, lose_response=14))
    await flash_together(good, bad)
    assert good.runs() == good.new.spec
    assert bad.runs() == bad.new.spec


async def test_buses_run_side_by_side(lab: Any) -> None:
    """Each in its own time: none waits for another's wire."""
    image = lab.ecu().image("2.0.0", 30 * KIB)
    ecus = [lab.ecu(word, new=None if word == "esp32-uds" else image) for word in ("stm32-uds", "esp32-uds")]
    ecus += [lab.ecu(new=image, fd=True)]
    await asyncio.gather(*(ecu.flash() for ecu in ecus))
    assert all(ecu.runs() == ecu.new.spec for ecu in ecus)


async def test_a_part_that_programs_while_it_receives(lab: Any) -> None:
    ecu = lab.ecu(timing=Timing(program_s=0.05), downloads=Downloads(pipelined=True))
    image = ecu.image("2.0.0", 60 * KIB)
    await ecu.flash(image)
    assert ecu.runs() == image.spec


@pytest.mark.parametrize("block_bytes", [6, 130, 1026])
async def test_small_blocks_are_negotiated(lab: Any, block_bytes: int) -> None:
    ecu = lab.ecu(downloads=Downloads(block_bytes=block_bytes))
    await ecu.flash()
    assert ecu.runs() == ecu.new.spec


@pytest.mark.parametrize("word", ["stm32-uds", "esp32-uds"])
async def test_tools_of_the_bench(lab: Any, word: str) -> None:
    ecu = lab.ecu(word)
    start = 0x0801_0000 if word == "stm32-uds" else 0x11_0000
    size = 64 * KIB if word == "stm32-uds" else 4 * KIB
    async with ecu.flasher() as flasher:
        if word == "stm32-uds":
            assert await flasher.read(start, len(ecu.old.data)) == ecu.old.data
        assert await flasher.read(start + 20_000, 10_000) == b"\xff" * 10_000
        await ecu.settle()
        assert ecu.runs() == ecu.old.spec  # reading leaves it as it was
        await flasher.stage(ecu.new)
        assert await flasher.read(start, len(ecu.new.data)) == ecu.new.data
        await flasher.erase(start, size)
        assert await flasher.read(start, size) == b"\xff" * size
        await flasher.reset()
        assert (await flasher.identify()).in_bootloader == (word == "stm32-uds")
        await flasher.stage(ecu.new)
        await flasher.activate()
        await flasher.verify(ecu.new)


@pytest.mark.parametrize(
    ("start", "size", "code"),
    [
        (0x0800_0000, 32 * KIB, "never_erased"),
        (0x0800_4000, 32 * KIB, "never_erased"),
        (0x0801_0001, 64 * KIB, "not_whole_sectors"),
        (0x0801_0000, 64 * KIB - 4, "not_whole_sectors"),
        (0x0801_0000, 0, "not_whole_sectors"),
        (0x2000_0000, 1024, "not_whole_sectors"),
    ],
)
async def test_what_is_never_erased(lab: Any, fails: Any, start: int, size: int, code: str) -> None:
    ecu = lab.ecu()
    async with ecu.flasher() as flasher:
        error = await fails(flasher.erase(start, size))
    assert error is not None
    assert error.code == code
    assert ecu.model.frames == 0
