"""An ESP32 with two slots: started on trial, confirmed or given up; "the old one answers" is no success."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from firmware_flashers.base import BadImage, FlashError, NotNow, NotProved, TrustClass
from sim.mcu.faults import Faults
from sim.mcu.otadata import ImageState

ESP32 = "esp32-uds"


async def staged_and_started(ecu: Any, image: Any = None) -> None:
    async with ecu.flasher() as flasher:
        await flasher.stage(image or ecu.new)
        await flasher.activate()


async def test_what_it_guarantees_is_declared(lab: Any) -> None:
    async with lab.ecu(ESP32).flasher() as flasher:
        told = flasher.capabilities
    assert (told.slots, told.self_reverting, told.anti_rollback) == (2, True, True)
    assert told.trust_class is TrustClass.VERIFIES
    assert not told.isolated_bus


async def test_it_runs_on_trial_until_it_is_confirmed(lab: Any) -> None:
    ecu = lab.ecu(ESP32)
    async with ecu.flasher() as flasher:
        await flasher.stage(ecu.new)
        assert ecu.runs() == ecu.old.spec  # staging leaves the running one alone
        await flasher.activate()
        await flasher.verify(ecu.new)
        assert ecu.image_state() == ImageState.PENDING_VERIFY
        await flasher.confirm()
        assert ecu.image_state() == ImageState.VALID
        await flasher.confirm()  # again is harmless
    await asyncio.to_thread(ecu.mcu.power_cycle)
    assert ecu.runs() == ecu.new.spec


async def test_a_new_image_that_crashes_has_rolled_back(lab: Any) -> None:
    ecu = lab.ecu(ESP32, faults=Faults(bad_app=True))
    async with ecu.flasher() as flasher:
        await flasher.stage(ecu.new)
        await flasher.activate()
        with pytest.raises(NotProved) as caught:
            await flasher.verify(ecu.new)
        assert caught.value.code == "rolled_back"
        assert "1.0.0" in caught.value.message
        assert (await flasher.identify()).version == "1.0.0"
    assert ecu.runs() == ecu.old.spec


async def test_a_power_cut_before_the_confirmation_has_rolled_back_and_the_next_run_works(lab: Any) -> None:
    ecu = lab.ecu(ESP32)
    await staged_and_started(ecu)
    await asyncio.to_thread(ecu.mcu.power_cycle)
    async with ecu.flasher() as flasher:
        with pytest.raises(NotProved) as caught:
            await flasher.verify(ecu.new)
    assert caught.value.code == "rolled_back"
    await ecu.flash()
    assert ecu.runs() == ecu.new.spec
    assert ecu.image_state() == ImageState.VALID


async def test_an_image_on_trial_is_given_up(lab: Any) -> None:
    ecu = lab.ecu(ESP32)
    await staged_and_started(ecu)
    async with ecu.flasher() as flasher:
        await flasher.revert()
        assert ecu.runs() == ecu.old.spec
        await flasher.revert()  # again is harmless
        assert ecu.runs() == ecu.old.spec
        with pytest.raises(NotProved):
            await flasher.verify(ecu.new)
    await asyncio.to_thread(ecu.mcu.power_cycle)
    assert ecu.runs() == ecu.old.spec
    await ecu.flash()
    assert ecu.runs() == ecu.new.spec


async def test_a_staged_image_that_was_not_started_is_given_up(lab: Any) -> None:
    ecu = lab.ecu(ESP32)
    async with ecu.flasher() as flasher:
        await flasher.stage(ecu.new)
        await flasher.revert()
        assert ecu.runs() == ecu.old.spec
        await flasher.revert()
    await asyncio.to_thread(ecu.mcu.power_cycle)
    assert ecu.runs() == ecu.old.spec


async def test_a_confirmed_image_is_nothing_to_give_up(lab: Any) -> None:
    ecu = lab.ecu(ESP32)
    await ecu.flash()
    async with ecu.flasher() as flasher:
        with pytest.raises(FlashError) as caught:
            await flasher.revert()
    assert caught.value.code == "nothing_to_revert"
    assert not caught.value.touched
    assert ecu.runs() == ecu.new.spec


async def test_a_confirmed_one_goes_back_within_the_conversation_that_brought_it(lab: Any) -> None:
    ecu = lab.ecu(ESP32)
    async with ecu.flasher() as flasher:
        await flasher.stage(ecu.new)
        await flasher.activate()
        await flasher.confirm()
        await flasher.revert()
    assert ecu.runs() == ecu.old.spec


@pytest.mark.parametrize("lost", range(1, 9))
async def test_any_lost_answer_of_the_confirmation_is_survived(lab: Any, fails: Any, lost: int) -> None:
    ecu = lab.ecu(ESP32)
    await staged_and_started(ecu)
    ecu.mcu.order(Faults(lose_response=lost))
    async with ecu.flasher() as flasher:
        error = await fails(flasher.confirm())
        if error is not None:
            # A key whose answer is lost is not sent again by itself.
            assert error.retryable
            await flasher.confirm()
    assert ecu.image_state() == ImageState.VALID
    assert ecu.runs() == ecu.new.spec


@pytest.mark.parametrize("lost", range(1, 12))
async def test_any_lost_answer_of_the_way_back_is_survived(lab: Any, lost: int) -> None:
    ecu = lab.ecu(ESP32)
    await staged_and_started(ecu)
    ecu.mcu.order(Faults(lose_response=lost))
    async with ecu.flasher() as flasher:
        await flasher.revert()
    assert ecu.runs() == ecu.old.spec


@pytest.mark.parametrize("lost", range(1, 8))
async def test_any_lost_answer_of_the_start_is_survived(lab: Any, lost: int) -> None:
    ecu = lab.ecu(ESP32)
    async with ecu.flasher() as flasher:
        await flasher.stage(ecu.new)
        await ecu.settle()
        ecu.mcu.order(Faults(lose_response=lost))
        await flasher.activate()
        await flasher.verify(ecu.new)
    assert ecu.runs() == ecu.new.spec
    assert ecu.image_state() == ImageState.PENDING_VERIFY


@pytest.mark.parametrize("dropped", range(1, 8))
async def test_any_lost_request_of_the_start_is_survived(lab: Any, dropped: int) -> None:
    ecu = lab.ecu(ESP32)
    async with ecu.flasher() as flasher:
        await flasher.stage(ecu.new)
        await ecu.settle()
        ecu.mcu.order(Faults(drop_frame=dropped))
        await flasher.activate()
        await flasher.verify(ecu.new)
    assert ecu.runs() == ecu.new.spec


async def test_a_start_that_is_repeated_after_a_crash_does_not_give_the_trial_up(lab: Any) -> None:
    """The agent was killed behind its reset: its next run activates again, in a new conversation."""
    ecu = lab.ecu(ESP32)
    await staged_and_started(ecu)
    async with ecu.flasher() as flasher:
        await flasher.activate()
        await flasher.verify(ecu.new)
        await flasher.confirm()
    assert ecu.runs() == ecu.new.spec


async def test_an_image_on_trial_makes_room_for_a_third(lab: Any) -> None:
    ecu = lab.ecu(ESP32)
    await staged_and_started(ecu)
    third = ecu.image("1.2.0", 2048)
    await ecu.flash(third)
    assert ecu.runs() == third.spec
    assert ecu.image_state() == ImageState.VALID


async def test_an_image_that_runs_is_not_staged_again(lab: Any) -> None:
    ecu = lab.ecu(ESP32)
    await staged_and_started(ecu)
    before = ecu.mcu.programmed_bytes
    await ecu.flash()
    assert ecu.mcu.programmed_bytes == before
    assert ecu.image_state() == ImageState.VALID


async def test_a_secure_version_rises_with_the_confirmation_and_is_never_gone_below(lab: Any) -> None:
    ecu = lab.ecu(ESP32)
    newer = ecu.image("2.0.0", 2048, secure_version=3)
    async with ecu.flasher() as flasher:
        await flasher.stage(newer)
        await flasher.activate()
        await flasher.verify(newer)
        assert ecu.mcu.secure_version == 0
        await flasher.confirm()
        assert ecu.mcu.secure_version == 3
        with pytest.raises(NotNow) as back:
            # The former image is too old for the eFuse by now.
            await flasher.revert()
        assert back.value.code == "nothing_to_return_to"
        with pytest.raises(BadImage, match="secure version 2 is below 3") as caught:
            await flasher.stage(ecu.image("2.1.0", 2048, secure_version=2))
        assert not caught.value.touched
    assert ecu.runs() == newer.spec


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"chip_id": 9}, "ESP32-S3"),
        ({"min_revision": 301}, "revision"),
        ({"max_revision": 200}, "revision"),
    ],
)
async def test_an_image_for_another_chip_is_refused_untouched(lab: Any, change: Any, said: str) -> None:
    ecu = lab.ecu(ESP32)
    async with ecu.flasher() as flasher:
        with pytest.raises(BadImage, match=said) as caught:
            await flasher.stage(ecu.image("2.0.0", 2048, **change))
    assert not caught.value.touched
    assert ecu.mcu.programmed_bytes == 0
    assert ecu.runs() == ecu.old.spec


async def test_a_document_by_an_unknown_key_is_never_started(lab: Any) -> None:
    ecu = lab.ecu(ESP32)
    async with ecu.flasher() as flasher:
        with pytest.raises(BadImage) as caught:
            await flasher.stage(ecu.image("6.6.6", 2048, stolen_key=True))
    assert caught.value.code == "signature_refused"
    await asyncio.to_thread(ecu.mcu.power_cycle)
    assert ecu.runs() == ecu.old.spec


async def test_a_vehicle_in_use_is_not_now_and_the_application_runs_on(lab: Any) -> None:
    ecu = lab.ecu(ESP32, faults=Faults(moving=True))
    async with ecu.flasher() as flasher:
        with pytest.raises(NotNow) as caught:
            await flasher.stage(ecu.new)
        assert not caught.value.touched
        assert (await flasher.identify()).version == "1.0.0"
    await ecu.settle()
    assert ecu.mcu.uds.session == 1


async def test_a_long_image_with_an_empty_stretch(lab: Any) -> None:
    ecu = lab.ecu(ESP32)
    image = ecu.image("3.0.0", 300 * 1024)
    await ecu.flash(image)
    assert ecu.runs() == image.spec
