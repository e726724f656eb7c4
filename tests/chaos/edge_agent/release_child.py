"""A gateway with two real flashers that can be killed at any named point, as a program: `release_child.py`.

Like truck_child.py, for a release of several ECUs: lines `FOLDER NAME#K` in, exit codes out, a forked process
a life. The ECUs are simulated MCUs in the test's process, on the CAN hub that FOLDER/channel names. A file
FOLDER/brakes_bad lets the new image of the brakes fail its health check for good, FOLDER/asks_health asks
both ECUs for their trouble codes within so many seconds. FOLDER/gateway is the agent's data folder; under
sim/power.c, and with a FOLDER/power.control, what happens in it is recorded in FOLDER/power.log, for a power
cut.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import sys
import traceback
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from edge_agent.clock import Clock
from edge_agent.delivery.downloader import Downloader
from edge_agent.delivery.transfer import Network
from edge_agent.interlocks.safety import Policy
from edge_agent.interlocks.vehicle import BenchVehicle
from edge_agent.store.release_plan import FaultBounds, HealthBounds, Planner, ReleasePlan, plan_of
from edge_agent.store.store import Store
from edge_agent.trust.counters import Counters
from edge_agent.trust.verifier import Verifier
from edge_agent.update.kept import KeptImages
from edge_agent.update.updater import ComponentAccess, Timing, Updater
from firmware_flashers.base import (
    Capabilities,
    FirmwareImage,
    Flasher,
    Identity,
    NotProved,
    OnProgress,
    ReadsFaults,
    TroubleCode,
    no_progress,
)
from firmware_flashers.registry import EcuSettings, open_component, profile_of
from shared.backoff import Backoff
from shared.logs import set_up_logs
from shared.messages import Command
from shared.trust.keys import key_ring

Kill = Callable[[str], None]
QUICK = {"reset_pause_s": 0.03, "boot_s": 5.0, "tester_present_s": 0.5}
ECUS = {
    "brakes": ("brake-controller", "rev-b", "stm32-uds", 0x7E0, 0x7E8),
    "display": ("display", "rev-a", "esp32-uds", 0x7E1, 0x7E9),
}


class Watched:
    """A flasher with a kill point after each of its steps and at each progress."""

    def __init__(self, flasher: Flasher, name: str, kill: Kill, *, bad: str | None) -> None:
        self._flasher = flasher
        self._name = name
        self._kill = kill
        self._bad = bad

    @property
    def capabilities(self) -> Capabilities:
        return self._flasher.capabilities

    async def identify(self) -> Identity:
        return await self._flasher.identify()

    async def stage(self, image: FirmwareImage, *, progress: OnProgress = no_progress) -> None:
        def seen(at: object) -> None:
            self._kill(f"{self._name}.{getattr(at, 'step', '')}")
            progress(at)  # type: ignore[arg-type]

        await self._flasher.stage(image, progress=seen)
        self._kill(f"{self._name}.staged")

    async def activate(self) -> None:
        await self._flasher.activate()
        self._kill(f"{self._name}.activated")

    async def verify(self, image: FirmwareImage) -> Identity:
        identity = await self._flasher.verify(image)
        if image.spec.version == self._bad:
            raise NotProved("its health check fails", retryable=False)
        return identity

    async def confirm(self) -> None:
        await self._flasher.confirm()
        self._kill(f"{self._name}.confirmed")

    async def revert(self) -> None:
        await self._flasher.revert()
        self._kill(f"{self._name}.reverted")

    async def trouble_codes(self, status_mask: int) -> tuple[TroubleCode, ...]:
        assert isinstance(self._flasher, ReadsFaults)
        codes = await self._flasher.trouble_codes(status_mask)
        self._kill(f"{self._name}.codes_read")
        return codes


def planner_of(folder: Path) -> Planner:
    """Where the release asks for it: no trouble code that was not there before, for some looks on end."""
    asked = folder / "asks_health"
    if not asked.exists():
        return plan_of
    faults = FaultBounds(status_mask=0x08, for_s=0.3)
    health = HealthBounds(within_s=float(asked.read_text()), every_s=0.05, faults=faults)

    def planned(command: Command, slots: Mapping[str, int]) -> ReleasePlan:
        plan = plan_of(command, slots)
        return replace(plan, targets=tuple(replace(one, health=health) for one in plan.targets))

    return planned


async def tell_office(store: Store, office: Path, kill: Kill) -> None:
    """What mqtt_link and the office do: received durably first, then acknowledged."""
    while statuses := await store.next_statuses(20):
        with office.open("a") as file:
            for one in statuses:
                file.write(json.dumps({"store_id": store.store_id, **one.to_obj()}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        kill("office.received")
        await store.acked([one.message_id for one in statuses], [])


def access(folder: Path, name: str, kill: Kill) -> ComponentAccess:
    """How the agent reaches one of the two."""
    kind, hardware, protocol, tx_id, rx_id = ECUS[name]
    settings = EcuSettings(
        component=name,
        flasher=protocol,
        interface="quarry-hub",
        channel=(folder / "channel").read_text(),
        kind=kind,
        hardware=hardware,
        tx_id=tx_id,
        rx_id=rx_id,
        security_secret_file=folder / "secret",
        profile=profile_of(protocol, {"timing": QUICK}),
    )
    bad = "2.0.0" if name == "brakes" and (folder / "brakes_bad").exists() else None

    @asynccontextmanager
    async def opened() -> AsyncIterator[Flasher]:
        async with open_component(settings) as flasher:
            yield Watched(flasher, name, kill, bad=bad)

    return ComponentAccess(kind=kind, hardware=hardware, open=opened)


async def live(folder: Path, kill: Kill) -> None:
    """From the start of the process to the end of the job and its last ack."""
    command = Command.from_json((folder / "command.json").read_bytes())
    clock = Clock(wall=lambda: datetime(2027, 1, 1, tzinfo=UTC))
    gateway = folder / "gateway"
    async with (
        Store.open(gateway / "agent.db") as store,
        Downloader(gateway / "images", Network(local_folders=(folder,))) as downloader,
    ):
        writing = False

        def statement(sql: str) -> None:
            # Called before each statement runs: before COMMIT all of a transaction is still undone.
            nonlocal writing
            word = sql.split(maxsplit=1)[0]
            if word == "BEGIN":
                writing = "IMMEDIATE" in sql
            elif writing and word == "COMMIT":
                kill("sql.COMMIT")

        await store._file.read(lambda db: db.set_trace_callback(statement))
        if not await store.jobs():
            await store.take_command(command)
        updater = Updater(
            store,
            downloader=downloader,
            verifier=Verifier(
                keys=key_ring([(folder / "public.pem").read_bytes()]),
                clock=clock,
                counters=await Counters.open(gateway / "counters.json"),
            ),
            components={name: access(folder, name, kill) for name in ECUS},
            vehicle=BenchVehicle(),
            policy=Policy(),
            clock=clock,
            backoff=Backoff(first_s=0.01, most_s=0.1),
            timing=Timing(poll_s=0.05, refused_s=0.05, link_s=0.05, progress_s=0.05, rest_s=1.0),
            kept=KeptImages(gateway / "images"),
            planner=planner_of(folder),
            kill_point=kill,
        )
        task = asyncio.create_task(updater.run())
        async with asyncio.timeout(60):
            while await store.live():
                await asyncio.wait({asyncio.create_task(updater.ended.wait()), task}, timeout=0.05)
                if task.done():
                    await task
        task.cancel()
        await asyncio.wait({task})
        await tell_office(store, folder / "office", kill)


def record(folder: Path) -> None:
    """Begin the recording of the gateway's disk, where it is wished."""
    control = folder / "power.control"
    if not control.exists():
        return
    paths = (folder / "gateway", folder / "power.log", control)
    code = ctypes.CDLL(None).quarry_power_begin(*(os.fsencode(path) for path in paths))
    assert code == 0, os.strerror(code)


def one_life(folder: Path, kill_at: str, points: Path) -> None:
    """Live, writing the kill points that were passed into the file `points`."""
    passed: list[str] = []
    wanted, _, number = kill_at.rpartition("#")

    def kill(name: str) -> None:
        passed.append(name)
        seen = len(passed) if wanted == "*" else passed.count(name)
        if wanted in {"*", name} and seen == int(number):
            points.write_text("\n".join(passed))
            os.kill(os.getpid(), signal.SIGKILL)

    record(folder)
    try:
        asyncio.run(live(folder, kill))
    finally:
        points.write_text("\n".join(passed))


def main() -> None:
    """Serve lives."""
    with Path(os.devnull).open("w") as nowhere:
        set_up_logs("release-child", level="error", stream=nowhere)
        for line in sys.stdin:
            folder, kill_at = line.rsplit(maxsplit=1)
            points = Path(folder) / "points"
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    one_life(Path(folder), kill_at, points)
                    code = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    sys.stderr.flush()
                    os._exit(code)
            _, status = os.waitpid(pid, 0)
            print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
