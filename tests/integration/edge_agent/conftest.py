"""A truck's gateway without its network: real store, real updater, real signatures; the ECU, the
download and the vehicle are played by small honest stand-ins whose failures a test scripts.

(Everything hangs on the `truck` fixture, since helper modules can't be imported here.)
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import Signer

from edge_agent.clock import Clock
from edge_agent.interlocks.safety import Policy, VehicleState
from edge_agent.store.store import Store
from edge_agent.trust.counters import Counters
from edge_agent.trust.verifier import Verifier
from edge_agent.update.updater import ComponentAccess, Timing, Updater
from firmware_flashers.base import (
    Capabilities,
    FirmwareImage,
    Flasher,
    Identity,
    NotProved,
    OnProgress,
    Progress,
    TrustClass,
    no_progress,
)
from shared.backoff import Backoff
from shared.messages import Command, CommandTarget, Delta, Status
from shared.release import FirmwareSpec
from shared.trust.document import make_document
from shared.trust.keys import key_ring, load_signer, new_key

PARKED = VehicleState(parked=True, engine_off=True, voltage_v=26.0, age_s=0.0)


class Ecu:
    """A single-slot ECU that keeps the Flasher contract; `faults[step]` are raised one by one.

    A fault of `stage` with touched=True happens in the middle of it: nothing whole is left.
    """

    def __init__(self) -> None:
        self.kind, self.hardware = "brake-controller", "rev-b"
        self.version: str | None = "1.0.0"
        self.sha256: str | None = hashlib.sha256(b"old").hexdigest()
        self.in_bootloader = False
        self.faults: dict[str, list[Exception]] = {}
        self.calls: list[str] = []
        self.may_stage = asyncio.Event()
        self.may_stage.set()
        self.staging = asyncio.Event()

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            slots=1,
            self_reverting=False,
            anti_rollback=False,
            trust_class=TrustClass.VERIFIES,
            isolated_bus=False,
        )

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Flasher]:
        self._step("open")
        yield self

    def _step(self, name: str) -> None:
        self.calls.append(name)
        if self.faults.get(name):
            raise self.faults[name].pop(0)

    async def identify(self) -> Identity:
        self._step("identify")
        return Identity(
            kind=self.kind,
            hardware=self.hardware,
            version=self.version,
            sha256=self.sha256,
            in_bootloader=self.in_bootloader,
        )

    async def stage(self, image: FirmwareImage, *, progress: OnProgress = no_progress) -> None:
        fault = self.faults["stage"].pop(0) if self.faults.get("stage") else None
        self.calls.append("stage")
        if fault is not None and getattr(fault, "touched", True) is False:
            raise fault
        self.version = self.sha256 = None
        self.in_bootloader = True
        progress(Progress(step="erasing", done_bytes=0, total_bytes=len(image.data)))
        self.staging.set()
        await self.may_stage.wait()
        if fault is not None:
            raise fault
        progress(Progress(step="writing", done_bytes=len(image.data), total_bytes=len(image.data)))
        self.version, self.sha256 = image.spec.version, hashlib.sha256(image.data).hexdigest()

    async def activate(self) -> None:
        self._step("activate")
        self.in_bootloader = self.sha256 is None

    async def verify(self, image: FirmwareImage) -> Identity:
        self._step("verify")
        if self.sha256 != image.spec.sha256:
            raise NotProved("it holds something else")
        return Identity(
            kind=self.kind,
            hardware=self.hardware,
            version=self.version,
            sha256=self.sha256,
            in_bootloader=self.in_bootloader,
        )

    async def confirm(self) -> None:
        self._step("confirm")

    async def revert(self) -> None:
        self._step("revert")


class Downloads:
    """Images by their URL; `faults` are raised one by one before anything comes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images: dict[str, bytes] = {}
        self.faults: list[Exception] = []
        self.asked: list[str] = []
        self.urgent: list[bool] = []
        self.installed: dict[str, str] = {}

    async def note_installed(self, component: str, sha256: str) -> None:
        self.installed[component] = sha256

    async def fetch(
        self,
        url: str,
        *,
        sha256: str,
        length: int,
        keep: Collection[str] = (),
        progress: Callable[[int, int], None] = lambda _done, _total: None,
        job_id: str = "",
        urgent: bool = False,
        delta: Delta | None = None,
    ) -> Path:
        self.asked.append(url)
        self.urgent.append(urgent)
        await asyncio.sleep(0)
        if self.faults:
            raise self.faults.pop(0)
        progress(0, length)
        path = self.folder / sha256
        path.write_bytes(self.images[sha256])
        progress(length, length)
        return path


