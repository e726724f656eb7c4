"""The first truck's story: from factory firmware to the release, through everything that goes wrong.

An office (its own process), agents (a process each), and for every truck a CAN hub with a
simulated MCU (an STM32; on every third truck an ESP32 with two slots) and a slow link. The release
goes to all; one truck first gets it tampered with in the firmware store, one truck's link is cut in the
middle of its download, one truck's agent is killed while it flashes. The story ends by itself; what
it reports is read from the office's API and from the MCUs' flash, never from what this program thinks
it did.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from shared.release import FirmwareSpec
from shared.states import JOB_TERMINAL, JobState
from shared.trust.document import make_document
from shared.trust.keys import load_signer, new_key
from sim.scenarios.office import OfficeFailed, OfficeProcess
from sim.scenarios.truck import BODY, BRAKE, DemoTruck, Product

MOST_TRUCKS = 50
PRODUCTS = (BRAKE, BODY)
OLD_VERSION, NEW_VERSION = "1.0.0", "1.1.0"
IMAGE_BYTES = 96 * 1024
LINK_BYTES_PER_S = 96 * 1024
CUT_FOR_S = 2.0
POLL_S = 0.2
END_WITHIN_S = 240.0


@dataclass(kw_only=True)
class Row:
    """One truck as a person watches it."""

    device_id: str
    state: str = "-"
    step: str = ""
    progress: int | None = None
    note: str = ""


@dataclass(kw_only=True)
class Picture:
    """What to show now."""

    stage: str = ""
    rows: list[Row] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class JobReport:
    """A job's end. `refused_reason` is the truck's own sentence, when it refused."""

    job_id: str
    state: str
    refused_reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class TruckReport:
    """A truck's end. `statuses` that the office keeps of it; `duplicates` of them that it has twice."""

    device_id: str
    jobs: tuple[JobReport, ...]
    mcu_sha256: str
    expected_sha256: str
    statuses: int
    duplicates: int


@dataclass(frozen=True, kw_only=True)
class Report:
    """The story's end. `ok`: every MCU holds exactly the release, and every job ended as it must."""

    ok: bool
    trucks: tuple[TruckReport, ...]
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """The object that `--json` prints; an unset `refused_reason` is left out."""
        obj = asdict(self)
        for truck in obj["trucks"]:
            truck["jobs"] = [{k: v for k, v in job.items() if v is not None} for job in truck["jobs"]]
        obj["seconds"] = round(self.seconds, 2)
        return obj


@dataclass(frozen=True, kw_only=True)
class Firmware:
    """One signed version."""

    version: str
    image: bytes
    document: bytes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.image).hexdigest()


