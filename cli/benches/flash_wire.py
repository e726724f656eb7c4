"""Flashing on the bus model: what share of the wire's ceiling is reached, in virtual time.

Virtual time charges each frame its exact bits, and no time at all for what a computer computes: these
figures show the protocol's own waste (turnarounds, frames that need not be), not the host's speed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from cli.benches.flash_ceiling import Wire, download_seconds, isotp_frames
from cli.benches.flash_ground import REQUEST_ID, RESPONSE_ID, ground
from cli.benches.report import Row, share_of, within
from firmware_flashers.base import FirmwareImage
from firmware_flashers.registry import EcuSettings, open_flasher
from firmware_flashers.uds_words import CHECK_MEMORY
from sim.can_model import ModelBus
from sim.mcu.memory import KIB
from sim.mcu.server import Stm32Mcu

UDS_BYTES = 256 * KIB
SECTOR = 128 * KIB
CHANGED = 5
CHECK = bytes([0x31, 0x01]) + CHECK_MEMORY.to_bytes(2, "big")


def uds(case: str, bitrate: int, data_bitrate: int | None = None) -> Row:
    """A whole `stage` of a dense image on a blank part."""
    with ground() as here:
        image = here.image("1.0.0", UDS_BYTES)
        with (
            ModelBus(bitrate=bitrate, data_bitrate=data_bitrate) as model,
            Stm32Mcu(
                replace(here.mcu(), fd=data_bitrate is not None),
                model.endpoint(fd=data_bitrate is not None, driver=False),
            ),
        ):
            ecu = here.ecu("quarry-model", model.name, bitrate=bitrate, data_bitrate=data_bitrate)
            seconds = asyncio.run(_stage(ecu, image, model.now))
    wire = Wire(bitrate=bitrate, data_bitrate=data_bitrate)
    limit_s = download_seconds(wire, image.data, request_id=REQUEST_ID, response_id=RESPONSE_ID)
    size = len(image.data) / 1000
    return share_of(
        case,
        size / seconds,
        "kB/s",
        limit=size / limit_s,
        limit_is="the wire, stuffing of these bytes counted, block 4095",
        at_least=0.95,
        apart="virtual time of a whole stage (sessions, checks, document); erase and program take none",
    )


def changed_sector(case: str) -> Row:
    """One sector of a 1 MiB image changed: bytes on the bus against those of that sector alone."""
    with ground() as here:
        old = here.image("1.0.0", 8 * SECTOR)
        start = CHANGED * SECTOR
        other = here.image("1.0.0", 8 * SECTOR, seed="changed").data[start : start + SECTOR]
        new = here.signed("1.0.1", old.data[:start] + other + old.data[start + SECTOR :])
        with (
            ModelBus(bitrate=1_000_000, log_frames=1_000_000) as model,
            Stm32Mcu(here.mcu(), model.endpoint(driver=False)),
        ):
            ecu = here.ecu("quarry-model", model.name)
            asyncio.run(_install(ecu, old))
            before = len(model.log)
            asyncio.run(_stage(ecu, new, model.now))
            spent = _bytes_without_checks([data for _, _, data in model.log[before:]])
    blocks = range(0, SECTOR, 4093)
    alone = sum(
        len(frame)
        for at in blocks
        for frame in isotp_frames(bytes([0x36, 0]) + other[at : at + 4093], 8, 0xCC)
    ) + 16 * len(blocks)
    return within(
        case,
        spent / 1000,
        "kB",
        limit=1.05 * alone / 1000,
        limit_is="1.05 x the frames of that sector's blocks",
        apart="all frames of the stage both ways but those of the sectors' checksums (31 01 02 02)",
    )


def _bytes_without_checks(frames: list[bytes]) -> int:
    """CAN data bytes, without the messages that ask for a sector's checksum and what answers them."""
    total = 0
    in_check = False
    for data in frames:
        kind = data[0] >> 4
        if kind == 1:
            in_check = data[2:6] == CHECK
        elif kind == 0:
            in_check = data[1:5] == bytes([0x71]) + CHECK[1:]
        if not in_check:
            total += len(data)
    return total


async def _stage(ecu: EcuSettings, image: FirmwareImage, now: Callable[[], float]) -> float:
    async with open_flasher(ecu) as flasher:
        started = now()
        await flasher.stage(image)
        return now() - started


async def _install(ecu: EcuSettings, image: FirmwareImage) -> None:
    async with open_flasher(ecu) as flasher:
        await flasher.stage(image)
        await flasher.activate()
        await flasher.verify(image)
