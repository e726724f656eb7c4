"""Servers that others wrote, unmodified, flashed by our client: python-uds-server, and scapy's ECU.

They know nothing of our documents and identifiers: the plain profile says what they have.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import can
import isotp
import pytest

from firmware_flashers.base import (
    AccessDenied,
    BenchFlasher,
    FirmwareImage,
    FlashError,
    MemoryRange,
    NotProved,
    TrustClass,
)
from firmware_flashers.registry import EcuSettings, open_flasher
from firmware_flashers.security import HmacSha256
from firmware_flashers.uds_memory import MemoryMap
from firmware_flashers.uds_profile import PROFILES, Identifiers, Routines, UdsProfile, UdsTiming
from shared.release import FirmwareSpec

uds_server: Any = importlib.import_module("uds_server")
uds_server_transport: Any = importlib.import_module("uds_server.transport.isotp")

KIB = 1024
START, SIZE = 0x0800_0000, 128 * KIB
SECRET = bytes(range(32))
SEED = bytes(range(1, 17))

MEMORY = MemoryMap(
    flash_start=START,
    sectors=(16 * KIB,) * 8,
    bootloader=None,
    document=None,
    slot=MemoryRange(start=START, end=START + SIZE),
)
PLAIN = replace(
    PROFILES["uds"],
    security="none",
    memory=MEMORY,
    erased_run_bytes=0,
    routines=Routines(preconditions=None, erase=None, check_memory=None, check_dependencies=None),
    timing=UdsTiming(margin_s=2.0, request_s=20.0, reset_pause_s=0.01, boot_s=10.0),
)


def image_of(data: bytes, version: str = "1.0.0") -> FirmwareImage:
    spec = FirmwareSpec(
        kind="any",
        hardware=("any",),
        version=version,
        release_counter=1,
        length=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )
    return FirmwareImage(spec=spec, data=data, document=b"")


IMAGE = image_of(hashlib.shake_256(b"an image").digest(20_000))


class Counterpart:
    """A server of somebody else's on a `virtual` bus, and what flashes it."""

    def __init__(self, folder: Path) -> None:
        self.channel = f"counterpart-{os.getpid()}-{folder.name}"
        self.secret_file = folder / "secret"
        self.secret_file.write_bytes(SECRET)
        self.secret_file.chmod(0o600)
        self.memory = bytearray(SIZE)
        self.erased: list[tuple[int, int]] = []
        self.resets = 0

    def write(self, address: int, data: bytes) -> None:
        self.memory[address - START : address - START + len(data)] = data

    def read(self, address: int, length: int) -> bytes:
        return bytes(self.memory[address - START : address - START + length])

    def reset(self) -> None:
        self.resets += 1

    def erase(self, option: bytes) -> bytes:
        _, start, length = struct.unpack(">BII", option)
        self.erased.append((start, length))
        self.write(start, b"\xff" * length)
        return b"\x00"

    def check(self, option: bytes) -> bytes:
        _, start, length = struct.unpack(">BII", option[:9])
        return bytes([hashlib.sha256(self.read(start, length)).digest() != option[9:]])

    def flasher(self, profile: UdsProfile, **settings: Any) -> AbstractAsyncContextManager[BenchFlasher]:
        values: dict[str, Any] = {
            "component": "counterpart",
            "flasher": "uds",
            "interface": "virtual",
            "channel": self.channel,
            "tx_id": 0x7E0,
            "rx_id": 0x7E8,
            "kind": "any",
            "hardware": "any",
            "profile": profile,
        }
        return open_flasher(EcuSettings(**(values | settings)))

    async def flash(self, profile: UdsProfile, image: FirmwareImage = IMAGE, **settings: Any) -> None:
        async with self.flasher(profile, **settings) as flasher:
            await flasher.stage(image)
            await flasher.activate()
            proved = await flasher.verify(image)
        assert (proved.version, proved.sha256) == (image.spec.version, image.spec.sha256)
        assert self.read(START, len(image.data)) == image.data


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Any]:
    """Starts python-uds-server with what it is to have."""
    stack: list[Any] = []

    def start(**having: Any) -> Counterpart:
        here = Counterpart(tmp_path)
        bus = can.Bus(here.channel, interface="virtual", ignore_config=True)
        address = isotp.Address(isotp.AddressingMode.Normal_11bits, txid=0x7E8, rxid=0x7E0)
        layer = isotp.CanStack(bus, address=address, params={"blocksize": 8, "stmin": 0})
        routines = [
            uds_server.RoutineDefinition(number, start_callback=getattr(here, name))
            for number, name in having.pop("routines", {}).items()
        ]
        server = uds_server.UdsServer(
            transport=uds_server_transport.IsoTpTransport(layer),
            memory_regions=[
                uds_server.MemoryRegionDefinition(
                    START, SIZE, read_callback=here.read, write_callback=here.write
                )
            ],
            resets=[uds_server.EcuResetDefinition(0x01, callback=here.reset)],
            routines=routines,
            **having,
        )
        server.start()
        stack.append((server, bus))
        return here

    yield start
    for server, bus in stack:
        server.stop()
        bus.shutdown()


