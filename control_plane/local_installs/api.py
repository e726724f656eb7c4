"""`/api/v1/local-installs`: what people installed at trucks."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from control_plane.jobs.api import CauseView, ErrorView
from control_plane.languages import ReaderLanguage
from control_plane.local_installs.model import Said
from control_plane.local_installs.service import LocalInstall, LocalInstallService
from control_plane.web import PROBLEMS, Cursor, Limit, Operator, encode_cursor, time_cursor
from shared.causes import Language, as_said, sentence
from shared.ids import ID_PATTERN
from shared.states import JobState


class LocalTarget(BaseModel):
    """A component, what it was to get by the truck's word, and what it answered afterwards.

    `version` and `sha256` are null where the truck did not say (an agent before 0.2).
    """

    component: str = Field(examples=["brakes"])
    version: str | None = Field(examples=["1.1.0"])
    sha256: str | None
    read_back_version: str | None
    read_back_sha256: str | None


class LocalInstallView(BaseModel):
    """A job that began at a truck, as its newest counting status tells it. The office can't change it."""

    job_id: str = Field(examples=["local-4f1c0000000000000000000000000009"])
    device_id: str = Field(examples=["truck-001"])
    origin: Literal["truck"] = "truck"
    state: JobState
    step: str = Field(examples=["finished"])
    progress: int | None
    reason: str | None
    why: str | None = Field(
        description="The reason in the reader's language, where its causes are known; else as `reason`."
    )
    causes: list[CauseView]
    error: ErrorView | None
    attempt: int
    targets: list[LocalTarget]
    said_at: datetime = Field(description="By the truck's clock.")
    created_at: datetime = Field(description="When the office first heard of it.")
    updated_at: datetime


class LocalInstalls(BaseModel):
    """One page, newest first."""

    items: list[LocalInstallView]
    next_cursor: str | None


def make_router(installs: LocalInstallService) -> APIRouter:
    """The endpoints of this room."""
    router = APIRouter(prefix="/api/v1/local-installs", tags=["jobs"], responses=PROBLEMS)

    @router.get("")
    async def list_local_installs(
        _: Operator,
        *,
        language: ReaderLanguage,
        limit: Limit = 50,
        cursor: Cursor = None,
        device_id: Annotated[str | None, Query(pattern=ID_PATTERN)] = None,
        job_id: Annotated[str | None, Query(pattern=ID_PATTERN)] = None,
        state: Annotated[JobState | None, Query()] = None,
    ) -> LocalInstalls:
        """List jobs that people began at trucks, newest first; a truck's newest 100 are kept."""
        found = await installs.page(
            device_id=device_id,
            job_id=job_id,
            state=state,
            before=time_cursor(cursor),
            limit=limit + 1,
        )
        page, more = found[:limit], len(found) > limit
        last = encode_cursor(page[-1].first_seen_at.isoformat(), page[-1].job_id) if more else None
        return LocalInstalls(items=[_view(one, language) for one in page], next_cursor=last)

    return router


def _view(one: LocalInstall, language: Language) -> LocalInstallView:
    now = one.said.now
    error = now.error
    causes = as_said(now.causes)
    return LocalInstallView(
        job_id=one.job_id,
        device_id=one.device_id,
        state=now.state,
        step=now.step or "",
        progress=now.progress,
        reason=now.reason,
        why=now.reason if language == "en" or not causes else sentence(causes, language),
        causes=[
            CauseView(code=told.code, detail=told.detail, word=told.word, text=cause.said(language))
            for told, cause in zip(now.causes, causes, strict=True)
        ],
        error=None
        if error is None
        else ErrorView(code=error.code, retryable=error.retryable, advice=error.advice, text=error.text),
        attempt=now.attempt,
        targets=_targets(one.said),
        said_at=one.said.said_at,
        created_at=one.first_seen_at,
        updated_at=one.updated_at,
    )


def _targets(said: Said) -> list[LocalTarget]:
    wanted = {one.component: one for one in said.wanted}
    answers = {one.component: one for one in said.now.read_back}
    found = []
    for component in [*wanted, *(name for name in answers if name not in wanted)]:
        want, answer = wanted.get(component), answers.get(component)
        found.append(
            LocalTarget(
                component=component,
                version=None if want is None else want.version,
                sha256=None if want is None else want.sha256,
                read_back_version=None if answer is None else answer.version,
                read_back_sha256=None if answer is None else answer.sha256,
            )
        )
    return found
