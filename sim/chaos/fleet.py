"""The office and the trucks of a chaos run, and what is ordered of them.

By releases, where the office has a director: each update brings both ECUs of a truck, on the whole trust
chain. By documents else: each update brings one ECU, in turn.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from shared.trust.uptane.safety_policy import SafetyPolicy
from sim.chaos.truck import ChaosTruck
from sim.mcu.server import Stm32Mcu
from sim.scenarios.desk import Desk, Firmware
from sim.scenarios.office import OfficeFailed, OfficeProcess
from sim.scenarios.truck import BODY, BRAKE, Factory
from sim.truck_config import GATEWAY_SERIAL

PRODUCTS = (BRAKE, BODY)
IMAGE_BYTES = 16 * 1024
POLL_S = 0.1
READY_WITHIN_S = 120.0


class By(StrEnum):
    """How updates are ordered and trusted."""

    RELEASES = "releases"
    DOCUMENTS = "documents"


class Fleet:
    """A resource: an office of its own process, and trucks that have been enrolled and are connected."""

    def __init__(self, folder: Path, *, trucks: int, versions: int, by: By, library: Path | None) -> None:
        self.by = by
        self.trucks: list[ChaosTruck] = []
        self._folder = folder
        self._names = [f"truck-{number:02}" for number in range(1, trucks + 1)]
        self._library = library
        self.desk = Desk(PRODUCTS)
        self.firmware = [
            {
                one.component: self.desk.firmware(one, f"1.{n}.0", counter=n + 1, nbytes=IMAGE_BYTES)
                for one in PRODUCTS
            }
            for n in range(versions + 1)
        ]
        config = self.desk.provision_office(folder / "provisioned") if by is By.RELEASES else None
        self.office = OfficeProcess(folder / "office", config)
        self._releases: list[str] = []
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.office)
            await self._publish()
            # One after the other: an agent's start takes a core.
            for name in self._names:
                self.trucks.append(await self._enrol(name, stack))
            await asyncio.gather(*(self._connected(truck) for truck in self.trucks))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def _publish(self) -> None:
        if self.by is By.RELEASES:
            for firmware in self.firmware:
                version = firmware[BRAKE.component].spec.version
                release = self.desk.release(version, tuple(firmware.values()), SafetyPolicy())
                self._releases.append(release.target_path)
            self.desk.publish(keys=2)
            headers = {"Content-Type": "application/x-tar"}
            tar = await asyncio.to_thread(self.desk.tar)
            await self.office.call("POST", "/api/v1/image-repository", content=tar, headers=headers)
            return
        for firmware in self.firmware:
            for one in firmware.values():
                files = {
                    "document": ("document.json", one.document, "application/json"),
                    "image": ("image.bin", one.image, "application/octet-stream"),
                }
                await self.office.call("POST", "/api/v1/firmwares", files=files)

    async def _enrol(self, device_id: str, stack: AsyncExitStack) -> ChaosTruck:
        ecus = [{"kind": one.kind, "hardware": one.hardware} for one in PRODUCTS]
        named = [ecu | {"component": one.component} for ecu, one in zip(ecus, PRODUCTS, strict=True)]
        await self.office.call("POST", "/api/v1/devices", json={"device_id": device_id, "components": named})
        token = (await self.office.call("POST", f"/api/v1/devices/{device_id}/enrolment-tokens"))["token"]
        old = self.firmware[0]
        truck = ChaosTruck(
            self._folder / device_id,
            device_id,
            self.office,
            products=PRODUCTS,
            factory=Factory(
                firmware_key=self.desk.firmware_key,
                firmware={name: (one.image, one.document) for name, one in old.items()},
                roots=self.desk.roots if self.by is By.RELEASES else None,
            ),
            library=self._library,
        )
        await stack.enter_async_context(truck)
        await truck.enrol(token)
        await truck.keep_factory_images(old)
        if self.by is By.RELEASES:
            serials = [
                ecu | {"serial": truck.serial(one.component)} for ecu, one in zip(ecus, PRODUCTS, strict=True)
            ]
            body = {"primary_serial": GATEWAY_SERIAL, "ecus": serials}
            await self.office.call("PUT", f"/api/v1/devices/{device_id}/ecus", json=body)
        truck.start_agent()
        return truck

    async def _connected(self, truck: ChaosTruck) -> None:
        async def known() -> bool:
            device = await self.office.call("GET", f"/api/v1/devices/{truck.device_id}")
            if self.by is By.RELEASES:
                ecus = await self.office.call("GET", f"/api/v1/devices/{truck.device_id}/ecus")
                told = [one["holds"] for one in ecus["ecus"] if one["serial"] != GATEWAY_SERIAL]
                return device["online"] is True and all(one is not None and one["believed"] for one in told)
            installed = [one["installed_version"] for one in device["components"]]
            return device["online"] is True and None not in installed

        await until(known, f"{truck.device_id} to say what it runs", within_s=READY_WITHIN_S)

    async def order(self, truck: ChaosTruck, version: int, component: str) -> str:
        """A job for this version: of both ECUs, or of `component` where there are no releases."""
        body: dict[str, Any] = {"device_id": truck.device_id}
        if self.by is By.RELEASES:
            body["release"] = self._releases[version]
        else:
            body |= {"component": component, "version": self.firmware[version][component].spec.version}
        headers = {"Idempotency-Key": secrets.token_hex(8)}
        job = await self.office.call("POST", "/api/v1/jobs", json=body, headers=headers)
        job_id: str = job["job_id"]
        return job_id

    async def job(self, job_id: str) -> dict[str, Any]:
        """The job as the office has it now."""
        return await self.office.call("GET", f"/api/v1/jobs/{job_id}")

    async def cancel(self, job_id: str) -> None:
        """What an operator does; a job that has ended meanwhile, or moved on, is left to the next try."""
        job = await self.job(job_id)
        headers = {"If-Match": f'"{job["version"]}"'}
        await self.office.call("POST", f"/api/v1/jobs/{job_id}/cancel", headers=headers)

    async def dead_letters(self) -> int:
        """How many messages the office could not take."""
        found = await self.office.call("GET", "/api/v1/dead-letters")
        return len(found["items"])


def runs(truck: ChaosTruck, component: str) -> str:
    """SHA-256 of what an ECU runs, by its flash and by nobody's word; "" where it runs nothing whole."""
    mcu = truck.bench.mcus[component]
    if isinstance(mcu, Stm32Mcu) and (mcu.boots().spec is None or mcu.uds.in_bootloader):
        return ""
    return hashlib.sha256(truck.content(component, IMAGE_BYTES)).hexdigest()


def version_of(firmware: dict[str, Firmware]) -> str:
    """A version's name."""
    return firmware[BRAKE.component].spec.version


async def until(condition: Callable[[], Awaitable[bool]], what: str, *, within_s: float) -> None:
    """Until it is so. Raises OfficeFailed when that takes too long."""
    try:
        async with asyncio.timeout(within_s):
            while not await condition():
                await asyncio.sleep(POLL_S)
    except TimeoutError as error:
        raise OfficeFailed(f"waited {within_s:.0f} s in vain for {what}") from error
