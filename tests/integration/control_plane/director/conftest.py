"""The director behind real HTTP handling on a real database, and a truck that verifies what it gets."""

from __future__ import annotations

import io
import secrets
import tarfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fastapi import FastAPI
from securesystemslib.signer import CryptoSigner

from control_plane.access.service import AccessService
from control_plane.body_limit import BodyLimit
from control_plane.db import Database
from control_plane.devices.service import DeviceService
from control_plane.director.bundle import MOST_BUNDLE_BYTES
from control_plane.director.keys import KeyFile, open_director
from control_plane.director.room import DirectorRoom, Trust, make_room
from control_plane.firmware.service import FirmwareService
from control_plane.jobs import api as jobs_api
from control_plane.jobs.service import JobService
from control_plane.loops import Wake
from control_plane.metrics import Metrics
from control_plane.outbox.service import OutboxService
from control_plane.storage.folder import FolderFiles
from control_plane.web import add_problem_handlers
from shared.trust.uptane.manifest import EcuReport, InstalledImage, make_manifest
from shared.trust.uptane.release_document import ReleaseSpec
from shared.trust.uptane.steps import Wanted
from shared.trust.uptane.store import TrustedStore, provision
from shared.trust.uptane.time_policy import Reading, TimePolicy
from shared.trust.uptane.verify import Outcome, verify
from sim.uptane_world import BUILT_AT, UptaneWorld

TRUCK = "truck-7"
PRIMARY = "GW-7"


def pem_of(signer: CryptoSigner) -> str:
    """The public half, as an operator registers it."""
    key = serialization.load_pem_private_key(signer.private_bytes, None).public_key()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_bytes(serialization.Encoding.PEM, form).decode()


def write_keys(path: Path, signers: tuple[CryptoSigner, ...]) -> None:
    """The director's key file."""
    path.touch(0o600)
    path.write_bytes(b"".join(signer.private_bytes for signer in signers))


def write_roots(folder: Path, world: UptaneWorld) -> Path:
    """The director's published folder."""
    folder.mkdir(exist_ok=True)
    for name, raw in world.director.published.items():
        (folder / name).write_bytes(raw)
    return folder


def tar_of(files: Mapping[str, bytes]) -> bytes:
    """A tar as `tar -C public -cf - .` makes it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, raw in files.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))
    return out.getvalue()


def image_files(world: UptaneWorld) -> dict[str, bytes]:
    """The image repository's published folder."""
    return {name: raw for (repository, name), raw in world.served.items() if repository == "image"}


