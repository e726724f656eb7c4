"""The quarry of a scenario: an office with its director, the release engineer's desk, and trucks."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from shared.logs import get_log
from shared.states import JOB_TERMINAL, JobState
from shared.trust.uptane.release_document import ReleaseSpec
from sim.scenarios.desk import Desk, Firmware
from sim.scenarios.office import OfficeFailed, OfficeProcess
from sim.scenarios.report import EcuReport, JobReport, Picture, Scene, TruckReport
from sim.scenarios.truck import DemoTruck, Factory, Product
from sim.truck_config import GATEWAY_SERIAL

log = get_log("sim.scenario")

LINK_BYTES_PER_S = 64 * 1024
POLL_S = 0.25
END_WITHIN_S = 120.0
SHOW_EVERY_S = 0.2


class Yard:
    """One run. `show` is told whenever there is something new to see."""

    def __init__(self, folder: Path, products: Sequence[Product], show: Callable[[Picture], None]) -> None:
        self.products = tuple(products)
        self.desk = Desk(products)
        self.office = OfficeProcess(folder / "office", self.desk.provision_office(folder / "provisioned"))
        self.trucks: list[DemoTruck] = []
        self.scenes: list[Scene] = []
        self._folder = folder
        self._show = show
        self._picture = Picture()
        self._jobs: dict[str, list[str]] = {}
        self._expected: dict[str, Mapping[str, Firmware]] = {}
        self._versions: dict[str, tuple[int, str]] = {}

    # --- what people see --------------------------------------------------------------------------

    def stage(self, text: str) -> None:
        """Say what begins."""
        self._picture.stage = text
        self._say(text)

    def note(self, truck: DemoTruck, text: str) -> None:
        """Say what happens to one truck."""
        self._picture.row(truck.device_id).note = text
        self._say(f"  {truck.device_id}: {text}")

    def shown(self, name: str, said: str, *, ok: bool) -> None:
        """A scene has ended."""
        self.scenes.append(Scene(name=name, ok=ok, said=said))
        self._say(f"  {'ok' if ok else 'NOT SO'}: {said}")

    def _say(self, line: str) -> None:
        log.info("scenario.said", line=line.strip())
        self._picture.lines.append(line)
        self._show(self._picture)

    async def watch(self) -> None:
        """Keep what the ECUs run up to date in the picture, until it is cancelled."""
        while True:
            for truck in self.trucks:
                ecus = self._picture.row(truck.device_id).ecus
                for product in truck.products:
                    ecus[product.component] = self._runs(truck, product.component)
            self._show(self._picture)
            await asyncio.sleep(SHOW_EVERY_S)

    def _runs(self, truck: DemoTruck, component: str) -> str:
        place = truck.place(component)
        version = "" if place == "bootloader" else self.version_in(truck, component)
        return f"{version} {f'({place})' if place and version else place}".strip()

    # --- firmware ---------------------------------------------------------------------------------

    def know(self, firmwares: Sequence[Firmware]) -> None:
        """So that flashes can be read: what these images are called."""
        self._versions |= {one.spec.sha256: (one.spec.length, one.spec.version) for one in firmwares}

    def sha256_in(self, truck: DemoTruck, component: str, length: int) -> str:
        """Of the first `length` bytes that an ECU runs, from its flash."""
        return hashlib.sha256(truck.content(component, length)).hexdigest()

    def version_in(self, truck: DemoTruck, component: str) -> str:
        """What an ECU's flash holds, by the hash of it; "?" for no image that is known."""
        for length in {length for length, _ in self._versions.values()}:
            known = self._versions.get(self.sha256_in(truck, component, length))
            if known is not None:
                return known[1]
        return "?"

    def holds(self, truck: DemoTruck, firmwares: Sequence[Firmware]) -> bool:
        """Whether every ECU of a truck runs exactly its one of these."""
        return all(
            self.sha256_in(truck, one.product.component, one.spec.length) == one.spec.sha256
            and truck.place(one.product.component) != "bootloader"
            for one in firmwares
        )

    async def upload(self) -> list[str]:
        """What the desk has published to the office; returns the releases that it knows then."""
        headers = {"Content-Type": "application/x-tar"}
        taken = await self.office.call(
            "POST", "/api/v1/image-repository", content=self.desk.tar(), headers=headers
        )
        return [one["path"] for one in taken["releases"]]

    # --- trucks -----------------------------------------------------------------------------------

    async def enrol(
        self, device_id: str, old: Sequence[Firmware], stack: AsyncExitStack, *, vehicle: str
    ) -> DemoTruck:
        """A truck fresh from the factory, known to the office with its ECUs, and with a running agent."""
        ecus = [{"kind": one.kind, "hardware": one.hardware} for one in self.products]
        await self.office.call(
            "POST",
            "/api/v1/devices",
            json={
                "device_id": device_id,
                "components": [
                    ecu | {"component": one.component} for ecu, one in zip(ecus, self.products, strict=True)
                ],
            },
        )
        token = (await self.office.call("POST", f"/api/v1/devices/{device_id}/enrolment-tokens"))["token"]
        truck = await stack.enter_async_context(
            DemoTruck(
                self._folder / device_id,
                device_id,
                self.office,
                products=self.products,
                factory=Factory(
                    firmware_key=self.desk.firmware_key,
                    firmware={one.product.component: (one.image, one.document) for one in old},
                    roots=self.desk.roots,
                ),
                link_bytes_per_s=LINK_BYTES_PER_S,
                vehicle=vehicle,
            )
        )
        await truck.enrol(token)
        await self.office.call(
            "PUT",
            f"/api/v1/devices/{device_id}/ecus",
            json={
                "primary_serial": GATEWAY_SERIAL,
                "ecus": [
                    ecu | {"serial": truck.serial(one.component)}
                    for ecu, one in zip(ecus, self.products, strict=True)
                ],
            },
        )
        truck.start_agent()
        self._expected[device_id] = {one.product.component: one for one in old}
        self.trucks.append(truck)
        return truck

    async def wait_connected(self, truck: DemoTruck, version: str) -> None:
        """Until the office knows from the truck itself what it runs, by its signed manifest too."""
        said = "nothing"

        async def known() -> bool:
            nonlocal said
            device = await self.office.call("GET", f"/api/v1/devices/{truck.device_id}")
            versions = {one["component"]: one["installed_version"] for one in device["components"]}
            manifest = await self.manifest(truck)
            said = f"online: {device['online']}, its ECUs run {versions}, manifest {manifest}"
            signed = [manifest[truck.serial(one.component)] for one in truck.products]
            return device["online"] is True and set(versions.values()) == {version} and all(signed)

        await self.until(known, lambda: f"{truck.device_id} to say what it runs ({said})")

    async def manifest(self, truck: DemoTruck) -> dict[str, str | None]:
        """SHA-256 of what each ECU runs by the truck's newest signed manifest, by serial."""
        ecus = await self.office.call("GET", f"/api/v1/devices/{truck.device_id}/ecus")
        return {
            one["serial"]: one["holds"]["sha256"] if one["holds"] and one["holds"]["believed"] else None
            for one in ecus["ecus"]
        }

    async def alarms(
        self, truck: DemoTruck | None = None, *, all_of_them: bool = False
    ) -> list[dict[str, Any]]:
        """Open alarms, or all."""
        params: dict[str, Any] = {"acknowledged": all_of_them, "limit": 200}
        if truck is not None:
            params["device_id"] = truck.device_id
        items: list[dict[str, Any]] = (await self.office.call("GET", "/api/v1/alarms", params=params))[
            "items"
        ]
        return items

    # --- jobs -------------------------------------------------------------------------------------

    async def order(self, truck: DemoTruck, release: ReleaseSpec) -> str:
        """A job that brings a release to a truck."""
        job = await self.office.call(
            "POST",
            "/api/v1/jobs",
            json={"device_id": truck.device_id, "release": release.target_path},
            headers={"Idempotency-Key": secrets.token_hex(8)},
        )
        job_id: str = job["job_id"]
        self._jobs.setdefault(truck.device_id, []).append(job_id)
        return job_id

    async def look(self, job_id: str) -> dict[str, Any]:
        """The job as the office has it now; also shown."""
        job = await self.office.call("GET", f"/api/v1/jobs/{job_id}")
        row = self._picture.row(job["device_id"])
        row.state, row.step, row.progress = job["state"], job["step"] or "", job["progress"]
        return job

    async def wait_end(self, job_id: str) -> dict[str, Any]:
        """The job, once it has ended."""
        return await self.wait_job(job_id, lambda job: JobState(job["state"]) in JOB_TERMINAL, "to end")

    async def wait_job(
        self, job_id: str, condition: Callable[[dict[str, Any]], bool], what: str
    ) -> dict[str, Any]:
        """The job, once it is so. Raises OfficeFailed when that takes too long."""
        job: dict[str, Any] = {}

        async def so() -> bool:
            nonlocal job
            job = await self.look(job_id)
            return condition(job)

        await self.until(so, f"job {job_id} {what}")
        return job

    async def update(self, truck: DemoTruck, release: ReleaseSpec, firmwares: Sequence[Firmware]) -> bool:
        """Bring a release to a truck; whether it is done and really there."""
        job = await self.wait_end(await self.order(truck, release))
        return self.is_updated(truck, job, firmwares)

    def is_updated(self, truck: DemoTruck, job: Mapping[str, Any], firmwares: Sequence[Firmware]) -> bool:
        """Whether this job has brought these to a truck's ECUs, which is expected from then on."""
        self._expected[truck.device_id] = {one.product.component: one for one in firmwares}
        return job["state"] == JobState.DONE and self.holds(truck, firmwares)

    async def until(
        self,
        condition: Callable[[], Awaitable[bool]],
        what: str | Callable[[], str],
        *,
        every_s: float = POLL_S,
    ) -> None:
        """Until it is so. Raises OfficeFailed when that takes too long, AgentFailed when an agent ends."""
        try:
            async with asyncio.timeout(END_WITHIN_S):
                while not await condition():
                    for truck in self.trucks:
                        truck.check_agent()
                    await asyncio.sleep(every_s)
        except TimeoutError as error:
            said = what if isinstance(what, str) else what()
            raise OfficeFailed(f"waited {END_WITHIN_S:.0f} s in vain for {said}") from error

    # --- the end ----------------------------------------------------------------------------------

    async def report(self, truck: DemoTruck) -> TruckReport:
        """What the office has of this truck, and what its ECUs really hold."""
        jobs = []
        message_ids: list[str] = []
        for job_id in self._jobs.get(truck.device_id, []):
            job = await self.office.call("GET", f"/api/v1/jobs/{job_id}")
            error = job["error"] or {}
            failed = job["state"] == JobState.ERROR
            jobs.append(
                JobReport(
                    job_id=job_id,
                    state=job["state"],
                    release=job["release"],
                    refused_reason=error.get("text") if failed else None,
                    code=error.get("code") if failed else None,
                )
            )
            message_ids += [one["message_id"] for one in job["history"] if one["message_id"]]
        manifest = await self.manifest(truck)
        return TruckReport(
            device_id=truck.device_id,
            jobs=tuple(jobs),
            ecus=tuple(
                EcuReport(
                    component=component,
                    serial=truck.serial(component),
                    version=self.version_in(truck, component),
                    mcu_sha256=self.sha256_in(truck, component, firmware.spec.length),
                    expected_sha256=firmware.spec.sha256,
                    manifest_sha256=manifest[truck.serial(component)],
                )
                for component, firmware in self._expected[truck.device_id].items()
            ),
            statuses=len(message_ids),
            duplicates=len(message_ids) - len(set(message_ids)),
        )

    async def wait_manifests(self) -> None:
        """Until the newest manifest of every truck says what its ECUs hold, or for a few seconds."""

        async def same() -> bool:
            for truck in self.trucks:
                manifest = await self.manifest(truck)
                for component, one in self._expected[truck.device_id].items():
                    if manifest[truck.serial(component)] != self.sha256_in(truck, component, one.spec.length):
                        return False
            return True

        await self.until(same, "every truck's manifest to say what its ECUs hold")
