"""Every fault of the simulated STM32: a named error or success, and never a torn image that boots."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from firmware_flashers.base import AccessDenied, BadImage, FlashError, NotNow, WrongEcu
from sim.mcu.boot import Verdict
from sim.mcu.faults import Faults


async def flash(truck: Any, image: Any = None, **how: Any) -> None:
    image = image or truck.new
    async with truck.flasher(**how) as ecu:
        await ecu.stage(image)
        await ecu.activate()
        await ecu.verify(image)


def holds(truck: Any, image: Any) -> bool:
    content: bytes = truck.mcu.content(len(image.data))
    return bool(truck.mcu.boots().spec == image.spec) and content == image.data


async def test_it_flashes_and_proves_it(truck: Any) -> None:
    async with truck.flasher() as ecu:
        before = await ecu.identify()
        assert (before.kind, before.hardware, before.version) == ("brake-controller", "B2", "1.0.0")
        assert not before.in_bootloader
    await flash(truck)
    assert holds(truck, truck.new)
    await flash(truck, truck.old)
    assert holds(truck, truck.old)


async def test_several_sectors_and_blocks(truck: Any) -> None:
    image = truck.image("2.0.0", 80 * 1024 + 4)
    await flash(truck, image)
    assert holds(truck, image)


@pytest.mark.parametrize(
    "fault",
    [
        Faults(busy=3),
        Faults(pending_s=0.3),
        Faults(lose_response=1),
        Faults(lose_response=8),
        Faults(lose_response=11),
        Faults(lose_response=13),
        Faults(lose_response=14),
        Faults(lose_response=15),
        Faults(lose_response_frame=2),
        Faults(lose_response_frame=4),
        Faults(lose_response_frame=20),
        Faults(drop_frame=1),
        Faults(drop_frame=9),
        Faults(drop_frame=14),
        Faults(drop_frame=60),
        Faults(drop_frame=150),
        Faults(drop_frame=200),
        Faults(wrong_counter_at_block=1),
        Faults(wrong_counter_at_block=2),
        Faults(reset_at_block=1),
        Faults(reset_at_block=2),
    ],
    ids=lambda fault: ", ".join(f"{k}={v}" for k, v in vars(fault).items() if v != getattr(Faults(), k)),
)
async def test_one_fault_is_survived_in_one_run(hub_truck: Any, fault: Faults) -> None:
    truck = hub_truck
    truck.mcu.order(fault)
    await flash(truck)
    assert holds(truck, truck.new)


@pytest.mark.parametrize(
    "fault",
    [
        Faults(reset_at_block=1),
        Faults(reset_at_block=2),
        Faults(power_cut_at_frame=3),
        Faults(power_cut_at_frame=40),
        Faults(power_cut_at_frame=170),
        Faults(power_cut_at_frame=250),
        Faults(power_cut_at_erase=2),
        Faults(power_cut_at_byte=20),
        Faults(power_cut_at_byte=700),
        Faults(power_cut_at_byte=1030),
    ],
    ids=lambda fault: ", ".join(f"{k}={v}" for k, v in vars(fault).items() if v != getattr(Faults(), k)),
)
async def test_a_power_cut_or_reset_ends_named_and_the_next_run_right(hub_truck: Any, fault: Faults) -> None:
    truck = hub_truck
    truck.mcu.order(fault)
    with pytest.raises(FlashError) as caught:
        await flash(truck, hasty=True)
    assert caught.value.retryable
    truck.mcu.order(Faults())
    truck.mcu.power_cycle()
    if not caught.value.touched:
        assert holds(truck, truck.old)
    assert holds(truck, truck.old) or truck.mcu.boots().verdict is not Verdict.BOOTABLE
    await flash(truck)
    assert holds(truck, truck.new)


@pytest.mark.parametrize(
    "fault", [Faults(moving=True), Faults(engine_running=True)], ids=["moving", "engine"]
)
async def test_a_vehicle_in_use_is_not_now(truck: Any, fault: Faults) -> None:
    truck.mcu.order(fault)
    async with truck.flasher() as ecu:
        with pytest.raises(NotNow) as caught:
            await ecu.stage(truck.new)
        assert not caught.value.touched
        identity = await ecu.identify()
    assert not identity.in_bootloader
    assert holds(truck, truck.old)


async def test_a_wrong_secret_costs_one_try_and_the_application_returns(truck: Any) -> None:
    wrong = truck.folder / "wrong.secret"
    wrong.write_bytes(bytes(32))
    wrong.chmod(0o600)
    async with truck.flasher(security_secret_file=wrong) as ecu:
        with pytest.raises(AccessDenied) as caught:
            await ecu.stage(truck.new)
        assert not caught.value.touched
        await until_it_runs(ecu)
    assert holds(truck, truck.old)
    # Two more tries were left: the right secret still opens it.
    await flash(truck)


async def test_the_third_wrong_key_locks_and_the_delay_is_named(hub_truck: Any) -> None:
    truck = hub_truck
    wrong = truck.folder / "wrong.secret"
    wrong.write_bytes(bytes(32))
    wrong.chmod(0o600)
    async with truck.flasher(security_secret_file=wrong) as ecu:
        for said in ("InvalidKey", "InvalidKey", "ExceedNumberOfAttempts", "RequiredTimeDelay"):
            with pytest.raises(AccessDenied, match=said):
                await ecu.stage(truck.new)
            await until_it_runs(ecu)
    assert holds(truck, truck.old)


async def until_it_runs(ecu: Any) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                if not (await ecu.identify()).in_bootloader:
                    return
            except FlashError:
                await asyncio.sleep(0)


async def test_a_document_by_an_unknown_key_never_boots(truck: Any) -> None:
    stolen = truck.image("6.6.6", 1024, stolen_key=True)
    async with truck.flasher() as ecu:
        with pytest.raises(BadImage) as caught:
            await ecu.stage(stolen)
        assert caught.value.code == "signature_refused"
        assert caught.value.touched
        truck.mcu.power_cycle()
        assert (await ecu.identify()).in_bootloader
    assert truck.mcu.boots().verdict is Verdict.SIGNATURE
    await flash(truck)
    assert holds(truck, truck.new)


async def test_another_hardware_is_refused_untouched(truck: Any) -> None:
    async with truck.flasher() as ecu:
        with pytest.raises(WrongEcu):
            await ecu.stage(truck.image("1.1.0", 1024, hardware="B9"))
    async with truck.flasher(hardware="B9") as ecu:
        with pytest.raises(WrongEcu, match="B2"):
            await ecu.stage(truck.image("1.1.0", 1024, hardware="B9"))
    assert holds(truck, truck.old)


async def test_a_cancelled_flash_is_finished_by_the_next(truck: Any) -> None:
    image = truck.image("2.0.0", 60 * 1024)
    async with truck.flasher() as ecu:
        half = asyncio.Event()
        staging = asyncio.create_task(
            ecu.stage(image, progress=lambda now: half.set() if now.done_bytes > 20_000 else None)
        )
        async with asyncio.timeout(30):
            await half.wait()
        staging.cancel()
        with pytest.raises(asyncio.CancelledError):
            await staging
        assert truck.mcu.boots().verdict is not Verdict.BOOTABLE
        await ecu.stage(image)
        await ecu.activate()
        await ecu.verify(image)
    assert holds(truck, image)


async def test_an_mcu_without_power_is_silent_and_comes_back(hub_truck: Any) -> None:
    truck = hub_truck
    truck.mcu.power_cut()
    async with truck.flasher(hasty=True) as ecu:
        with pytest.raises(FlashError) as caught:
            await ecu.identify()
        assert caught.value.code == "no_answer"
        truck.mcu.power_cycle()
        assert (await ecu.identify()).version == "1.0.0"
