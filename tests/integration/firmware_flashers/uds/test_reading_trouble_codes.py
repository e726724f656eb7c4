"""Trouble codes of a simulated ECU, read over the bus by its flasher: of what runs, before and after."""

from __future__ import annotations

from typing import Any

import pytest

from firmware_flashers.base import FlashError, ReadsFaults, TroubleCode
from sim.mcu.trouble_codes import TroubleCodes

WORN, BAD = TroubleCode(code=0xC10000, status=0x2F), TroubleCode(code=0x000123, status=0x08)
TROUBLE = TroubleCodes(always={WORN.code: WORN.status}, of_version={"1.1.0": {BAD.code: BAD.status}})


@pytest.mark.parametrize("word", ["stm32-uds", "esp32-uds"])
async def test_a_bad_image_shows_its_fault_when_it_runs(lab: Any, word: str) -> None:
    ecu = lab.ecu(word, trouble=TROUBLE)
    async with ecu.flasher() as flasher:
        told: object = flasher
        assert isinstance(told, ReadsFaults)
        assert await flasher.trouble_codes(0x08) == (WORN,)
        await flasher.stage(ecu.new)
        await flasher.activate()
        await flasher.verify(ecu.new)
        assert await flasher.trouble_codes(0x08) == (BAD, WORN)
        assert await flasher.trouble_codes(0x01) == (WORN,)


async def test_an_ecu_in_its_bootloader_can_not_tell(lab: Any) -> None:
    ecu = lab.ecu("stm32-uds", trouble=TROUBLE)
    async with ecu.flasher() as flasher:
        await flasher.stage(ecu.new)
        with pytest.raises(FlashError) as refused:
            await flasher.trouble_codes(0x08)
    assert (refused.value.code, refused.value.touched) == ("service_not_supported", False)