async def test_the_least_server_is_flashed_and_proved_by_reading(served: Any) -> None:
    here = served()
    await here.flash(PLAIN)
    assert here.resets >= 1


async def test_what_is_not_authorised_by_the_ecu_itself_is_declared(served: Any) -> None:
    here = served()
    async with here.flasher(PLAIN) as flasher:
        assert flasher.capabilities.trust_class is TrustClass.GATEWAY_ONLY
        assert flasher.capabilities.slots == 1
        identity = await flasher.identify()
    assert (identity.kind, identity.version, identity.sha256) == ("any", None, None)


async def test_its_erase_its_check_and_its_security_are_used(served: Any) -> None:
    here = served(
        routines={0xFF00: "erase", 0x0202: "check"},
        security_levels=[
            uds_server.SecurityLevel(
                level=0x11,
                seed_callback=lambda: SEED,
                key_validator=lambda seed, key: key == HmacSha256().key(seed, SECRET),
            )
        ],
        max_transfer_block_length=1026,
    )
    profile = replace(
        PLAIN,
        security="hmac-sha256",
        security_level=0x11,
        proof="routine",
        erased_run_bytes=1024,
        routines=replace(PLAIN.routines, erase=0xFF00, check_memory=0x0202),
    )
    image = image_of(IMAGE.data[:5000] + b"\xff" * 6000 + IMAGE.data[5000:])
    await here.flash(profile, image, security_secret_file=here.secret_file)
    assert here.erased == [(START, 32 * KIB)]


async def test_a_wrong_key_costs_one_try_and_nothing_is_touched(served: Any) -> None:
    keys: list[bytes] = []

    def refuse(_: bytes, key: bytes) -> bool:
        keys.append(key)
        return False

    here = served(
        security_levels=[
            uds_server.SecurityLevel(
                level=0x01,
                seed_callback=lambda: SEED,
                key_validator=refuse,
            )
        ]
    )
    profile = replace(PLAIN, security="hmac-sha256")
    async with here.flasher(profile, security_secret_file=here.secret_file) as flasher:
        with pytest.raises(AccessDenied) as caught:
            await flasher.stage(IMAGE)
    assert not caught.value.touched
    assert len(keys) == 1


async def test_identifiers_that_it_has_are_asked(served: Any) -> None:
    dids = {0xF189: b"0.9.0", 0xF191: b"rev-c", 0xF15A: None}
    here = served(
        dids=[
            uds_server.DidDefinition(
                did, len(value) if value else 28, read_callback=(lambda v=value: v) if value else None
            )
            for did, value in dids.items()
        ]
    )
    words = Identifiers(
        kind=None, hardware=0xF191, version=0xF189, image_sha256=None, in_bootloader=None, fingerprint=None
    )
    profile = replace(PLAIN, dids=words)
    async with here.flasher(profile, hardware="rev-c") as flasher:
        identity = await flasher.identify()
    assert (identity.version, identity.hardware) == ("0.9.0", "rev-c")
    async with here.flasher(profile, hardware="rev-d") as flasher:
        with pytest.raises(FlashError) as caught:
            await flasher.stage(replace(IMAGE, spec=replace(IMAGE.spec, hardware=("rev-d",))))
    assert caught.value.code == "wrong_ecu"


async def test_other_bytes_in_its_memory_are_not_proved(served: Any) -> None:
    here = served()
    await here.flash(PLAIN)
    here.memory[7000] ^= 1
    async with here.flasher(PLAIN) as flasher:
        with pytest.raises(NotProved, match="0x08001b58"):
            await flasher.verify(IMAGE)


async def test_tools_of_the_bench(served: Any) -> None:
    here = served(routines={0xFF00: "erase"})
    profile = replace(PLAIN, routines=replace(PLAIN.routines, erase=0xFF00))
    here.memory[:] = hashlib.shake_256(b"memory").digest(SIZE)
    async with here.flasher(profile) as flasher:
        assert await flasher.read(START + 100, 9000) == here.read(START + 100, 9000)
        await flasher.erase(START + 16 * KIB, 32 * KIB)
        await flasher.reset()
    assert here.read(START + 16 * KIB, 32 * KIB) == b"\xff" * 32 * KIB
    assert here.read(START, 16 * KIB) == hashlib.shake_256(b"memory").digest(SIZE)[: 16 * KIB]


