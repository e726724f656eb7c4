"""The ROM loaders: the wire's share of the write path, and what our stack adds to each acknowledgement.

A write over bxCAN is 34 acknowledgements for 256 bytes, one after the other: how soon the next frame follows
an acknowledgement is all that counts.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiomqtt
import can

from cli.benches.flash_ceiling import Wire
from cli.benches.report import Row, share_of, within
from control_plane.access.accounts import hash_password
from control_plane.embedded.nats import EmbeddedNats, truck_user
from firmware_flashers.can_link import CanLink, Link, LinkSettings
from firmware_flashers.rom_profile import RomTiming
from firmware_flashers.stm32_rom import RomLoader
from firmware_flashers.worker import share_interpreter_often
from shared import topics
from shared.logs import set_up_logs
from sim.can_bus import HubBus
from sim.can_hub import hub_in_thread
from sim.can_model import ModelBus
from sim.mcu.memory import KIB
from sim.mcu.rom_mcu import RomMcu
from sim.mcu.rom_settings import RomSettings

BLOCK = 256
WRITE_BYTES = 64 * KIB
SYNC, WRITE, DATA = 0x079, 0x031, 0x004
ACK = b"\x79"
ACKS = 34  # of one block: header, 32 frames, the end (AN3154, Write Memory)
ROUNDS = 150
LOADED_BLOCKS = 200
ADDRESS = 0x0800_0000
MOST_ADDED_US = 40.0
MOST_LOADED_MS = 2.0


def an3154(case: str, bitrate: int) -> Row:
    """Dense blocks through bxCAN's loader; it starts at 125 kbit/s and is told to change."""
    wire = Wire(bitrate=bitrate)
    ack = wire.seconds(WRITE, ACK)

    def ceiling_s(address: int, block: bytes) -> float:
        frames = [block[at : at + 8] for at in range(0, len(block), 8)]
        header = wire.seconds(WRITE, address.to_bytes(4, "big") + bytes([len(block) - 1])) + ack
        return header + sum(wire.seconds(DATA, one) + ack for one in frames) + ack

    with ModelBus(bitrate=125_000) as model:
        return _written(
            case,
            model,
            RomSettings(flash_file=Path("unset"), family="stm32f40x", boot0=True),
            fd=False,
            speed=None if bitrate == 125_000 else bitrate,
            ceiling_s=ceiling_s,
            limit_is="the wire, stop and wait, no turnaround",
        )


def an5405(case: str) -> Row:
    """Dense blocks through FDCAN's loader at its only rates."""
    wire = Wire(bitrate=250_000, data_bitrate=1_000_000)
    ack = wire.seconds(WRITE, ACK)

    def ceiling_s(address: int, block: bytes) -> float:
        frames = [block[at : at + 64] for at in range(0, len(block), 64)]
        header = wire.seconds(WRITE, address.to_bytes(4, "big") + bytes([len(block) - 1])) + ack
        return header + sum(wire.seconds(DATA, one) for one in frames) + ack

    with ModelBus(bitrate=250_000, data_bitrate=1_000_000) as model:
        return _written(
            case,
            model,
            RomSettings(flash_file=Path("unset"), family="stm32h743", boot0=True),
            fd=True,
            speed=None,
            ceiling_s=ceiling_s,
            limit_is="the wire, one acknowledgement a block, no turnaround",
        )


