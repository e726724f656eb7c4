"""`/api/v1/alarms`: what somebody must look at."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, Field

from control_plane.director.alarms import AlarmRecord, AlarmService
from control_plane.web import PROBLEMS, Cursor, Limit, Operator, encode_cursor, time_cursor
from shared.ids import ID_PATTERN

AlarmId = Annotated[str, Path(pattern=ID_PATTERN)]


class AlarmOut(BaseModel):
    """One alarm, from its first sight until it is acknowledged."""

    alarm_id: str = Field(examples=["9f1c2b7e6a5d4c3b9f1c2b7e6a5d4c3b"])
    device_id: str = Field(examples=["truck-001"])
    alarm: str = Field(examples=["image_mismatch"])
    serial: str = Field(examples=["SN-0017"], description="The ECU; empty when it is the truck's.")
    about: str = Field(examples=[""], description="The refused attack, by its code, that an ECU reports.")
    detail: str = Field(examples=["holds 5e5e, 7f7f is expected"])
    count: int = Field(examples=[3], description="How often it was seen.")
    first_seen_at: datetime
    last_seen_at: datetime
    acknowledged_at: datetime | None
    acknowledged_by: str | None = Field(examples=["admin"])


class Alarms(BaseModel):
    """One page, those that began last first."""

    items: list[AlarmOut]
    next_cursor: str | None = Field(examples=[None])


def _out(record: AlarmRecord) -> AlarmOut:
    fields: dict[str, Any] = {name: getattr(record, name) for name in AlarmOut.model_fields}
    return AlarmOut(**fields)


def make_router(alarms: AlarmService) -> APIRouter:
    """The endpoints of alarms."""
    router = APIRouter(prefix="/api/v1/alarms", tags=["alarms"], responses=PROBLEMS)

    @router.get("")
    async def list_alarms(
        _: Operator,
        limit: Limit = 50,
        cursor: Cursor = None,
        device_id: Annotated[str | None, Query(pattern=ID_PATTERN)] = None,
        alarm: Annotated[str | None, Query(pattern=r"^[a-z_]{1,64}$")] = None,
        acknowledged: Annotated[bool, Query(description="Those that were acknowledged, too.")] = False,
    ) -> Alarms:
        """List alarms, those that began last first."""
        found = await alarms.page(
            device_id=device_id,
            alarm=alarm,
            acknowledged_too=acknowledged,
            before=time_cursor(cursor),
            limit=limit + 1,
        )
        page, more = found[:limit], len(found) > limit
        last = encode_cursor(page[-1].first_seen_at.isoformat(), page[-1].alarm_id) if more else None
        return Alarms(items=[_out(one) for one in page], next_cursor=last)

    @router.post("/{alarm_id}/acknowledge")
    async def acknowledge_alarm(by: Operator, alarm_id: AlarmId) -> AlarmOut:
        """Somebody has seen it. If it goes on, the next sight is a new alarm. A repeat changes nothing."""
        return _out(await alarms.acknowledge(alarm_id, by=by.name))

    return router