# -- scapy: an ECU that is a table of answers


@pytest.fixture(scope="module")
def scapy() -> Any:
    with warnings.catch_warnings():
        # Of its own imports.
        warnings.simplefilter("ignore")
        can_sockets = importlib.import_module("scapy.contrib.cansocket_python_can")
        isotp_layer = importlib.import_module("scapy.contrib.isotp")
        uds = importlib.import_module("scapy.contrib.automotive.uds")
        ecu = importlib.import_module("scapy.contrib.automotive.ecu")
    return can_sockets, isotp_layer, uds, ecu


@pytest.fixture
def scapys_ecu(scapy: Any, tmp_path: Path) -> Iterator[Any]:
    """An EcuAnsweringMachine that takes IMAGE in blocks of 1026; what it is sent lands in `memory`."""
    can_sockets, isotp_layer, uds, ecu = scapy
    here = Counterpart(tmp_path)
    here.state = {"at": 0, "next": 1}  # type: ignore[attr-defined]
    state: dict[str, int] = here.state  # type: ignore[attr-defined]

    def answer(response: bytes, fits: Any) -> Any:
        return ecu.EcuResponse(responses=uds.UDS(response), answers=lambda _, req: fits(bytes(req)))

    def begins(request: bytes) -> bool:
        if request[:3] != b"\x34\x00\x44":
            return False
        state["at"], state["next"] = int.from_bytes(request[3:7], "big"), 1
        return True

    def takes(counter: int) -> Any:
        def fits(request: bytes) -> bool:
            if request[:2] != bytes([0x36, counter]) or state["next"] != counter:
                return False
            here.write(state["at"], request[2:])
            state["at"] += len(request) - 2
            state["next"] = (counter + 1) & 0xFF
            return True

        return fits

    def reads(start: int, data: bytes) -> Any:
        wanted = b"\x23\x44" + struct.pack(">II", start, len(data))
        return lambda request: request == wanted and here.read(start, len(data)) == data

    most = PLAIN.block_bytes - 2
    chunks = [(START + at, IMAGE.data[at : at + most]) for at in range(0, len(IMAGE.data), most)]
    fixed = {
        "3e00": "7e00", "1001": "5001003201f4", "1002": "5002003201f4", "1003": "5003003201f4",
        "1101": "5101", "37": "77",
    }  # fmt: skip
    table = [
        *(
            answer(bytes.fromhex(said), lambda request, asked=asked: request.hex() == asked)
            for asked, said in fixed.items()
        ),
        answer(bytes.fromhex("74200402"), begins),
        *(answer(bytes([0x76, counter]), takes(counter)) for counter in range(256)),
        *(answer(b"\x63" + data, reads(start, data)) for start, data in chunks),
    ]
    stop = threading.Event()
    socket = isotp_layer.ISOTPSoftSocket(
        can_sockets.PythonCANSocket(interface="virtual", channel=here.channel),
        tx_id=0x7E8,
        rx_id=0x7E0,
        basecls=uds.UDS,
    )
    machine = ecu.EcuAnsweringMachine(
        supported_responses=table, main_socket=socket, basecls=uds.UDS, timeout=60, verbose=False
    )
    thread = threading.Thread(
        target=machine, kwargs={"timeout": 60, "stop_filter": lambda _: stop.is_set()}, name="scapys-ecu"
    )
    thread.start()

    yield here
    stop.set()
    poke = can.Bus(here.channel, interface="virtual", ignore_config=True)
    poke.send(can.Message(arbitration_id=0x7E0, data=b"\x02\x3e\x00", is_extended_id=False))
    thread.join(20)
    poke.shutdown()
    socket.close()
    assert not thread.is_alive()


async def test_scapys_ecu_is_flashed_and_proved_by_reading(scapys_ecu: Any) -> None:
    await scapys_ecu.flash(PLAIN)


async def test_scapys_ecu_that_lost_a_block_is_not_proved(scapys_ecu: Any) -> None:
    real = scapys_ecu.write
    scapys_ecu.write = lambda address, data: real(address, data) if address != START + 1024 else None
    async with scapys_ecu.flasher(PLAIN) as flasher:
        with pytest.raises(FlashError) as caught:
            await flasher.stage(IMAGE)
    # It has no answer for a read of what it does not hold.
    assert caught.value.code in {"general_reject", "not_proved"}
    assert caught.value.touched
