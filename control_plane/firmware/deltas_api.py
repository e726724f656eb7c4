"""`/api/v1/deltas`: deltas between images that are published."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from control_plane.bodies import receive_file
from control_plane.firmware.deltas import DeltaRecord, DeltaService
from control_plane.storage.answers import MEDIA_TYPE
from control_plane.storage.incoming import Incoming
from control_plane.storage.urls import SHA256_PATTERN
from control_plane.web import PROBLEMS, Operator
from shared.release import MAX_IMAGE_BYTES

PATH = "/api/v1/deltas"
MOST_DELTA_BYTES = MAX_IMAGE_BYTES
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "The delta, as `quarry release` makes it.",
        "content": {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}},
    }
}
Sha256 = Annotated[str, Query(pattern=SHA256_PATTERN, examples=["5e" * 32])]


class DeltaOut(BaseModel):
    """A delta: offered to trucks that hold `base_sha256` and are to get `sha256`."""

    base_sha256: str = Field(examples=["4d" * 32])
    sha256: str = Field(examples=["5e" * 32])
    delta_sha256: str = Field(examples=["6f" * 32], description="Of the delta's own bytes.")
    length: int = Field(examples=[4120], description="Bytes of the delta.")
    image_length: int = Field(examples=[98304], description="Bytes of the whole image.")
    format: str = Field(examples=["quarry-delta-1"])
    taken_by: str = Field(examples=["admin"])
    taken_at: datetime


class Deltas(BaseModel):
    """The deltas that lead to one image."""

    items: list[DeltaOut]


def _out(one: DeltaRecord) -> DeltaOut:
    return DeltaOut(**{name: getattr(one, name) for name in DeltaOut.model_fields})


def make_router(deltas: DeltaService, incoming: Incoming) -> APIRouter:
    """The endpoints of deltas. Those on their way in lie in `incoming`."""
    router = APIRouter(prefix=PATH, tags=["firmwares"], responses=PROBLEMS)

    @router.put(
        "",
        status_code=201,
        openapi_extra=_BODY,
        responses={200: {"model": DeltaOut, "description": "It is here already, the same."}},
    )
    async def put_delta(
        request: Request, response: Response, by: Operator, base_sha256: Sha256, sha256: Sha256
    ) -> DeltaOut:
        """Give a delta; it is applied to the base at once, and kept when the image comes out."""
        async with incoming.file() as path:
            await receive_file(request, path, MOST_DELTA_BYTES)
            taken, is_new = await deltas.take(path, base_sha256=base_sha256, sha256=sha256, by=by.name)
        response.status_code = 201 if is_new else 200
        return _out(taken)

    @router.get("")
    async def list_deltas(_: Operator, sha256: Sha256) -> Deltas:
        """The deltas that lead to an image."""
        return Deltas(items=[_out(one) for one in await deltas.to(sha256)])

    return router