@dataclass(kw_only=True)
class Yard:
    """The office with its director, an operator, trucks with tokens, and the world offline."""

    world: UptaneWorld
    room: DirectorRoom
    jobs: JobService
    devices: DeviceService
    firmwares: FirmwareService
    db: Database
    app: FastAPI
    metrics: Metrics
    operator: httpx.AsyncClient
    access: AccessService
    stack: AsyncExitStack
    clock: list[datetime]
    gateway: CryptoSigner = field(default_factory=lambda: CryptoSigner(Ed25519PrivateKey.generate()))
    truck: httpx.AsyncClient = None  # type: ignore[assignment]
    seq: int = 0

    async def add_truck(self, device_id: str) -> httpx.AsyncClient:
        """Register and enrol a truck; a client with its token."""
        async with self.db.transaction() as connection:
            await self.devices.create(connection, device_id=device_id, by="test")
        token = secrets.token_urlsafe(32)
        enrolment = await self.access.new_enrolment_token(device_id)
        await self.access.enrol(
            enrolment_token=enrolment.token, http_token=token, mqtt_password=secrets.token_urlsafe(32)
        )
        return await self.client(token)

    async def client(self, token: str) -> httpx.AsyncClient:
        return await self.stack.enter_async_context(
            httpx.AsyncClient(
                transport=httpx.ASGITransport(app=self.app),
                base_url="http://office.test",
                headers={"Authorization": f"Bearer {token}"},
            )
        )

    async def register(self, *, serials: Mapping[str, str] | None = None, **headers: str) -> httpx.Response:
        """Register the truck's ECUs; `serials` gives those with keys of their own."""
        keys = serials or {}
        return await self.operator.put(
            f"/api/v1/devices/{TRUCK}/ecus",
            json={
                "primary_serial": PRIMARY,
                "gateway_key": pem_of(self.gateway),
                "ecus": [
                    {
                        "serial": ecu.serial,
                        "kind": ecu.kind,
                        "hardware": ecu.hardware,
                        "public_key": keys.get(ecu.serial),
                    }
                    for ecu in self.world.vehicle.ecus
                ],
            },
            headers=headers,
        )

    async def publish(self, files: Mapping[str, bytes] | None = None) -> httpx.Response:
        """Upload the image repository."""
        return await self.operator.post(
            "/api/v1/image-repository", content=tar_of(image_files(self.world) if files is None else files)
        )

    async def choose(self, release: ReleaseSpec | None, device_id: str = TRUCK) -> httpx.Response:
        path = None if release is None else release.target_path
        return await self.operator.put(f"/api/v1/devices/{device_id}/selection", json={"release": path})

    async def get(self, wanted: Wanted, client: httpx.AsyncClient | None = None) -> bytes | None:
        base = "/repo/image" if wanted.repository == "image" else f"/repo/director/{TRUCK}"
        answer = await (client or self.truck).get(f"{base}/{wanted.name}")
        if answer.status_code == 404:
            return None
        assert answer.status_code == 200, answer.text
        return answer.content[: wanted.most_bytes + 1]

    async def verify(
        self, store: TrustedStore, *, tamper: Callable[[Wanted, bytes | None], bytes | None] | None = None
    ) -> Outcome:
        """A whole verification on the truck, each file over HTTP; `tamper` sits on the link."""
        steps = verify(store, self.world.vehicle, Reading(wall=self.clock[0]), TimePolicy(built_at=BUILT_AT))
        raw: bytes | None = None
        try:
            wanted = next(steps)
            while True:
                raw = await self.get(wanted)
                wanted = steps.send(raw if tamper is None else tamper(wanted, raw))
        except StopIteration as ended:
            outcome: Outcome = ended.value
            return outcome

    def manifest(
        self,
        held: Mapping[str, tuple[ReleaseSpec, int]] | ReleaseSpec | None = None,
        *,
        seq: int | None = None,
        store_id: str = "store-1",
        at: datetime | None = None,
        signer: CryptoSigner | None = None,
        report: Mapping[str, Any] | None = None,
    ) -> bytes:
        """A manifest of the truck: what its ECUs hold is the firmware of a release, or nothing."""
        self.seq = self.seq + 1 if seq is None else seq
        at = at or self.clock[0]
        reports = []
        for ecu in self.world.vehicle.ecus:
            installed = None
            if isinstance(held, ReleaseSpec):
                target = held.target_for(ecu.kind, ecu.hardware)
                assert target is not None
                installed = InstalledImage(
                    filename=target.spec.target_path,
                    length=target.length,
                    sha256=target.sha256,
                    release_counter=target.release_counter,
                )
            fields: dict[str, Any] = {
                "serial": ecu.serial,
                "kind": ecu.kind,
                "hardware": ecu.hardware,
                "installed": installed,
                "store_id": store_id,
                "seq": self.seq,
                "at": at.strftime("%Y-%m-%dT%H:%M:%SZ"),
            }
            reports.append(
                EcuReport(**(fields | dict(report or {}))) if ecu.serial == "SN-0" else EcuReport(**fields)
            )
        return make_manifest(
            TRUCK,
            PRIMARY,
            reports,
            store_id=store_id,
            seq=self.seq,
            at=at,
            gateway=signer or self.gateway,
            ecu_signers={},
        )

    async def tell(self, manifest: bytes, device_id: str = TRUCK) -> httpx.Response:
        return await self.truck.post(f"/api/v1/devices/{device_id}/vehicle-manifest", content=manifest)

    async def alarms(self, **params: Any) -> list[tuple[str, str, int]]:
        """(alarm, serial, count) of the open alarms, by name."""
        answer = await self.operator.get("/api/v1/alarms", params=params)
        assert answer.status_code == 200, answer.text
        return sorted((one["alarm"], one["serial"], one["count"]) for one in answer.json()["items"])


@pytest.fixture
def world() -> UptaneWorld:
    return UptaneWorld()


@pytest.fixture
async def yard(
    world: UptaneWorld,
    database: Database,
    access: AccessService,
    devices: DeviceService,
    firmwares: FirmwareService,
    files: FolderFiles,
    admin_token: str,
    tmp_path: Path,
) -> AsyncIterator[Yard]:
    key = tmp_path / "director-key"
    write_keys(key, tuple(world.keys[f"director/{role}/1"] for role in ("targets", "snapshot", "timestamp")))
    director = open_director(KeyFile(path=key), write_roots(tmp_path / "director", world))
    provisioned = provision(
        director_root=world.director.published["1.root.json"],
        image_root=world.image.published["1.root.json"],
    )
    clock, metrics = [world.now], Metrics()
    jobs = JobService(database, devices, firmwares, OutboxService())
    room = make_room(
        Trust(
            director=director,
            provisioned=provisioned,
            time_signers=(world.keys["director/time/1"],),
        ),
        db=database,
        files=files,
        deltas=firmwares.deltas,
        devices=devices,
        jobs=jobs,
        metrics=metrics,
        life=timedelta(days=1),
        clock=lambda: clock[0],
    )
    app = FastAPI()
    add_problem_handlers(app)
    app.add_middleware(BodyLimit, most={"/api/v1/image-repository": MOST_BUNDLE_BYTES})
    app.state.authenticate = access.authenticate
    room.add_to(app)
    app.include_router(
        jobs_api.make_router(jobs, database, outbox=Wake(), metrics=metrics, releases=room.release_jobs)
    )
    async with AsyncExitStack() as stack:
        yard = Yard(
            world=world,
            room=room,
            jobs=jobs,
            devices=devices,
            firmwares=firmwares,
            db=database,
            app=app,
            metrics=metrics,
            operator=None,  # type: ignore[arg-type]
            access=access,
            stack=stack,
            clock=clock,
        )
        yard.operator = await yard.client(admin_token)
        yard.truck = await yard.add_truck(TRUCK)
        yield yard
