"""`/api/v1/jobs`: order an update, watch it, stop it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Protocol

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from control_plane.access.idempotency import Answer, IdempotencyHeader, key_of, once
from control_plane.db import Connection, Database
from control_plane.errors import Conflict, Invalid
from control_plane.jobs.model import Job, Line
from control_plane.jobs.service import JobService
from control_plane.languages import ReaderLanguage
from control_plane.loops import Wake
from control_plane.metrics import Metrics
from control_plane.web import (
    PROBLEMS,
    Cursor,
    Limit,
    Operator,
    encode_cursor,
    etag,
    expected_version,
    time_cursor,
)
from shared.causes import Language, as_said, sentence
from shared.ids import ID_PATTERN
from shared.messages import Error, ToldCause
from shared.states import JobState

JobId = Annotated[str, Path(pattern=ID_PATTERN)]
IF_MATCH = {
    "parameters": [
        {
            "name": "If-Match",
            "in": "header",
            "required": True,
            "schema": {"type": "string"},
            "example": '"3"',
            "description": "The ETag of the job as you have read it.",
        }
    ]
}


class OrdersReleases(Protocol):
    """What this room needs of the director, who knows trucks' ECUs and signed releases."""

    async def order(
        self,
        connection: Connection,
        *,
        device_id: str,
        release: str,
        scheduled_at: datetime | None,
        by: str,
    ) -> Job:
        """A job that brings a whole release. Raises OfficeError."""
        ...


class NewJob(BaseModel):
    """One truck is to get a signed release, or one component of it one published firmware version."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"device_id": "truck-001", "release": "haul/1.2.0"},
                {"device_id": "truck-001", "component": "brakes", "version": "1.1.0"},
            ]
        },
    )
    device_id: str = Field(pattern=ID_PATTERN, examples=["truck-001"])
    release: str | None = Field(
        default=None,
        pattern=r"^[^\x00-\x1f\x7f]{1,300}$",
        description="A release's path in the image repository, or NAME/VERSION where that is only one;"
        " needs `director = true`. Else `component` and `version`.",
    )
    component: str | None = Field(default=None, pattern=r"^[^\x00-\x1f\x7f]{1,64}$")
    version: str | None = Field(default=None, pattern=r"^[0-9A-Za-z][0-9A-Za-z.+_-]{0,63}$")
    scheduled_at: AwareDatetime | None = Field(
        default=None, description="Not before this time, with its zone; left out: at once."
    )

    def component_and_version(self) -> tuple[str, str]:
        """What a job without a release names. Raises Invalid where that, or a release, is missing."""
        if self.component is not None and self.version is not None and self.release is None:
            return self.component, self.version
        raise Invalid(
            "a job names a release, or a component and a version",
            fields={"release": "this or the other two", "component": "with version, or neither"},
        )


class ErrorView(BaseModel):
    """Why something failed."""

    code: str = Field(examples=["wrong_image"])
    retryable: bool
    advice: str
    text: str


class TargetView(BaseModel):
    """A component, what it is to get, and what it answered when it was read back."""

    component: str = Field(examples=["brakes"])
    firmware_id: str | None = Field(description="Null in a job of a release.")
    kind: str
    version: str = Field(examples=["1.1.0"])
    sha256: str
    length: int
    read_back_version: str | None
    read_back_sha256: str | None
    read_back_right: bool | None = Field(description="Null while it has not answered.")


class CauseView(BaseModel):
    """One cause of a wait. `code` is stable and for programs; a newer truck's may be unknown here."""

    code: str = Field(examples=["battery_low"])
    detail: str | None = Field(examples=["24"])
    word: str | None
    text: str = Field(examples=["напряжение батареи ниже 24 В"])


class LineView(BaseModel):
    """One change, or one status. `applied` is false when it came too late to count.

    `cause` is an operator's name, scheduler, dispatcher or truck; `at` is the office's clock.
    """

    at: datetime
    cause: str = Field(examples=["truck"])
    attempt: int
    version: int
    from_state: JobState | None
    to_state: JobState | None
    applied: bool
    status: str | None
    step: str | None
    progress: int | None
    reason: str | None
    why: str | None
    causes: list[CauseView]
    error: ErrorView | None
    message_id: str | None
    store_no: int | None
    seq: int | None
    device_at: datetime | None


class JobView(BaseModel):
    """A job as it is now. `version` is its ETag."""

    job_id: str = Field(examples=["4f1c0000000000000000000000000001"])
    device_id: str = Field(examples=["truck-001"])
    state: JobState
    step: str | None = Field(examples=["writing"])
    progress: int | None = Field(examples=[42])
    reason: str | None = Field(description="In English.")
    why: str | None = Field(
        description="The reason in the reader's language, where its causes are known; else as `reason`."
    )
    causes: list[CauseView]
    error: ErrorView | None
    attempt: int
    version: int
    revision: int
    release: str | None = Field(examples=["releases/haul/1.2.0/5e5e.json"])
    targets: list[TargetView]
    scheduled_at: datetime
    created_by: str
    created_at: datetime
    updated_at: datetime
    dispatched_at: datetime | None
    finished_at: datetime | None


class JobStory(JobView):
    """A job and its history, oldest first: the newest lines, and how many there are in all."""

    history: list[LineView]
    history_total: int


class Jobs(BaseModel):
    """One page, newest first."""

    items: list[JobView]
    next_cursor: str | None


def _error(error: Error | None) -> ErrorView | None:
    if error is None:
        return None
    return ErrorView(code=error.code, retryable=error.retryable, advice=error.advice, text=error.text)


