"""A tester that stops existing after frame n: no last word, no cleanup, the bus just hears no more of it.

After each cut the part is booted: it runs the old image, the new one, or waits in its bootloader, never a
torn one; and the next run always ends with the new image. A sample of frames, through the hub; all frames
are walked on the model bus (uds/test_killed_at_any_frame.py).
"""

from __future__ import annotations

from typing import Any

import pytest

from firmware_flashers.base import FlashError
from sim.mcu.boot import Verdict

TESTER_ID = 0x7E0
SAMPLE = [1, 6, 7, 9, 11, 14, 17, 21, 24, 60, 170, 172, 178, 230]


async def flash(truck: Any, **how: Any) -> None:
    async with truck.flasher(**how) as ecu:
        await ecu.stage(truck.new)
        await ecu.activate()
        await ecu.verify(truck.new)


async def freeze_and_recover(truck: Any, frames: int) -> bool:
    """Freeze the tester after so many frames, boot the part, flash it again. False: it was done before."""
    truck.hub.freeze_after(frames, arbitration_id=TESTER_ID)
    finished = True
    try:
        await flash(truck, hasty=True)
    except FlashError:
        finished = False
    # Orders of the first run must not freeze the second.
    truck.hub.freeze_after(10**9, arbitration_id=TESTER_ID)
    truck.mcu.power_cycle()
    installed = truck.mcu.boots()
    assert installed.spec in {truck.old.spec, truck.new.spec, None}
    assert (installed.spec is None) == (installed.verdict is not Verdict.BOOTABLE)
    for image in (truck.old, truck.new):
        if installed.spec == image.spec:
            assert truck.mcu.content(len(image.data)) == image.data
    await flash(truck)
    assert truck.mcu.boots().spec == truck.new.spec
    assert truck.mcu.content(len(truck.new.data)) == truck.new.data
    return not finished


@pytest.mark.parametrize("frames", SAMPLE)
async def test_a_tester_frozen_after_a_frame_leaves_nothing_that_a_next_run_can_not_mend(
    hub_truck: Any, frames: int
) -> None:
    assert await freeze_and_recover(hub_truck, frames)