def _written(
    case: str,
    model: ModelBus,
    settings: RomSettings,
    *,
    fd: bool,
    speed: int | None,
    ceiling_s: Callable[[int, bytes], float],
    limit_is: str,
) -> Row:
    data = random.Random(case).randbytes(WRITE_BYTES)
    blocks = [(ADDRESS + at, data[at : at + BLOCK]) for at in range(0, len(data), BLOCK)]
    with tempfile.TemporaryDirectory(prefix="quarry-bench-") as folder:
        part = RomSettings(
            **{name: getattr(settings, name) for name in ("family", "boot0")},
            flash_file=Path(folder) / "flash.bin",
        )
        link_settings = LinkSettings(
            interface="quarry-model", channel=model.name, bitrate=model.bitrate, fd=fd, holder="bench"
        )
        with RomMcu(part, model.endpoint(fd=fd, driver=False)), Link(link_settings) as link:
            can_link = link.connect(None)
            try:
                with can_link.clock.attending():
                    loader = RomLoader(can_link, RomTiming(), fd=fd)
                    loader.resync(b"\xff" * (64 if fd else 8), sync_first=True)
                    loader.get()
                    if speed is not None:
                        loader.set_speed(speed)
                    started = can_link.clock.now()
                    for address, block in blocks:
                        loader.write(address, block)
                    seconds = can_link.clock.now() - started
            finally:
                can_link.close()
    size = len(data) / 1000
    limit_s = sum(ceiling_s(address, block) for address, block in blocks)
    return share_of(
        case,
        size / seconds,
        "kB/s",
        limit=size / limit_s,
        limit_is=limit_is,
        at_least=0.95,
        apart="virtual time of the write path; erase, program time and read-back are apart",
    )


def ack_overhead(case: str) -> Row:
    """Our time for an acknowledged frame, less a bare python-can ping-pong's: medians of the same run."""
    channel = f"bench-{time.monotonic_ns()}"
    ours = can.Bus(channel, interface="virtual", ignore_config=True)
    other = can.Bus(channel, interface="virtual", ignore_config=True)
    echo = threading.Thread(target=_echo, args=(other,), daemon=True)
    echo.start()
    ping = can.Message(arbitration_id=WRITE, data=bytes(8), is_extended_id=False)
    loader = RomLoader(CanLink(ours, name="bench"), RomTiming(), fd=False)
    block = random.Random(case).randbytes(BLOCK)
    bare_us: list[float] = []
    ours_us: list[float] = []
    try:
        for _ in range(ROUNDS):
            started = time.perf_counter()
            for _ in range(ACKS):
                ours.send(ping)
                if ours.recv(1.0) is None:
                    raise RuntimeError("no echo")
            middle = time.perf_counter()
            loader.write(ADDRESS, block)
            ended = time.perf_counter()
            bare_us.append((middle - started) / ACKS * 1e6)
            ours_us.append((ended - middle) / ACKS * 1e6)
            # The echo counts frames to know a block's end, and pings have none.
            ours.send(can.Message(arbitration_id=SYNC, data=b"", is_extended_id=False))
    finally:
        ours.send(can.Message(arbitration_id=0x7FF, data=b"", is_extended_id=False))
        echo.join(5.0)
        ours.shutdown()
        other.shutdown()
    added = statistics.median(ours_us) - statistics.median(bare_us)
    return within(
        case,
        added,
        "us",
        limit=MOST_ADDED_US,
        limit_is="40 us more than a bare ping-pong",
        apart=f"medians: bare {statistics.median(bare_us):.0f} us, ours {statistics.median(ours_us):.0f} us",
    )


def _echo(bus: can.BusABC) -> None:
    """Acknowledge each frame, and the end of a block of 32 data frames once more."""
    ack = can.Message(arbitration_id=WRITE, data=ACK, is_extended_id=False)
    in_block = 0
    while True:
        message = bus.recv(5.0)
        if message is None or message.arbitration_id == 0x7FF:
            return
        if message.arbitration_id == SYNC:
            in_block = 0
            continue
        bus.send(ack)
        if message.arbitration_id == DATA:
            in_block += 1
            if in_block == ACKS - 2:
                bus.send(ack)
                in_block = 0


class _Timed(CanLink):
    """Notes how long each answer was waited for."""

    def __init__(self, bus: can.BusABC) -> None:
        super().__init__(bus, name="bench")
        self.waits_s: list[float] = []
        self._sent_at = 0.0

    def send(self, arbitration_id: int, data: bytes, **more: Any) -> None:
        self._sent_at = time.perf_counter()
        super().send(arbitration_id, data, **more)

    def receive(self, timeout_s: float) -> can.Message | None:
        message = super().receive(timeout_s)
        self.waits_s.append(time.perf_counter() - self._sent_at)
        return message


