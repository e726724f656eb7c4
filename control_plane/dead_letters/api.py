"""`/api/v1/dead-letters`: look at what could not be handled, replay it or drop it."""

from __future__ import annotations

import base64
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, Field

from control_plane.dead_letters.service import DeadLetter, DeadLetterService
from control_plane.web import PROBLEMS, Cursor, Limit, Operator, encode_cursor, time_cursor
from shared.ids import ID_PATTERN

LetterId = Annotated[str, Path(pattern=ID_PATTERN)]


class Letter(BaseModel):
    """What could not be handled, and why."""

    dead_letter_id: str = Field(examples=["9f1c2b7e6a5d4c3b9f1c2b7e6a5d4c3b"])
    source: str = Field(examples=["status"], description="outbox, bus, status or mqtt")
    device_id: str | None = Field(examples=["truck-001"])
    job_id: str | None
    message_id: str | None
    reason: str = Field(examples=["there is no job 17 on this device"])
    reference: dict[str, Any]
    created_at: datetime
    resolved_at: datetime | None
    resolution: str | None = Field(examples=["replayed"])
    resolved_by: str | None = Field(examples=["admin"])


class WholeLetter(Letter):
    """With its bytes: as text where they are UTF-8, and in any case as base64."""

    text: str | None = Field(examples=['{"v":1}'])
    raw_base64: str


class Letters(BaseModel):
    """One page, newest first."""

    items: list[Letter]
    next_cursor: str | None


def _fields(letter: DeadLetter) -> dict[str, Any]:
    return {name: getattr(letter, name) for name in Letter.model_fields}


def _whole(letter: DeadLetter) -> WholeLetter:
    try:
        text: str | None = letter.raw.decode()
    except UnicodeDecodeError:
        text = None
    return WholeLetter(**_fields(letter), text=text, raw_base64=base64.b64encode(letter.raw).decode())


def make_router(letters: DeadLetterService) -> APIRouter:
    """The endpoints of this room."""
    router = APIRouter(prefix="/api/v1/dead-letters", tags=["dead letters"], responses=PROBLEMS)

    @router.get("")
    async def list_letters(
        _: Operator,
        limit: Limit = 50,
        cursor: Cursor = None,
        source: Annotated[str | None, Query(pattern=ID_PATTERN)] = None,
        device_id: Annotated[str | None, Query(pattern=ID_PATTERN)] = None,
        resolved: Annotated[bool, Query(description="Those that were decided on, too.")] = False,
    ) -> Letters:
        """List dead letters, newest first."""
        found = await letters.page(
            source=source,
            device_id=device_id,
            resolved_too=resolved,
            before=time_cursor(cursor),
            limit=limit + 1,
        )
        page, more = found[:limit], len(found) > limit
        last = encode_cursor(page[-1].created_at.isoformat(), page[-1].dead_letter_id) if more else None
        return Letters(items=[Letter(**_fields(one)) for one in page], next_cursor=last)

    @router.get("/{dead_letter_id}")
    async def get_letter(_: Operator, dead_letter_id: LetterId) -> WholeLetter:
        """One dead letter with its bytes."""
        return _whole(await letters.get(dead_letter_id))

    @router.post("/{dead_letter_id}/replay")
    async def replay_letter(by: Operator, dead_letter_id: LetterId) -> WholeLetter:
        """Handle it once more; it becomes a dead letter again if that fails again."""
        return _whole(await letters.replay(dead_letter_id, by=by.name))

    @router.post("/{dead_letter_id}/drop")
    async def drop_letter(by: Operator, dead_letter_id: LetterId) -> WholeLetter:
        """Give it up; what waits behind it goes on. The letter stays as a record."""
        return _whole(await letters.drop(dead_letter_id, by=by.name))

    return router
