"""What is refused, by which name, and what was touched until then."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from firmware_flashers.base import BadImage, FlashError, NoAnswer, NotProved, WrongEcu
from firmware_flashers.rom_session import ReadoutProtected
from firmware_flashers.rom_words import BusNotIsolated
from sim.mcu.faults import Faults

APPLICATION = 0x123


async def fails(bench: Any, image: Any, kind: type[FlashError], code: str) -> FlashError:
    with pytest.raises(kind) as caught:
        await bench.flash(image)
    assert type(caught.value) is kind
    assert caught.value.code == code
    return caught.value


async def test_nothing_is_sent_while_anybody_else_is_heard(
    make_bench: Callable[..., Any], images: Any, protocol: str
) -> None:
    """The part itself runs its application, which talks."""
    bench = make_bench(protocol, old=images.small("1.0.0"), part={"boot0": False, "application_s": 0.03})
    error = await fails(bench, images.small("1.1.0"), BusNotIsolated, "bus_not_isolated")
    assert not error.touched
    assert {can_id for _, can_id, _ in bench.model.log} == {APPLICATION}


async def test_a_silent_bus(make_bench: Callable[..., Any], images: Any, protocol: str) -> None:
    bench = make_bench(protocol)
    bench.mcu.power_cut()
    error = await fails(bench, images.small("1.1.0"), NoAnswer, "no_answer")
    assert "BOOT0" in error.advice
    assert not error.touched


async def test_another_family_answers(make_bench: Callable[..., Any], images: Any) -> None:
    bench = make_bench(family="stm32f40x", old=images.small("1.0.0"))
    bench.family = "stm32f42x"
    error = await fails(bench, images.small("1.1.0"), WrongEcu, "wrong_ecu")
    assert "stm32f40x" in error.message
    assert not error.touched


async def test_families_of_one_product_id(make_bench: Callable[..., Any], images: Any) -> None:
    """Two layouts of one part can't be told apart by the loader: the profile decides."""
    bench = make_bench(family="stm32f76x-dual")
    assert (await bench.flash(images.small("1.1.0"))).version == "1.1.0"


async def test_images_that_cant_start_are_found_before_a_frame(
    make_bench: Callable[..., Any], images: Any, protocol: str
) -> None:
    bench = make_bench(protocol)
    good = images.small("1.0.0")
    for data in (b"\xff" * 1024, good.data[:4] + b"\x00\x01\x00\x08" + good.data[8:], good.data[:8]):
        assert not (await fails(bench, images.signed("bad", data), BadImage, "bad_image")).touched
    assert not (
        await fails(bench, images.signed("1.0.0", good.data, hardware="rev-c"), WrongEcu, "wrong_ecu")
    ).touched
    assert bench.frames() == 0


async def test_readout_protection(make_bench: Callable[..., Any], images: Any, protocol: str) -> None:
    bench = make_bench(protocol, old=images.small("1.0.0"), prepare=lambda mcu: mcu.protect([], readout=True))
    error = await fails(bench, images.small("1.1.0"), ReadoutProtected, "readout_protected")
    assert not error.touched
    assert not error.retryable
    assert bench.holds(images.small("1.0.0"))


async def test_a_protected_sector_is_seen_by_its_content(
    make_bench: Callable[..., Any], images: Any, protocol: str
) -> None:
    """Its erase and its writes are acknowledged like any others."""
    bench = make_bench(protocol, old=images.small("1.0.0"), prepare=lambda mcu: mcu.protect([1]))
    error = await fails(bench, images.small("1.1.0"), FlashError, "not_erased")
    assert "sector 1" in error.message
    assert error.touched
    assert bench.mcu.boots() is None


async def test_a_protected_blank_sector_is_seen_by_its_content(
    make_bench: Callable[..., Any], images: Any, protocol: str
) -> None:
    bench = make_bench(protocol, prepare=lambda mcu: mcu.protect([1]))
    error = await fails(bench, images.small("1.1.0"), NotProved, "not_proved")
    assert "0x08000800" in error.message
    assert bench.mcu.boots() is None


