"""`/api/v1/devices`: register trucks, look at them, change what is registered."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from control_plane.access.idempotency import Answer, IdempotencyHeader, key_of, once
from control_plane.db import Connection, Database
from control_plane.devices.model import MOST_COMPONENTS
from control_plane.devices.service import DeviceRecord, DeviceService, NewComponent
from control_plane.errors import Invalid
from control_plane.web import (
    PROBLEMS,
    Cursor,
    Limit,
    Operator,
    decode_cursor,
    encode_cursor,
    etag,
    expected_version,
)
from shared.ids import ID_PATTERN

# The words of shared.release, so that a firmware can be made for whatever is registered.
WORD = r"^[0-9A-Za-z][0-9A-Za-z._-]{0,63}$"
VERSION = r"^[0-9A-Za-z][0-9A-Za-z.+_-]{0,63}$"
# Names for people: anything but control characters, which PostgreSQL's text partly can't hold.
LABEL = r"^[^\x00-\x1f\x7f]*$"

DeviceId = Annotated[str, Path(pattern=ID_PATTERN, examples=["truck-001"])]
Label = Annotated[str, Field(max_length=200, pattern=LABEL)]


class ComponentIn(BaseModel):
    """A component to register. Give what is installed only while the truck can't say it itself."""

    model_config = ConfigDict(extra="forbid")

    component: str = Field(pattern=WORD, examples=["brake"])
    kind: str = Field(pattern=WORD, examples=["brake-controller"])
    hardware: str = Field(pattern=WORD, examples=["rev-b"])
    installed_version: str | None = Field(default=None, pattern=VERSION, examples=["1.0.0"])
    installed_sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$", examples=["5e" * 32])

    def value(self) -> NewComponent:
        """As the service takes it."""
        return NewComponent(**self.model_dump())


class DeviceIn(BaseModel):
    """A truck to register."""

    model_config = ConfigDict(extra="forbid")

    device_id: str = Field(pattern=ID_PATTERN, examples=["truck-001"])
    name: Label = Field(default="", examples=["KAMAZ 65115 No. 17"])
    site: Label = Field(default="", examples=["north-pit"])
    components: list[ComponentIn] = Field(default_factory=list, max_length=MOST_COMPONENTS)


class DeviceChange(BaseModel):
    """What to change; `components` replaces the whole list. What is left out stays."""

    model_config = ConfigDict(extra="forbid")

    name: Label | None = Field(default=None, examples=["KAMAZ 65115 No. 18"])
    site: Label | None = Field(default=None, examples=["south-pit"])
    components: list[ComponentIn] | None = Field(default=None, max_length=MOST_COMPONENTS)


class ComponentOut(BaseModel):
    """A component: what is registered, and what the truck says of it.

    `reported_kind` and `reported_hardware` are set when the truck says otherwise than is registered:
    then a person has to look, and to correct one of the two.
    """

    component: str = Field(examples=["brake"])
    kind: str = Field(examples=["brake-controller"])
    hardware: str = Field(examples=["rev-b"])
    installed_version: str | None = Field(examples=["1.0.0"])
    installed_sha256: str | None = Field(examples=["5e" * 32])
    reported_kind: str | None = Field(examples=[None])
    reported_hardware: str | None = Field(examples=["rev-c"])
    in_bootloader: bool = Field(examples=[False])
    reported_at: datetime | None = Field(description="The truck's clock.")


class DeviceOut(BaseModel):
    """A truck. `version` is its ETag; coming and going does not change it."""

    device_id: str = Field(examples=["truck-001"])
    name: str = Field(examples=["KAMAZ 65115 No. 17"])
    site: str = Field(examples=["north-pit"])
    version: int = Field(examples=[3])
    online: bool = Field(examples=[True])
    last_seen_at: datetime | None
    agent_version: str | None = Field(examples=["0.1.0"])
    features: list[str] = Field(examples=[["install", "cancel"]])
    created_at: datetime
    updated_at: datetime
    components: list[ComponentOut]


class Devices(BaseModel):
    """One page, by device_id."""

    items: list[DeviceOut]
    next_cursor: str | None = Field(examples=["WyJ0cnVjay0wMDEiXQ"])


def _out(device: DeviceRecord) -> DeviceOut:
    fields: dict[str, Any] = {name: getattr(device, name) for name in DeviceOut.model_fields}
    fields["components"] = [
        ComponentOut(**{name: getattr(one, name) for name in ComponentOut.model_fields})
        for one in device.components
    ]
    return DeviceOut(**fields)


def make_router(devices: DeviceService, db: Database) -> APIRouter:
    """The endpoints of this room."""
    router = APIRouter(prefix="/api/v1/devices", tags=["devices"], responses=PROBLEMS)

    @router.post("", status_code=201, response_model=DeviceOut)
    async def create_device(
        by: Operator, new: DeviceIn, idempotency_key: IdempotencyHeader = None
    ) -> Response:
        """Register a truck. It connects after it has been enrolled."""

        async def act(connection: Connection) -> Answer:
            device = await devices.create(
                connection,
                device_id=new.device_id,
                name=new.name,
                site=new.site,
                components=[one.value() for one in new.components],
                by=by.name,
            )
            return Answer(
                status=201,
                body=_out(device).model_dump(mode="json"),
                headers={
                    "ETag": etag(device.version),
                    "Location": f"/api/v1/devices/{device.device_id}",
                },
            )

        answer = await once(db, key_of(by, idempotency_key, "create_device", new), act)
        return answer.as_response()

    @router.get("")
    async def list_devices(
        _: Operator,
        limit: Limit = 50,
        cursor: Cursor = None,
        site: Annotated[str | None, Query(max_length=200, pattern=LABEL)] = None,
        online: Annotated[bool | None, Query(description="Only connected ones, or only others.")] = None,
    ) -> Devices:
        """List trucks by their ids."""
        after = None if cursor is None else _known_id(decode_cursor(cursor, 1)[0])
        found = await devices.page(site=site, online=online, after=after, limit=limit + 1)
        page, more = found[:limit], len(found) > limit
        return Devices(
            items=[_out(one) for one in page],
            next_cursor=encode_cursor(page[-1].device_id) if more else None,
        )

    @router.get("/{device_id}")
    async def get_device(response: Response, _: Operator, device_id: DeviceId) -> DeviceOut:
        """One truck; its ETag is what a change needs."""
        device = await devices.get(device_id)
        response.headers["ETag"] = etag(device.version)
        return _out(device)

    @router.patch("/{device_id}")
    async def change_device(
        request: Request, response: Response, by: Operator, device_id: DeviceId, change: DeviceChange
    ) -> DeviceOut:
        """Change what is registered of a truck; needs If-Match."""
        components = change.components
        device = await devices.change(
            device_id,
            expected_version(request),
            name=change.name,
            site=change.site,
            components=None if components is None else [one.value() for one in components],
            by=by.name,
        )
        response.headers["ETag"] = etag(device.version)
        return _out(device)

    return router


def _known_id(value: str) -> str:
    if "\x00" in value or len(value) > 64:
        raise Invalid("the cursor is not one that was given out", fields={"cursor": "unknown"})
    return value
