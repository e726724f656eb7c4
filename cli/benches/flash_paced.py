"""Flashing over a bus that the wall clock paces: the host's own cost counts, and so does the other end's.

The hub charges each frame its bits; hub and MCU are one other process. Measured is a whole `stage`, with
sessions, access, erase requests, checks and the signed document; the MCU erases and programs in no time.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time

import can
import isotp
from udsoncan import DataFormatIdentifier, MemoryLocation
from udsoncan.client import Client
from udsoncan.configs import default_client_config
from udsoncan.connections import PythonIsoTpConnection

from cli.benches.flash_ceiling import Wire, download_seconds
from cli.benches.flash_far_side import far_side
from cli.benches.flash_ground import REQUEST_ID, RESPONSE_ID, SECRET, Ground, ground
from cli.benches.report import Row, share_of
from firmware_flashers.base import FirmwareImage, MemoryRange
from firmware_flashers.registry import EcuSettings, open_flasher
from firmware_flashers.uds_profile import UdsProfile
from sim.mcu.memory import KIB

SECONDS_OF_WIRE = 5
APART = "a whole stage; hub and MCU in one other process; erase and program take no time"


def paced(case: str, bitrate: int) -> Row:
    """Our flasher, a dense image, against the wire."""
    with ground() as here:
        image = here.image("1.0.0", _bytes_for(bitrate))
        with far_side(here.folder, bitrate) as channel:
            seconds = asyncio.run(_stage(here.ecu("quarry-hub", channel, bitrate=bitrate), image))
    limit_s = download_seconds(
        Wire(bitrate=bitrate), image.data, request_id=REQUEST_ID, response_id=RESPONSE_ID
    )
    size = len(image.data) / 1000
    return share_of(
        case,
        size / seconds,
        "kB/s",
        limit=size / limit_s,
        limit_is="the wire, stuffing counted",
        at_least=0.90,
        apart=APART,
    )


def against_plain(case: str, bitrate: int) -> Row:
    """Our flasher and the plain way, one after the other, the same image on a blank part each."""
    with ground() as here:
        image = _with_a_gap(here, _bytes_for(bitrate))
        with far_side(here.folder, bitrate) as channel:
            ours_s = asyncio.run(_stage(here.ecu("quarry-hub", channel, bitrate=bitrate), image))
        (here.folder / "flash.bin").unlink()
        with far_side(here.folder, bitrate) as channel:
            plain_s = _plain_stage(here.ecu("quarry-hub", channel, bitrate=bitrate), image)
    size = len(image.data) / 1000
    return share_of(
        case,
        size / ours_s,
        "kB/s",
        limit=size / plain_s,
        limit_is="udsoncan + can-isotp, defaults but P2 (theirs fails on long blocks), whole image, same run",
        at_least=1.0,
        apart="an image of which an eighth is 0xFF, as between a program and its tables",
    )


def _bytes_for(bitrate: int) -> int:
    """About so many seconds of the wire."""
    return bitrate // 16 * SECONDS_OF_WIRE // (16 * KIB) * (16 * KIB)


def _with_a_gap(here: Ground, nbytes: int) -> FirmwareImage:
    data = here.image("1.0.0", nbytes).data
    gap = nbytes // 8
    at = nbytes // 2
    return here.signed("1.0.0", data[:at] + b"\xff" * gap + data[at + gap :])


async def _stage(ecu: EcuSettings, image: FirmwareImage) -> float:
    async with open_flasher(ecu) as flasher:
        started = time.monotonic()
        await flasher.stage(image)
        seconds = time.monotonic() - started
        await flasher.activate()
        await flasher.verify(image)
    return seconds


def _plain_stage(ecu: EcuSettings, image: FirmwareImage) -> float:
    """The same steps by udsoncan's client over can-isotp's stack, as their documentation shows it."""
    profile = ecu.profile
    assert isinstance(profile, UdsProfile)
    memory = profile.memory
    assert memory.document is not None
    bus = can.Bus(ecu.channel, interface=ecu.interface, ignore_config=True)
    address = isotp.Address(isotp.AddressingMode.Normal_11bits, txid=ecu.tx_id, rxid=ecu.rx_id)
    stack = isotp.CanStack(bus=bus, address=address)
    # With the server's 50 ms (their default) every block of 4095 bytes times out: their P2 begins when the
    # first frame is handed over, not the last one (python-udsoncan issue 42).
    config = default_client_config | {"use_server_timing": False}
    started = time.monotonic()
    with bus, Client(PythonIsoTpConnection(stack), config=config) as client:
        client.change_session(3)
        client.start_routine(0x0203)
        client.change_session(2)
        seed = client.request_seed(1).service_data.seed
        client.send_key(2, hmac.new(SECRET, seed, hashlib.sha256).digest()[:16])
        # The fingerprint, without udsoncan's table of codecs.
        client.conn.send(b"\x2e\xf1\x5a" + b"plain")
        client.conn.wait_frame(timeout=2, exception=True)
        _plain_erase(client, memory.document)
        for sector in memory.sectors_of(memory.slot, len(image.data)):
            _plain_erase(client, sector)
        _plain_download(client, memory.slot.start, image.data)
        document = len(image.document).to_bytes(4, "little") + image.document
        _plain_download(client, memory.document.start, document + b"\xff" * (-len(document) % 4))
        client.start_routine(0xFF01)
        return time.monotonic() - started


def _area(start: int, size: int) -> bytes:
    return b"\x44" + start.to_bytes(4, "big") + size.to_bytes(4, "big")


def _plain_erase(client: Client, what: MemoryRange) -> None:
    client.start_routine(0xFF00, _area(what.start, what.end - what.start))


def _plain_download(client: Client, start: int, data: bytes) -> None:
    where = MemoryLocation(address=start, memorysize=len(data), address_format=32, memorysize_format=32)
    answer = client.request_download(where, DataFormatIdentifier())
    assert answer is not None
    most = answer.service_data.max_length - 2
    for number, at in enumerate(range(0, len(data), most), start=1):
        client.transfer_data(number & 0xFF, data[at : at + most])
    client.request_transfer_exit()
    client.start_routine(0x0202, _area(start, len(data)) + hashlib.sha256(data).digest())
