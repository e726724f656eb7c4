"""What trucks ask of the director: both repositories' files, the time, and their manifests in.

`/repo/image/...` is the same for every truck, `/repo/director/{device_id}/...` is for that one only.
All by their own bearer token; what is in the files is signed, the token is not what they trust. Only
`/repo/time` asks for none: see time_tokens.py.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field

from control_plane.bodies import receive_whole
from control_plane.devices.api import DeviceId
from control_plane.director.manifests import ManifestService
from control_plane.director.repository import TIMESTAMP, ImageRepositoryService
from control_plane.director.service import DirectorService
from control_plane.director.time_tokens import TimeTokens
from control_plane.errors import Forbidden
from control_plane.storage.answers import IMMUTABLE, MEDIA_TYPE, answer_bytes, answer_file
from control_plane.web import PROBLEMS, Device, Principal
from shared.trust.uptane.manifest import MOST_MANIFEST_BYTES

JSON = "application/json"
_FILE: dict[int | str, dict[str, Any]] = {
    200: {"description": "The whole file.", "content": {MEDIA_TYPE: {}}},
    206: {"description": "The bytes that Range asked for.", "content": {MEDIA_TYPE: {}}},
    304: {"description": "If-None-Match names what it is."},
    416: PROBLEMS[422] | {"description": "The file ends before the range begins."},
}
_TOKEN: dict[int | str, dict[str, Any]] = {
    200: {"description": "A token (shared.trust.uptane.time_token).", "content": {JSON: {}}}
}
Nonce = Annotated[str, Query(pattern=r"^[0-9a-f]{32,128}$", description="Fresh for each question.")]
Name = Annotated[str, Path(max_length=400, pattern=r"^[^\x00]*$")]


class RaisedOut(BaseModel):
    """An alarm that a manifest raised."""

    alarm: str = Field(examples=["image_mismatch"])
    serial: str = Field(examples=["SN-0017"])
    text: str = Field(examples=["holds 5e5e, 7f7f is expected"])


class ManifestTaken(BaseModel):
    """A manifest is taken over. `repeated`: it was the newest one already, and changed nothing."""

    repeated: bool = Field(examples=[False])
    alarms: list[RaisedOut]


def make_router(
    repository: ImageRepositoryService,
    director: DirectorService,
    manifests: ManifestService,
    time_tokens: TimeTokens,
) -> APIRouter:
    """The trucks' endpoints of this room."""
    router = APIRouter(tags=["director"], responses=PROBLEMS)

    @router.head("/repo/image/{name:path}", response_class=Response, include_in_schema=False)
    @router.get("/repo/image/{name:path}", response_class=Response, responses=_FILE)
    async def get_image_file(request: Request, _: Device, name: Name) -> Response:
        """A file of the image repository: metadata, a release document, or an image (by Range)."""
        served = await repository.served(name)
        if served.path is not None:
            return await answer_file(request, served.path, served.sha256)
        return _metadata(request, name, served.raw, served.sha256)

    @router.head("/repo/director/{device_id}/{name}", response_class=Response, include_in_schema=False)
    @router.get("/repo/director/{device_id}/{name}", response_class=Response, responses=_FILE)
    async def get_director_file(request: Request, by: Device, device_id: DeviceId, name: Name) -> Response:
        """A file of this truck's own director repository; its timestamp is signed when it is due."""
        _check_own(by, device_id)
        raw = await director.file(device_id, name)
        return _metadata(request, name, raw, hashlib.sha256(raw).hexdigest())

    @router.get("/repo/time", response_class=Response, responses=_TOKEN)
    async def get_time(nonce: Nonce) -> Response:
        """What time it is, signed by the time role, for a truck whose clock is wrong. Open to anyone."""
        raw = await time_tokens.token(nonce)
        return Response(raw, media_type=JSON, headers={"Cache-Control": "no-store"})

    @router.post("/api/v1/devices/{device_id}/vehicle-manifest")
    async def post_vehicle_manifest(request: Request, by: Device, device_id: DeviceId) -> ManifestTaken:
        """Take over what each ECU of this truck holds, as its gateway signed it. May be repeated."""
        _check_own(by, device_id)
        heard = await manifests.take(device_id, await receive_whole(request, MOST_MANIFEST_BYTES))
        return ManifestTaken(
            repeated=heard.repeated,
            alarms=[
                RaisedOut(alarm=one.alarm, serial=one.serial, text=one.text[:1000]) for one in heard.alarms
            ],
        )

    return router


def _check_own(by: Principal, device_id: str) -> None:
    if by.device_id != device_id:
        raise Forbidden(f"{by.name} is not {device_id}")


def _metadata(request: Request, name: str, raw: bytes, sha256: str) -> Response:
    # The one name whose bytes change.
    cache = "private, no-cache" if name == TIMESTAMP else IMMUTABLE
    return answer_bytes(request, raw, sha256, media_type=JSON, cache_control=cache)