def _said(reason: str | None, told: tuple[ToldCause, ...], language: Language) -> dict[str, Any]:
    """`why` and `causes` in a language."""
    causes = [
        CauseView(code=one.code, detail=one.detail, word=one.word, text=cause.said(language))
        for one, cause in zip(told, as_said(told), strict=True)
    ]
    why = reason if language == "en" or not told else sentence(as_said(told), language)
    return {"why": why, "causes": causes}


def _fields(job: Job, language: Language = "en") -> dict[str, Any]:
    plain = ("job_id", "device_id", "version", "revision", "scheduled_at", "created_by", "created_at")
    times = ("updated_at", "dispatched_at", "finished_at")
    return {
        **{name: getattr(job, name) for name in (*plain, *times)},
        **{name: getattr(job.now, name) for name in ("state", "step", "progress", "reason", "attempt")},
        **_said(job.now.reason, job.now.causes, language),
        "error": _error(job.now.error),
        "release": job.release_path,
        "targets": [
            TargetView(**{name: getattr(target, name) for name in TargetView.model_fields})
            for target in job.targets
        ],
    }


def _line(line: Line, language: Language) -> LineView:
    same = LineView.model_fields.keys() - {"at", "error", "why", "causes"}
    return LineView(
        **{name: getattr(line, name) for name in same},
        **_said(line.reason, line.causes, language),
        at=line.received_at,
        error=_error(line.error),
    )


def make_router(
    jobs: JobService,
    db: Database,
    *,
    outbox: Wake,
    metrics: Metrics,
    releases: OrdersReleases | None = None,
) -> APIRouter:
    """The endpoints of this room. `outbox` is woken when something has been written into it.

    `releases` is the director, None in an office without one.
    """
    router = APIRouter(prefix="/api/v1/jobs", tags=["jobs"], responses=PROBLEMS)

    @router.post("", status_code=201, response_model=JobView)
    async def create_job(
        by: Operator, order: NewJob, idempotency_key: IdempotencyHeader = None
    ) -> JSONResponse:
        """Order an update. With an `Idempotency-Key` a repeat gets the first answer again."""
        is_new = False

        async def act(connection: Connection) -> Answer:
            nonlocal is_new
            job = await _create(connection, order, by.name)
            is_new = True
            return Answer(
                status=201,
                body=JobView(**_fields(job)).model_dump(mode="json"),
                headers={"Location": f"/api/v1/jobs/{job.job_id}", "ETag": etag(job.version)},
            )

        answer = await once(db, key_of(by, idempotency_key, "create_job", order), act)
        if is_new:
            metrics.jobs_created_total.inc()
            outbox.set()
        return answer.as_response()

    async def _create(connection: Connection, order: NewJob, by: str) -> Job:
        device_id, scheduled_at = order.device_id, order.scheduled_at
        if order.release is None or order.component is not None or order.version is not None:
            component, version = order.component_and_version()
            return await jobs.create(
                connection,
                device_id=device_id,
                component=component,
                version=version,
                scheduled_at=scheduled_at,
                by=by,
            )
        if releases is None:
            raise Conflict(
                "this office directs no releases",
                code="no_director",
                advice="Start it with director = true, or name a component and a version.",
            )
        return await releases.order(
            connection, device_id=device_id, release=order.release, scheduled_at=scheduled_at, by=by
        )

    @router.get("")
    async def list_jobs(
        _: Operator,
        language: ReaderLanguage,
        limit: Limit = 50,
        cursor: Cursor = None,
        device_id: Annotated[str | None, Query(pattern=ID_PATTERN)] = None,
        state: Annotated[JobState | None, Query()] = None,
    ) -> Jobs:
        """List jobs, newest first."""
        found = await jobs.page(device_id=device_id, state=state, before=time_cursor(cursor), limit=limit + 1)
        page, more = found[:limit], len(found) > limit
        last = encode_cursor(page[-1].created_at.isoformat(), page[-1].job_id) if more else None
        return Jobs(items=[JobView(**_fields(job, language)) for job in page], next_cursor=last)

    @router.get("/{job_id}")
    async def get_job(_: Operator, job_id: JobId, response: Response, language: ReaderLanguage) -> JobStory:
        """A job with its whole story."""
        job, lines, total = await jobs.story(job_id)
        response.headers["ETag"] = etag(job.version)
        history = [_line(line, language) for line in lines]
        return JobStory(**_fields(job, language), history=history, history_total=total)

    @router.post("/{job_id}/cancel", openapi_extra=IF_MATCH)
    async def cancel_job(by: Operator, job_id: JobId, request: Request, response: Response) -> JobView:
        """Stop a job: it ends at once if nothing was sent yet, else when the truck says so."""
        job = await jobs.cancel(job_id, expected_version(request), by.name)
        return _changed(job, response)

    @router.post("/{job_id}/abandon", openapi_extra=IF_MATCH)
    async def abandon_job(by: Operator, job_id: JobId, request: Request, response: Response) -> JobView:
        """Give a job up without the truck's word; whatever the truck says later changes nothing."""
        job = await jobs.abandon(job_id, expected_version(request), by.name)
        return _changed(job, response)

    def _changed(job: Job, response: Response) -> JobView:
        outbox.set()
        if job.ended:
            metrics.jobs_finished_total.labels(state=job.state.value).inc()
        response.headers["ETag"] = etag(job.version)
        return JobView(**_fields(job))

    return router
