"""The whole agent as a process beside a real office: memory, idle CPU, how soon it is heard after a start.

Its truck is simulated in this process, so that none of the bus or the MCU is counted.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cli.benches.report import Row, figure, within
from shared.release import FirmwareSpec
from shared.trust.document import make_document
from shared.trust.keys import load_signer, new_key
from sim.scenarios.office import OfficeProcess
from sim.scenarios.truck import BRAKE, DemoTruck

IDLE_S = 60.0
SETTLE_S = 5.0
MOST_RSS_MIB = 50.0
MOST_CPU_PERCENT = 0.5
IMAGE_BYTES = 16 * 1024
STARTS_WITHIN_S = 60.0
DEVICE_ID = "bench-truck"
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
APART = "one process, connected by MQTT to a real office, journal in SQLite, silent bus"


def idle() -> tuple[Row, Row]:
    """Memory after a minute of rest, and the CPU of that minute."""
    rss_mib, cpu_percent = asyncio.run(_idle())
    return (
        within(
            "idle.rss", rss_mib, "MiB", limit=MOST_RSS_MIB, limit_is="resident memory after 60 s", apart=APART
        ),
        within(
            "idle.cpu",
            cpu_percent,
            "% of a core",
            limit=MOST_CPU_PERCENT,
            limit_is="over 60 s",
            apart=APART,
        ),
    )


def idle_rss() -> Row:
    """See idle."""
    return idle()[0]


def idle_cpu() -> Row:
    """See idle."""
    return idle()[1]


def start() -> Row:
    """From exec until the office has its first word."""
    return figure(
        "start.first_status",
        asyncio.run(_start()),
        "s",
        apart="from exec to the first message at the office (its hello, read back from the API)",
    )


async def _idle() -> tuple[float, float]:
    async with _truck() as (truck, heard):
        truck.start_agent()
        await _until(heard)
        await asyncio.sleep(SETTLE_S)
        before = _cpu_s(truck.agent_pid)
        started = time.monotonic()
        await asyncio.sleep(IDLE_S)
        spent = _cpu_s(truck.agent_pid) - before
        return _rss_mib(truck.agent_pid), 100 * spent / (time.monotonic() - started)


async def _start() -> float:
    async with _truck() as (truck, heard):
        started = time.monotonic()
        truck.start_agent()
        await _until(heard)
        return time.monotonic() - started


@asynccontextmanager
async def _truck() -> AsyncIterator[tuple[DemoTruck, Callable[[], Awaitable[bool]]]]:
    """An office and an enrolled truck whose agent is not started; and whether the office has heard of it."""
    with tempfile.TemporaryDirectory(prefix="quarry-bench-") as name:
        folder = Path(name)
        private, public = new_key()
        image = BRAKE.image("1.0.0", IMAGE_BYTES)
        spec = FirmwareSpec(
            kind=BRAKE.kind,
            hardware=(BRAKE.hardware,),
            version="1.0.0",
            release_counter=1,
            length=len(image),
            sha256=hashlib.sha256(image).hexdigest(),
        )
        document = make_document(spec, load_signer(private), datetime.now(UTC) + timedelta(days=30))
        office = OfficeProcess(folder / "office")
        async with office:
            await office.call(
                "POST",
                "/api/v1/devices",
                json={
                    "device_id": DEVICE_ID,
                    "components": [
                        {"component": BRAKE.component, "kind": BRAKE.kind, "hardware": BRAKE.hardware}
                    ],
                },
            )
            token = (await office.call("POST", f"/api/v1/devices/{DEVICE_ID}/enrolment-tokens"))["token"]
            truck = DemoTruck(
                folder / "truck",
                DEVICE_ID,
                office,
                product=BRAKE,
                firmware_key=public,
                image=image,
                document=document,
                link_bytes_per_s=1e9,
            )

            async def heard() -> bool:
                return bool((await office.call("GET", f"/api/v1/devices/{DEVICE_ID}"))["online"])

            async with truck:
                await truck.enrol(token)
                yield truck, heard


async def _until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(STARTS_WITHIN_S):
        while not await condition():
            await asyncio.sleep(0.02)


def _cpu_s(pid: int) -> float:
    """User and system time, proc(5) stat fields 14 and 15."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def _rss_mib(pid: int) -> float:
    """VmRSS of proc(5) status."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("the agent has ended")
