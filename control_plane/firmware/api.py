"""`/api/v1/firmwares`: publish signed firmware, look at it, withdraw it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from control_plane.firmware import deltas_api
from control_plane.firmware.service import Firmware, FirmwareService
from control_plane.firmware.upload import receive
from control_plane.storage.incoming import Incoming
from control_plane.web import PROBLEMS, Cursor, Limit, Operator, encode_cursor, time_cursor
from shared.ids import ID_PATTERN

WORD = r"^[0-9A-Za-z][0-9A-Za-z._-]{0,63}$"
# Text for people may have line breaks and tabs; PostgreSQL's text can't hold the null character.
TEXT = r"^[^\x00]*$"

FirmwareId = Annotated[str, Path(pattern=ID_PATTERN)]
_UPLOAD: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["document", "image"],
                    "additionalProperties": False,
                    "properties": {
                        "document": {
                            "type": "string",
                            "format": "binary",
                            "description": "The signed document, by `quarry release document sign`.",
                        },
                        "image": {"type": "string", "format": "binary", "description": "The image itself."},
                        "notes": {
                            "type": "string",
                            "description": "For people.",
                            "examples": ["Softer brake release below 5 km/h."],
                        },
                    },
                }
            }
        },
    }
}


class FirmwareOut(BaseModel):
    """A published firmware."""

    firmware_id: str = Field(examples=["9f1c2b7e6a5d4c3b9f1c2b7e6a5d4c3b"])
    kind: str = Field(examples=["brake-controller"])
    version: str = Field(examples=["1.1.0"])
    hardware: list[str] = Field(examples=[["rev-b", "rev-c"]], description="Revisions that it runs on.")
    release_counter: int = Field(examples=[2])
    length: int = Field(examples=[98304], description="Bytes.")
    sha256: str = Field(examples=["5e" * 32])
    state: str = Field(examples=["published"], description="published or withdrawn")
    notes: str = Field(examples=["Softer brake release below 5 km/h."])
    created_by: str = Field(examples=["admin"])
    published_at: datetime
    withdrawn_at: datetime | None
    withdrawn_why: str | None


class WholeFirmware(FirmwareOut):
    """With its signed document, byte for byte."""

    document: str = Field(examples=['{"signatures":[],"signed":{}}'])


class Firmwares(BaseModel):
    """One page, newest first."""

    items: list[FirmwareOut]
    next_cursor: str | None = Field(examples=[None])


class Withdrawal(BaseModel):
    """Why a firmware must not be installed any more."""

    model_config = ConfigDict(extra="forbid")

    why: str = Field(
        min_length=1, max_length=2000, pattern=TEXT, examples=["Brakes late on rev-c below -30 C."]
    )


def _fields(firmware: Firmware) -> dict[str, Any]:
    return {name: getattr(firmware, name) for name in FirmwareOut.model_fields}


def _whole(firmware: Firmware) -> WholeFirmware:
    return WholeFirmware(**_fields(firmware), document=firmware.document.decode())


def make_router(firmwares: FirmwareService, incoming: Incoming) -> APIRouter:
    """The endpoints of this room. Images on their way in lie in `incoming`."""
    both = APIRouter()
    router = APIRouter(prefix="/api/v1/firmwares", tags=["firmwares"], responses=PROBLEMS)

    @router.post(
        "",
        status_code=201,
        openapi_extra=_UPLOAD,
        responses={200: {"model": WholeFirmware, "description": "It was published before, the same."}},
    )
    async def publish_firmware(request: Request, response: Response, by: Operator) -> WholeFirmware:
        """Publish a firmware: its signed document and its image. The same again is answered again."""
        async with incoming.file() as image:
            upload = await receive(request, image)
            firmware, created = await firmwares.publish(
                upload.document, image, notes=upload.notes, by=by.name
            )
        response.status_code = 201 if created else 200
        response.headers["Location"] = f"/api/v1/firmwares/{firmware.firmware_id}"
        return _whole(firmware)

    @router.get("")
    async def list_firmwares(
        _: Operator,
        limit: Limit = 50,
        cursor: Cursor = None,
        kind: Annotated[str | None, Query(pattern=WORD)] = None,
    ) -> Firmwares:
        """List firmwares, newest first."""
        found = await firmwares.page(kind=kind, before=time_cursor(cursor), limit=limit + 1)
        page, more = found[:limit], len(found) > limit
        last = encode_cursor(page[-1].published_at.isoformat(), page[-1].firmware_id) if more else None
        return Firmwares(items=[FirmwareOut(**_fields(one)) for one in page], next_cursor=last)

    @router.get("/{firmware_id}")
    async def get_firmware(_: Operator, firmware_id: FirmwareId) -> WholeFirmware:
        """One firmware with its document."""
        return _whole(await firmwares.get(firmware_id))

    @router.post("/{firmware_id}/withdraw")
    async def withdraw_firmware(by: Operator, firmware_id: FirmwareId, asked: Withdrawal) -> WholeFirmware:
        """No new job gets this firmware from now on. It can't be undone; a repeat changes nothing."""
        return _whole(await firmwares.withdraw(firmware_id, why=asked.why, by=by.name))

    both.include_router(router)
    both.include_router(deltas_api.make_router(firmwares.deltas, incoming))
    return both