@pytest.mark.parametrize("part", [{"crashes": True}], ids=str)
async def test_an_application_that_falls_back(
    make_bench: Callable[..., Any], images: Any, protocol: str, part: dict[str, Any]
) -> None:
    bench = make_bench(protocol, part=part)
    await fails(bench, images.small("1.1.0"), FlashError, "not_booted")


async def test_nothing_to_start(make_bench: Callable[..., Any], protocol: str) -> None:
    bench = make_bench(protocol)
    async with bench.flasher() as flasher:
        with pytest.raises(FlashError) as caught:
            await flasher.activate()
    assert caught.value.code == "not_booted"
    assert not caught.value.touched


async def test_a_part_that_erases_for_ever(
    make_bench: Callable[..., Any], images: Any, protocol: str
) -> None:
    bench = make_bench(protocol, old=images.small("1.0.0"))
    bench.mcu.order(Faults(pending_s=1e6))
    from_s = bench.model.now()
    await fails(bench, images.small("1.1.0"), NoAnswer, "no_answer")
    assert bench.model.now() - from_s < 20


async def test_a_slow_erase(make_bench: Callable[..., Any], images: Any, protocol: str) -> None:
    """Slower than the profile says: the sector is erased again when the part answers again."""
    bench = make_bench(protocol, old=images.small("1.0.0"))
    bench.mcu.order(Faults(pending_s=1.3))
    await bench.flash(images.small("1.1.0"))
    assert bench.runs(images.small("1.1.0"))


async def test_verify_without_a_proof(make_bench: Callable[..., Any], images: Any, protocol: str) -> None:
    """Behind Go a new flasher has nothing to go by."""
    image = images.small("1.1.0")
    bench = make_bench(protocol)
    await bench.flash(image)
    async with bench.flasher() as flasher:
        with pytest.raises(NotProved) as caught:
            await flasher.verify(image)
    assert "BOOT0" in caught.value.advice
    assert not caught.value.touched


async def test_verify_reads_back_what_a_loader_shows(
    make_bench: Callable[..., Any], images: Any, protocol: str
) -> None:
    image = images.small("1.1.0")
    bench = make_bench(protocol, old=image)
    async with bench.flasher() as flasher:
        identity = await flasher.verify(image)
        assert (identity.sha256, identity.in_bootloader) == (image.spec.sha256, True)
        wrong = bytearray(image.data)
        wrong[-1] ^= 1
        with pytest.raises(NotProved):
            await flasher.verify(images.signed("1.1.0", bytes(wrong)))
        assert (await flasher.identify()).sha256 is None


async def test_a_proof_is_of_one_image_and_ends_with_the_application(
    make_bench: Callable[..., Any], images: Any, protocol: str
) -> None:
    image = images.small("1.1.0")
    bench = make_bench(protocol)
    async with bench.flasher() as flasher:
        await flasher.stage(image)
        await flasher.activate()
        with pytest.raises(NotProved):
            await flasher.verify(images.small("1.2.0"))
        assert (await flasher.verify(image)).in_bootloader is False
        assert (await flasher.identify()).sha256 == image.spec.sha256
        await asyncio.to_thread(bench.mcu.enter_loader)
        with pytest.raises(NotProved) as caught:
            await flasher.verify(image)
    assert caught.value.code == "not_booted"


async def test_there_is_no_way_back(make_bench: Callable[..., Any], protocol: str) -> None:
    bench = make_bench(protocol)
    async with bench.flasher() as flasher:
        await flasher.confirm()
        with pytest.raises(FlashError) as caught:
            await flasher.revert()
        capabilities = flasher.capabilities
    assert caught.value.code == "no_second_slot"
    assert (capabilities.slots, capabilities.isolated_bus) == (1, True)
    assert capabilities.trust_class == "gateway-only"
    assert capabilities.never_erased
