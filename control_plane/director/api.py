"""What operators do with the director: the image repository in, ECUs registered, releases chosen."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from control_plane.bodies import receive_file
from control_plane.devices.api import LABEL, WORD, DeviceId
from control_plane.director.bundle import MOST_BUNDLE_BYTES
from control_plane.director.model import EcuRecord
from control_plane.director.repository import ImageRepositoryService
from control_plane.director.service import DirectorService, Inventory
from control_plane.director.store import HeldRecord
from control_plane.storage.incoming import Incoming
from control_plane.web import PROBLEMS, Operator, etag, expected_version
from shared.trust.uptane.manifest import MOST_ECUS

Serial = Annotated[str, Field(min_length=1, max_length=200, pattern=LABEL)]
Pem = Annotated[str, Field(max_length=4000, pattern=r"^-----BEGIN PUBLIC KEY-----")]
_PEM = "-----BEGIN PUBLIC KEY-----\nMCow...\n-----END PUBLIC KEY-----\n"
_TAR: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "A tar of the published folder: `tar -C FOLDER/public -cf - .`; images that the"
        " office has may be left out.",
        "content": {"application/x-tar": {"schema": {"type": "string", "format": "binary"}}},
    }
}


class ReleaseOut(BaseModel):
    """A signed release."""

    path: str = Field(examples=["releases/haul/1.2.0/5e5e.json"], description="What a selection names.")
    name: str = Field(examples=["haul"])
    version: str = Field(examples=["1.2.0"])
    kinds: list[str] = Field(examples=[["brake-controller", "hoist-controller"]])


class ImageRepository(BaseModel):
    """The image repository as it was last taken in, by the versions of its roles."""

    root: int = Field(examples=[1])
    snapshot: int = Field(examples=[12])
    timestamp: int = Field(examples=[14])
    good_until: datetime = Field(description="The first expiry of its roles: renew it before.")
    taken_by: str = Field(examples=["admin"])
    taken_at: datetime
    releases: list[ReleaseOut]


class Images(BaseModel):
    """Images by their SHA-256."""

    model_config = ConfigDict(extra="forbid")

    sha256: list[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = Field(
        max_length=1000, examples=[["5e" * 32]]
    )


class EcuIn(BaseModel):
    """An ECU of a truck; `public_key` when it signs its own reports, else the gateway does."""

    model_config = ConfigDict(extra="forbid")

    serial: Serial = Field(examples=["SN-0017"])
    kind: str = Field(pattern=WORD, examples=["brake-controller"])
    hardware: str = Field(pattern=WORD, examples=["rev-b"])
    public_key: Pem | None = Field(default=None, examples=[_PEM])


class EcusIn(BaseModel):
    """A truck's ECUs, all of them, and the gateway that signs its manifests."""

    model_config = ConfigDict(extra="forbid")

    primary_serial: Serial = Field(examples=["GW-0004"])
    gateway_key: Pem | None = Field(
        default=None, examples=[_PEM], description="Left out: as the truck tells it when it is enrolled."
    )
    ecus: list[EcuIn] = Field(max_length=MOST_ECUS)


class HeldOut(BaseModel):
    """What an ECU held over a while. All of the image is null when it held no valid one."""

    kind: str = Field(examples=["brake-controller"])
    hardware: str = Field(examples=["rev-b"])
    believed: bool = Field(examples=[True], description="False: unsigned, replayed, or not registered.")
    filename: str | None = Field(examples=["brake-controller/1.1.0/5e5e.bin"])
    length: int | None = Field(examples=[98304])
    sha256: str | None = Field(examples=["5e" * 32])
    release_counter: int | None = Field(examples=[2])
    said_at: datetime = Field(description="The truck's clock.")
    first_seen_at: datetime
    last_seen_at: datetime


class EcuOut(BaseModel):
    """A registered ECU and what it runs."""

    serial: str = Field(examples=["SN-0017"])
    kind: str = Field(examples=["brake-controller"])
    hardware: str = Field(examples=["rev-b"])
    public_key: str | None = Field(examples=[None])
    counter: int = Field(examples=[2], description="The highest release counter that it reported.")
    holds: HeldOut | None


class Ecus(BaseModel):
    """A truck's ECUs; `version` is the ETag."""

    device_id: str = Field(examples=["truck-001"])
    version: int = Field(examples=[1])
    primary_serial: str = Field(examples=["GW-0004"])
    gateway_key: str | None = Field(examples=[_PEM], description="Null until the truck has told it.")
    manifest_at: datetime | None = Field(description="When the newest good manifest came.")
    ecus: list[EcuOut]
    unregistered: list[str] = Field(examples=[[]], description="Serials that the truck reports besides.")
    metadata_versions: dict[str, int] = Field(
        examples=[{"director/timestamp": 41, "image/timestamp": 14}],
        description="Which metadata the truck trusts, by its newest hello.",
    )


class EcuHistory(BaseModel):
    """What an ECU held, newest first."""

    items: list[HeldOut]


class SelectionIn(BaseModel):
    """A release for a truck by its path, or null for nothing."""

    model_config = ConfigDict(extra="forbid")

    release: str | None = Field(max_length=300, pattern=LABEL, examples=["releases/haul/1.2.0/5e5e.json"])


