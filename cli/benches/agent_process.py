"""The whole agent as a process beside a real office: memory, idle CPU, how soon it is heard after a start.

It is started as its service starts it, has the trust chain, two ECUs and a J1939 bus that is silent; the
truck is simulated in this process, so that none of the buses or the ECUs is counted.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cli.benches.report import Row, figure
from sim.scenarios.truck import BODY, BRAKE, DemoTruck
from sim.scenarios.yard import Yard

IDLE_S = 60.0
SETTLE_S = 5.0
MOST_RSS_MIB = 50.0
MOST_CPU_PERCENT = 0.5
IMAGE_BYTES = 16 * 1024
WITHIN_S = 90.0
LOOK_EVERY_S = 0.02
VERSION = "1.0.0"
SILENT = "stale"
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
APART = (
    "one process, with the trust chain, connected by MQTT and HTTP to a real office over loopback, two ECUs, "
    "journal in SQLite, a J1939 bus where nobody speaks"
)


@dataclass(frozen=True, kw_only=True)
class _Idle:
    """Of a process after so many seconds of rest; memory in MiB."""

    rss: float
    anonymous: float
    highest: float
    cpu_percent: float


def idle_rss() -> Row:
    """Resident memory after a minute of rest."""
    found = _idle(IDLE_S)
    return _below(
        "idle.rss",
        found.rss,
        "MiB",
        limit=MOST_RSS_MIB,
        limit_is=f"resident memory after {IDLE_S:g} s",
        apart=f"{found.anonymous:.1f} of it the process's own, the rest pages of programs in use; "
        f"{found.highest:.1f} at its start, before it gave back what only the start needed; {APART}",
    )


def idle_cpu() -> Row:
    """The CPU of that minute, in % of a core."""
    return _below(
        "idle.cpu",
        _idle(IDLE_S).cpu_percent,
        "% of a core",
        limit=MOST_CPU_PERCENT,
        limit_is=f"over {IDLE_S:g} s",
        apart=APART,
    )


def _below(case: str, value: float, unit: str, *, limit: float, limit_is: str, apart: str) -> Row:
    return Row(
        case=case,
        value=value,
        unit=unit,
        limit=limit,
        limit_is=limit_is,
        ratio=value / limit,
        goal="< limit",
        met=value < limit,
        apart=apart,
    )


def start() -> Row:
    """From exec until the office has its first word, of an agent that was enrolled before."""
    return figure(
        "start.first_status",
        asyncio.run(_start()),
        "s",
        apart="from exec until the office says that the truck is online again (its hello, taken in, read "
        f"back from the API every {LOOK_EVERY_S * 1000:.0f} ms); ECUs and office share this machine",
    )


@cache
def _idle(seconds: float) -> _Idle:
    """Both figures of one rest."""
    return asyncio.run(_rest(seconds))


async def _rest(seconds: float) -> _Idle:
    async with _truck() as (_, truck):
        await asyncio.sleep(SETTLE_S)
        before, began_s = _cpu_s(truck.agent_pid), time.monotonic()
        await asyncio.sleep(seconds)
        spent_s = _cpu_s(truck.agent_pid) - before
        memory = _memory_mib(truck.agent_pid)
        return _Idle(
            rss=memory["VmRSS"],
            anonymous=memory["RssAnon"],
            highest=memory["VmHWM"],
            cpu_percent=100 * spent_s / (time.monotonic() - began_s),
        )


async def _start() -> float:
    async with _truck() as (yard, truck):

        async def online() -> bool:
            device = await yard.office.call("GET", f"/api/v1/devices/{truck.device_id}")
            return bool(device["online"])

        await truck.kill_agent()
        async with asyncio.timeout(WITHIN_S):
            while await online():
                await asyncio.sleep(LOOK_EVERY_S)
            began_s = time.monotonic()
            truck.start_agent()
            while not await online():
                await asyncio.sleep(LOOK_EVERY_S)
            return time.monotonic() - began_s


@asynccontextmanager
async def _truck() -> AsyncIterator[tuple[Yard, DemoTruck]]:
    """An office with a director, and a truck that has told it what its ECUs run, signed."""
    with tempfile.TemporaryDirectory(prefix="quarry-bench-") as name:
        async with AsyncExitStack() as stack:
            yard = Yard(Path(name), (BRAKE, BODY), lambda _: None)
            await stack.enter_async_context(yard.office)
            old = [yard.desk.firmware(one, VERSION, counter=1, nbytes=IMAGE_BYTES) for one in (BRAKE, BODY)]
            yard.know(old)
            yard.desk.publish(keys=2)
            await yard.upload()
            truck = await yard.enrol("bench-truck", old, stack, vehicle=SILENT)
            await yard.wait_connected(truck, VERSION)
            yield yard, truck


def _cpu_s(pid: int) -> float:
    """User and system time, proc(5) stat fields 14 and 15."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def _memory_mib(pid: int) -> dict[str, float]:
    """The lines of proc(5) status that are sizes."""
    lines = (
        line.partition(":")
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.endswith(" kB")
    )
    found = {name: int(value.split()[0]) / 1024 for name, _, value in lines}
    if "VmRSS" not in found:
        raise RuntimeError("the agent has ended")
    return found