def ack_p99_loaded(case: str) -> Row:
    """From a frame's sending to its acknowledgement in our hands, while the process does an agent's work."""
    with tempfile.TemporaryDirectory(prefix="quarry-bench-") as name:
        folder = Path(name)
        with _far_echo(folder) as channel:
            waits_s = asyncio.run(_loaded(folder, channel))
    p99_ms = statistics.quantiles(waits_s, n=100)[98] * 1000
    return within(
        case,
        p99_ms,
        "ms",
        limit=MOST_LOADED_MS,
        limit_is="p99 under 2 ms",
        apart=f"{len(waits_s)} acknowledgements over the hub (another process), median "
        f"{statistics.median(waits_s) * 1000:.2f} ms, beside MQTT QoS 1, FULL commits and SHA-256",
    )


async def _loaded(folder: Path, channel: str) -> list[float]:
    share_interpreter_often()
    stop = threading.Event()
    async with _mqtt_traffic(folder):
        others = [
            threading.Thread(target=_hash, args=(stop,)),
            threading.Thread(target=_commit, args=(stop, folder / "journal.db")),
        ]
        for one in others:
            one.start()
        try:
            return await asyncio.to_thread(_write_blocks, channel)
        finally:
            stop.set()
            for one in others:
                await asyncio.to_thread(one.join)


def _write_blocks(channel: str) -> list[float]:
    block = random.Random(channel).randbytes(BLOCK)
    with HubBus(channel) as bus:
        link = _Timed(bus)
        loader = RomLoader(link, RomTiming(), fd=False)
        for _ in range(LOADED_BLOCKS):
            loader.write(ADDRESS, block)
    return link.waits_s


def _hash(stop: threading.Event) -> None:
    data = os.urandom(KIB * KIB)
    while not stop.wait(0.02):
        hashlib.sha256(data).digest()


def _commit(stop: threading.Event, path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
        database.execute("CREATE TABLE statuses (body BLOB)")
        while not stop.wait(0.02):
            database.execute("INSERT INTO statuses VALUES (?)", (os.urandom(300),))
            database.commit()
    database.close()


@asynccontextmanager
async def _mqtt_traffic(folder: Path) -> AsyncIterator[None]:
    """An agent's client publishes a status every 20 ms to a real broker, for the time of the block."""
    truck = truck_user("bench", hash_password("bench"))
    async with (
        EmbeddedNats(folder / "nats", users=[truck]) as broker,
        aiomqtt.Client(
            broker.host,
            broker.port,
            username="bench",
            password="bench",  # noqa: S106 - a broker of this very run
            identifier="bench",
            protocol=aiomqtt.ProtocolVersion.V311,
        ) as client,
    ):

        async def publish() -> None:
            while True:
                await client.publish(topics.status("bench", "update"), b"x" * 300, qos=1)
                await asyncio.sleep(0.02)

        traffic = asyncio.create_task(publish(), name="bench.mqtt")
        try:
            yield
        finally:
            traffic.cancel()
            await asyncio.gather(traffic, return_exceptions=True)


@contextmanager
def _far_echo(folder: Path) -> Iterator[str]:
    """A hub and what acknowledges, in another process."""
    channel = folder / "can.sock"
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "cli.benches.flash_rom", str(channel)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            if process.stdout.readline() != b"ready\n":
                raise RuntimeError("the other end did not start")
            yield str(channel)
        finally:
            process.stdin.close()


def main(channel: str) -> None:
    """The other process."""
    set_up_logs("quarry-bench-far-side", level="error")
    with hub_in_thread(channel), HubBus(channel) as bus:
        threading.Thread(target=_echo_for_ever, args=(bus,), daemon=True).start()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.read()


def _echo_for_ever(bus: can.BusABC) -> None:
    try:
        while True:
            _echo(bus)
    except can.CanOperationError:
        # The bus has been closed: the benchmark is over.
        return


if __name__ == "__main__":
    main(sys.argv[1])