class Story:
    """The parts of one run, and its acts in order."""

    def __init__(self, folder: Path, office: OfficeProcess, show: Callable[[Picture], None]) -> None:
        self._folder = folder
        self._office = office
        self._show = show
        self._picture = Picture()
        self._private, self.public = new_key()
        self._jobs: dict[str, list[str]] = {}
        self._old = {one: self._sign(one, OLD_VERSION, counter=1) for one in PRODUCTS}
        self._new = {one: self._sign(one, NEW_VERSION, counter=2) for one in PRODUCTS}

    def _sign(self, product: Product, version: str, *, counter: int) -> Firmware:
        image = product.image(version, IMAGE_BYTES)
        spec = FirmwareSpec(
            kind=product.kind,
            hardware=(product.hardware,),
            version=version,
            release_counter=counter,
            length=len(image),
            sha256=hashlib.sha256(image).hexdigest(),
        )
        expires_at = datetime.now(UTC) + timedelta(days=3650)
        return Firmware(
            version=version, image=image, document=make_document(spec, load_signer(self._private), expires_at)
        )

    def stage(self, text: str) -> None:
        """Say what begins."""
        self._picture.stage = text
        self._show(self._picture)

    def note(self, device_id: str, text: str) -> None:
        """Say what happens to one truck."""
        self._row(device_id).note = text
        self._show(self._picture)

    def _row(self, device_id: str) -> Row:
        for row in self._picture.rows:
            if row.device_id == device_id:
                return row
        row = Row(device_id=device_id)
        self._picture.rows.append(row)
        return row

    async def publish(self) -> None:
        """Both versions for each kind of ECU, as a release engineer does."""
        for firmware in (*self._old.values(), *self._new.values()):
            await self._office.call(
                "POST",
                "/api/v1/firmwares",
                files={
                    "document": ("document.json", firmware.document, "application/json"),
                    "image": ("image.bin", firmware.image, "application/octet-stream"),
                },
            )

    async def enrol(self, device_id: str, product: Product, stack: AsyncExitStack) -> DemoTruck:
        """A truck fresh from the factory, known to the office and connected to it."""
        old = self._old[product]
        await self._office.call(
            "POST",
            "/api/v1/devices",
            json={
                "device_id": device_id,
                "components": [
                    {"component": product.component, "kind": product.kind, "hardware": product.hardware}
                ],
            },
        )
        token = (await self._office.call("POST", f"/api/v1/devices/{device_id}/enrolment-tokens"))["token"]
        truck = await stack.enter_async_context(
            DemoTruck(
                self._folder / device_id,
                device_id,
                self._office,
                product=product,
                firmware_key=self.public,
                image=old.image,
                document=old.document,
                link_bytes_per_s=LINK_BYTES_PER_S,
            )
        )
        await truck.enrol(token)
        truck.start_agent()
        return truck

    async def wait_connected(self, device_id: str) -> None:
        """Until the office knows from the truck itself what it runs."""

        async def known() -> bool:
            device = await self._office.call("GET", f"/api/v1/devices/{device_id}")
            versions = [one["installed_version"] for one in device["components"]]
            return device["online"] is True and versions == [OLD_VERSION]

        await self._until(known, f"{device_id} to say what it runs")

    async def order(self, truck: DemoTruck) -> str:
        """A job for the new version."""
        device_id = truck.device_id
        job = await self._office.call(
            "POST",
            "/api/v1/jobs",
            json={"device_id": device_id, "component": truck.product.component, "version": NEW_VERSION},
            headers={"Idempotency-Key": secrets.token_hex(8)},
        )
        job_id: str = job["job_id"]
        self._jobs.setdefault(device_id, []).append(job_id)
        return job_id

    async def watch(self, job_id: str) -> dict[str, Any]:
        """The job as the office has it now; also shown."""
        job = await self._office.call("GET", f"/api/v1/jobs/{job_id}")
        row = self._row(job["device_id"])
        row.state, row.step, row.progress = job["state"], job["step"] or "", job["progress"]
        self._show(self._picture)
        return job

    async def wait_end(self, job_id: str) -> JobState:
        """Until the job has ended."""

        async def ended() -> bool:
            return JobState((await self.watch(job_id))["state"]) in JOB_TERMINAL

        await self._until(ended, f"job {job_id} to end")
        return JobState((await self.watch(job_id))["state"])

    async def _until(self, condition: Callable[[], Awaitable[bool]], what: str) -> None:
        try:
            async with asyncio.timeout(END_WITHIN_S):
                while not await condition():
                    await asyncio.sleep(POLL_S)
        except TimeoutError as error:
            raise OfficeFailed(f"waited {END_WITHIN_S:.0f} s in vain for {what}") from error

    async def refuse_tampered(self, truck: DemoTruck) -> None:
        """Someone who holds the firmware store changes one bit; the truck must not install it."""
        self.note(truck.device_id, "its image was tampered with in the store")
        new = self._new[truck.product]
        stored = self._office.stored_image(new.sha256)
        tampered = bytearray(new.image)
        tampered[len(tampered) // 2] ^= 1
        await asyncio.to_thread(replace_bytes, stored, bytes(tampered))
        try:
            state = await self.wait_end(await self.order(truck))
        finally:
            await asyncio.to_thread(replace_bytes, stored, new.image)
        self.note(truck.device_id, f"refused the tampered image: {state}; now the good one")

    async def cut_link(self, truck: DemoTruck) -> None:
        """The link goes in the middle of the download and comes back later."""
        truck.cut_link_after(IMAGE_BYTES // 2)

        async def is_cut() -> bool:
            return truck.link_is_cut

        await self._until(is_cut, f"{truck.device_id} to be half-way through its download")
        truck.cut_link()
        self.note(truck.device_id, "link cut in the middle of the download")
        await asyncio.sleep(CUT_FOR_S)
        truck.restore_link()
        self.note(truck.device_id, "link restored: goes on where it stopped")

    async def kill_agent(self, truck: DemoTruck) -> None:
        """SIGKILL while the MCU is being programmed; a service manager starts the agent again."""

        async def is_programming() -> bool:
            return truck.programmed_bytes >= IMAGE_BYTES // 4

        await self._until(is_programming, f"{truck.device_id} to program its MCU")
        await truck.kill_agent()
        self.note(truck.device_id, "agent killed (SIGKILL) while it was flashing")
        truck.start_agent()

    async def report(self, truck: DemoTruck) -> TruckReport:
        """What the office has of this truck, and what its MCU really holds."""
        jobs = []
        message_ids: list[str] = []
        for job_id in self._jobs[truck.device_id]:
            job = await self._office.call("GET", f"/api/v1/jobs/{job_id}")
            refused = (job["error"] or {}).get("text") if job["state"] == JobState.ERROR else None
            jobs.append(JobReport(job_id=job_id, state=job["state"], refused_reason=refused))
            message_ids += [one["message_id"] for one in job["history"] if one["message_id"]]
        return TruckReport(
            device_id=truck.device_id,
            jobs=tuple(jobs),
            mcu_sha256=hashlib.sha256(truck.mcu_content(IMAGE_BYTES)).hexdigest(),
            expected_sha256=self._new[truck.product].sha256,
            statuses=len(message_ids),
            duplicates=len(message_ids) - len(set(message_ids)),
        )


def replace_bytes(path: Path, data: bytes) -> None:
    """Put other bytes in a file's place in one step."""
    part = path.with_suffix(".part")
    part.write_bytes(data)
    part.replace(path)


def is_right(report: TruckReport) -> bool:
    """The MCU holds exactly the release, the last job is done, and what came before was refused."""
    *before, last = report.jobs
    return (
        report.mcu_sha256 == report.expected_sha256
        and last.state == JobState.DONE
        and report.duplicates == 0
        and all(job.state == JobState.ERROR and job.refused_reason for job in before)
    )


async def play(folder: Path, *, trucks: int, show: Callable[[Picture], None]) -> Report:
    """Play the story with so many trucks; all data goes into `folder`.

    With fewer than three trucks one truck gets more than one of the faults. Raises OtaError when a
    part can't be started.
    """
    began = time.monotonic()
    async with AsyncExitStack() as stack:
        office = OfficeProcess(folder / "office")
        story = Story(folder, office, show)
        story.stage("starting the office")
        await stack.enter_async_context(office)
        story.stage("publishing two signed versions, enrolling trucks")
        await story.publish()
        names = [f"truck-{number:03}" for number in range(1, trucks + 1)]
        products = [PRODUCTS[number % 3 // 2] for number in range(trucks)]
        fleet = await asyncio.gather(
            *(story.enrol(name, product, stack) for name, product in zip(names, products, strict=True))
        )
        await asyncio.gather(*(story.wait_connected(name) for name in names))
        cut, killed, tampered = (fleet[n % trucks] for n in (0, 1, 2))

        story.stage("a tampered image: must be refused")
        await story.refuse_tampered(tampered)

        story.stage(f"updating every truck from {OLD_VERSION} to {NEW_VERSION}")
        faults = [
            asyncio.create_task(story.cut_link(cut), name="fault.cut"),
            asyncio.create_task(story.kill_agent(killed), name="fault.kill"),
        ]
        jobs = [await story.order(truck) for truck in fleet]
        await asyncio.gather(*(story.wait_end(job_id) for job_id in jobs), *faults)

        story.stage("reading every MCU's flash")
        reports = tuple([await story.report(truck) for truck in fleet])
    return Report(
        ok=all(is_right(report) for report in reports),
        trucks=reports,
        seconds=time.monotonic() - began,
    )
