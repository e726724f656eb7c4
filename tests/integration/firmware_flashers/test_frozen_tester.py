"""A tester that stops existing after frame n: no last word, no cleanup, the bus just hears no more of it.

After each cut the part is booted: it runs the old image, the new one, or waits in its bootloader, never a
torn one; and the next run always ends with the new image. All frames of a small flash are tried by
the long tests, in chunks; a sample by the short ones.
"""

from __future__ import annotations

from typing import Any

import pytest

from firmware_flashers.base import FlashError
from firmware_flashers.can_link import CanLink
from sim.mcu.boot import Verdict

TESTER_ID = 0x7E0
CHUNK = 20
MOST_FRAMES = 360
"""More than a flash of the small image has; test_the_matrix_covers_every_frame holds it to that."""
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


@pytest.mark.long
@pytest.mark.parametrize("first", range(1, MOST_FRAMES, CHUNK))
async def test_every_frame(hub_truck: Any, first: int) -> None:
    for frames in range(first, first + CHUNK):
        await freeze_and_recover(hub_truck, frames)
        hub_truck.refill()


async def test_the_matrix_covers_every_frame(hub_truck: Any, monkeypatch: Any) -> None:
    sent: list[bytes] = []
    real = CanLink.send

    def send(link: CanLink, arbitration_id: int, data: bytes, *, extended: bool) -> None:
        sent.append(data)
        real(link, arbitration_id, data, extended=extended)

    monkeypatch.setattr(CanLink, "send", send)
    await flash(hub_truck)
    assert max(SAMPLE) < len(sent) < MOST_FRAMES