class Selection(BaseModel):
    """What a truck shall have now. `why` says why it is nothing; `signed_version` was signed last."""

    release: str | None = Field(examples=["releases/haul/1.2.0/5e5e.json"])
    why: str = Field(examples=[""])
    signed_version: int | None = Field(examples=[4])
    signed_release: str | None = Field(examples=["releases/haul/1.2.0/5e5e.json"])


def _held(record: HeldRecord) -> HeldOut:
    return HeldOut(**{name: getattr(record, name) for name in HeldOut.model_fields})


def _ecus(inventory: Inventory) -> Ecus:
    vehicle = inventory.vehicle
    known = {one.serial for one in inventory.ecus}
    return Ecus(
        device_id=vehicle.device_id,
        version=vehicle.revision,
        primary_serial=vehicle.primary_serial or "",
        gateway_key=vehicle.gateway_key,
        manifest_at=vehicle.manifest_at,
        ecus=[
            EcuOut(
                serial=one.serial,
                kind=one.kind,
                hardware=one.hardware,
                public_key=one.public_key,
                counter=one.counter,
                holds=_held(inventory.held[one.serial]) if one.serial in inventory.held else None,
            )
            for one in inventory.ecus
        ],
        unregistered=sorted(inventory.held.keys() - known),
        metadata_versions=dict(vehicle.metadata_versions),
    )


def make_router(
    repository: ImageRepositoryService, director: DirectorService, incoming: Incoming
) -> APIRouter:
    """The operators' endpoints of this room. Bundles on their way in lie in `incoming`."""
    router = APIRouter(prefix="/api/v1", tags=["director"], responses=PROBLEMS)

    @router.post(
        "/image-repository",
        status_code=201,
        openapi_extra=_TAR,
        responses={200: {"model": ImageRepository, "description": "It is here already, the same."}},
    )
    async def take_image_repository(request: Request, response: Response, by: Operator) -> ImageRepository:
        """Take in the image repository that was published offline: verified, all or nothing."""
        async with incoming.file() as path:
            await receive_file(request, path, MOST_BUNDLE_BYTES)
            taken = await repository.take(path, by=by.name)
        response.status_code = 201 if taken.changed else 200
        return await _image_repository(repository)

    @router.get("/image-repository")
    async def get_image_repository(_: Operator) -> ImageRepository:
        """The image repository as it is served, and its releases."""
        return await _image_repository(repository)

    @router.post("/image-repository/lacking")
    async def lacking_images(_: Operator, asked: Images) -> Images:
        """Those of these images that are not here: an upload must bring them."""
        return Images(sha256=await repository.lacking(asked.sha256))

    @router.put("/devices/{device_id}/ecus")
    async def put_ecus(
        request: Request, response: Response, by: Operator, device_id: DeviceId, new: EcusIn
    ) -> Ecus:
        """Register all ECUs of a truck; needs If-Match from the second time on."""
        inventory = await director.register(
            device_id,
            primary_serial=new.primary_serial,
            gateway_key=new.gateway_key,
            ecus=[EcuRecord(**one.model_dump()) for one in new.ecus],
            expected_revision=expected_version(request) if "if-match" in request.headers else None,
            by=by.name,
        )
        response.headers["ETag"] = etag(inventory.vehicle.revision)
        return _ecus(inventory)

    @router.get("/devices/{device_id}/ecus")
    async def get_ecus(response: Response, _: Operator, device_id: DeviceId) -> Ecus:
        """The ECUs of a truck and what each of them runs."""
        inventory = await director.inventory(device_id)
        response.headers["ETag"] = etag(inventory.vehicle.revision)
        return _ecus(inventory)

    @router.get("/devices/{device_id}/ecus/{serial}/history")
    async def get_ecu_history(
        _: Operator, device_id: DeviceId, serial: Annotated[str, Path(max_length=200, pattern=LABEL)]
    ) -> EcuHistory:
        """What an ECU held: the newest 200 changes."""
        return EcuHistory(items=[_held(one) for one in await director.history(device_id, serial)])

    @router.put("/devices/{device_id}/selection")
    async def put_selection(by: Operator, device_id: DeviceId, chosen: SelectionIn) -> Selection:
        """Choose a release for a truck that has no live job. A later job decides anew."""
        await director.choose(device_id, chosen.release, by=by.name)
        return await _selection(director, device_id)

    @router.get("/devices/{device_id}/selection")
    async def get_selection(_: Operator, device_id: DeviceId) -> Selection:
        """What a truck shall have now, and what was signed for it last."""
        return await _selection(director, device_id)

    return router


async def _image_repository(repository: ImageRepositoryService) -> ImageRepository:
    row, releases = await repository.status()
    return ImageRepository(
        root=row.root,
        snapshot=row.snapshot,
        timestamp=row.timestamp,
        good_until=row.good_until,
        taken_by=row.taken_by,
        taken_at=row.taken_at,
        releases=[
            ReleaseOut(
                path=path,
                name=one.name,
                version=one.version,
                kinds=sorted({target.kind for target in one.targets}),
            )
            for path, one in releases.items()
        ],
    )


async def _selection(director: DirectorService, device_id: str) -> Selection:
    directed, signed = await director.chosen(device_id)
    return Selection(
        release=directed.release_path,
        why=directed.why,
        signed_version=None if signed is None else signed.version,
        signed_release=None if signed is None else signed.release_path,
    )