class Parking:
    """The vehicle; a test sets what is known of it."""

    def __init__(self) -> None:
        self.known = PARKED
        self.asked = asyncio.Event()

    async def state(self) -> VehicleState:
        self.asked.set()
        return self.known


class Truck:
    """One gateway; `run()` lets the updater work for the length of a block."""

    def __init__(self, store: Store, counters: Counters, folder: Path) -> None:
        self.store = store
        self.counters = counters
        private, public = new_key()
        self.public = public
        self.signer: Signer = load_signer(private)
        self.ecu = Ecu()
        self.downloads = Downloads(folder)
        self.vehicle = Parking()
        self.wall = datetime(2027, 1, 1, tzinfo=UTC)
        self.clock = Clock(wall=lambda: self.wall)
        self.verifier = Verifier(keys=key_ring([public]), clock=self.clock, counters=counters)
        self.updater = self.make_updater()
        self.seen: list[Status] = []

    def make_updater(self, **other: Any) -> Updater:
        """The updater of this truck, with other parts where they are given."""
        parts: dict[str, Any] = {
            "downloader": self.downloads,
            "verifier": self.verifier,
            "components": {
                "brakes": ComponentAccess(kind="brake-controller", hardware="rev-b", open=self.ecu.open)
            },
            "vehicle": self.vehicle,
            "policy": Policy(),
            "clock": self.clock,
            "backoff": Backoff(first_s=0.001, most_s=0.01),
            "timing": Timing(
                poll_s=0.01, refused_s=0.01, link_s=0.01, url_s=3600.0, progress_s=0.01, rest_s=5.0
            ),
        }
        return Updater(self.store, **(parts | other))

    def spec(self, version: str = "2.0.0", *, counter: int = 2, **other: Any) -> FirmwareSpec:
        data = f"image {version}".encode() * 50
        return FirmwareSpec(
            **{
                "kind": "brake-controller",
                "hardware": ("rev-b",),
                "version": version,
                "release_counter": counter,
                "length": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
                **other,
            }
        )

    def command(
        self,
        job_id: str = "job-1",
        *,
        spec: FirmwareSpec | None = None,
        kind: str = "install",
        attempt: int = 1,
        revision: int = 1,
        signer: Signer | None = None,
        document: bytes | None = None,
        component: str = "brakes",
        target: dict[str, Any] | None = None,
        valid_until: datetime = datetime(2030, 1, 1, tzinfo=UTC),
        **other: Any,
    ) -> Command:
        """A command for a firmware, whose image the office then has, too."""
        spec = spec or self.spec()
        data = f"image {spec.version}".encode() * 50
        self.downloads.images.setdefault(spec.sha256, data)
        document = document or make_document(spec, signer or self.signer, valid_until)
        one = CommandTarget(
            component=component,
            version=spec.version,
            sha256=spec.sha256,
            length=spec.length,
            document=document.decode(),
            url=f"http://office/{job_id}/{revision}",
        )
        fields = {"targets": () if kind == "cancel" else (one,), **other}
        command = Command(
            command_id=f"{job_id}-{revision}",
            job_id=job_id,
            attempt=attempt,
            revision=revision,
            kind=kind,
            **fields,
        )
        if target:
            obj = command.to_obj()
            obj["targets"][0].update(target)
            return Command.from_obj(obj)
        return command

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.updater.run())
        try:
            yield
            assert not task.done(), task
        finally:
            task.cancel()
            await asyncio.wait({task})
            if not task.cancelled() and task.exception() is not None:
                await task

    async def told(self, **fields: Any) -> Status:
        """Acknowledge statuses until one has these fields; returns it. All are kept in `seen`."""
        async with asyncio.timeout(30):
            while True:
                self.store.outbox_wake.clear()
                statuses = await self.store.next_statuses(1)
                for status in statuses:
                    self.seen.append(status)
                    await self.store.acked([status.message_id], [])
                    if all(getattr(status, name) == value for name, value in fields.items()):
                        return status
                if not statuses:
                    await self.store.outbox_wake.wait()

    def story(self) -> list[str]:
        """The steps told, repeats of one step together."""
        steps: list[str] = []
        for status in self.seen:
            if not steps or steps[-1] != status.step:
                steps.append(status.step)
        return steps

    def drive(self) -> None:
        self.vehicle.known = replace(PARKED, parked=False)

    def park(self) -> None:
        self.vehicle.known = PARKED

    def later(self, **delta: float) -> datetime:
        return self.wall + timedelta(**delta)


@pytest.fixture
async def truck(tmp_path: Path) -> AsyncIterator[Truck]:
    async with Store.open(tmp_path / "agent.db") as store:
        yield Truck(store, await Counters.open(tmp_path / "counters.json"), tmp_path)
