"""What every room's HTTP endpoints share: who asks, pages, ETags, and errors as problem+json."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

import msgspec
from fastapi import Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from control_plane.errors import Forbidden, Invalid, OfficeError, PreconditionRequired, Unauthenticated
from shared.errors import OtaError
from shared.ids import BadId, check_id
from shared.logs import get_log

log = get_log("control_plane.web")

MOST_PER_PAGE = 200


@dataclass(frozen=True, kw_only=True)
class Principal:
    """Who asks: `name` goes into histories; `role` is admin or device; a device has its id."""

    name: str
    role: str
    device_id: str | None = None


Authenticate = Callable[[str], Awaitable[Principal]]
"""From a bearer token to its principal; raises Unauthenticated."""


async def current_principal(request: Request) -> Principal:
    """The principal of a request's bearer token (RFC 6750, 2.1). Raises Unauthenticated."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthenticated("no bearer token was sent")
    authenticate: Authenticate = request.app.state.authenticate
    return await authenticate(token.strip())


async def current_operator(principal: Annotated[Principal, Depends(current_principal)]) -> Principal:
    """A person or program of the office. Raises Forbidden for a truck."""
    if principal.role != "admin":
        raise Forbidden(f"{principal.name} is a {principal.role}; this is for operators")
    return principal


async def current_device(principal: Annotated[Principal, Depends(current_principal)]) -> Principal:
    """A truck, by its own credential. Raises Forbidden for anybody else."""
    if principal.role != "device" or principal.device_id is None:
        raise Forbidden(f"{principal.name} is no truck")
    return principal


Operator = Annotated[Principal, Depends(current_operator)]
Device = Annotated[Principal, Depends(current_device)]
Limit = Annotated[int, Query(ge=1, le=MOST_PER_PAGE, description="Items on a page.")]
Cursor = Annotated[
    str | None,
    Query(max_length=500, description="`next_cursor` of the page before; leave out for the first."),
]


def encode_cursor(*key: str) -> str:
    """An opaque cursor from the sort key of a page's last row."""
    return base64.urlsafe_b64encode(msgspec.json.encode(key)).decode().rstrip("=")


def decode_cursor(cursor: str, parts: int) -> tuple[str, ...]:
    """The sort key that `encode_cursor` was given. Raises Invalid for anything else."""
    try:
        raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        key = msgspec.json.decode(raw, type=tuple[str, ...])
    except (binascii.Error, msgspec.DecodeError, ValueError) as error:
        raise Invalid("the cursor is not one that was given out", fields={"cursor": "unknown"}) from error
    if len(key) != parts:
        raise Invalid("the cursor is of another list", fields={"cursor": "unknown"})
    return key


def time_cursor(cursor: str | None) -> tuple[datetime, str] | None:
    """The (time, id) of a page's last row, for lists that are sorted by both; None for the first page.

    Raises Invalid for anything but what `encode_cursor(time.isoformat(), id)` gave.
    """
    if cursor is None:
        return None
    at, last = decode_cursor(cursor, 2)
    try:
        time = datetime.fromisoformat(at)
        check_id(last, "cursor")
    except (ValueError, BadId) as error:
        raise Invalid("the cursor is not one that was given out", fields={"cursor": "unknown"}) from error
    if time.tzinfo is None:
        raise Invalid("the cursor is not one that was given out", fields={"cursor": "unknown"})
    return time, last


def etag(version: int) -> str:
    """The strong entity tag of a row's version (RFC 9110, 8.8.3)."""
    return f'"{version}"'


def expected_version(request: Request) -> int:
    """The version that `If-Match` names. Raises PreconditionRequired or Invalid."""
    value = request.headers.get("if-match")
    if value is None:
        raise PreconditionRequired("a change needs If-Match with the ETag that you have read")
    digits = value.strip().strip('"')
    if not (value.strip() == f'"{digits}"' and digits.isascii() and digits.isdigit() and len(digits) < 19):
        raise Invalid("If-Match is not an ETag of ours", fields={"if-match": 'give "NUMBER"'})
    return int(digits)


class Problem(BaseModel):
    """RFC 9457. `code` is stable and for programs; `advice` says what to do."""

    type: str = Field(examples=["about:blank"])
    title: str = Field(examples=["Conflict"])
    status: int = Field(examples=[409])
    detail: str = Field(examples=["truck-001 already has a live job, 4f1c"])
    code: str = Field(examples=["live_job"])
    advice: str = Field(examples=["Wait for it to end, or cancel it."])
    retryable: bool = False
    fields: dict[str, str] = Field(default_factory=dict, examples=[{"version": "unknown"}])


PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": text, "content": {"application/problem+json": {}}}
    for status, text in {
        401: "No valid token.",
        403: "Known, but may not.",
        404: "There is no such thing.",
        409: "The present state does not allow it.",
        412: "If-Match names another version than the present one.",
        413: "Too many bytes.",
        422: "The request is not as it must be.",
        428: "If-Match is missing.",
        429: "Too many requests from one place.",
        503: "A part of the office is away.",
    }.items()
}


def problem(status: int, *, title: str, detail: str, code: str, advice: str, **more: Any) -> JSONResponse:
    """A problem+json answer; `more` may carry `fields`, `retryable` and `headers`."""
    headers: Mapping[str, str] | None = more.pop("headers", None)
    body = Problem(
        type="about:blank", title=title, status=status, detail=detail, code=code, advice=advice, **more
    )
    return JSONResponse(
        body.model_dump(), status_code=status, media_type="application/problem+json", headers=headers
    )


def add_problem_handlers(app: FastAPI) -> None:
    """Turn every error, foreseen or not, into problem+json; an unforeseen one shows no inside."""

    @app.exception_handler(OfficeError)
    async def office_error(_: Request, error: OfficeError) -> JSONResponse:
        headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else None
        return problem(
            error.status,
            title=type(error).__name__,
            detail=error.message,
            code=error.code,
            advice=error.advice,
            retryable=error.retryable,
            fields=error.fields,
            headers=headers,
        )

    @app.exception_handler(OtaError)
    async def ota_error(_: Request, error: OtaError) -> JSONResponse:
        # An error of the shared language (a bad document, a bad id) is the sender's.
        return problem(
            422, title=type(error).__name__, detail=error.message, code=error.code, advice=error.advice
        )

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        fields = {".".join(str(part) for part in one["loc"]): str(one["msg"]) for one in error.errors()[:20]}
        return problem(
            422,
            title="Invalid",
            detail=f"{len(fields)} fields are not as they must be: {', '.join(fields)}",
            code="invalid",
            advice="Correct the named fields; /docs shows an example of each request.",
            fields=fields,
        )

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> JSONResponse:
        return problem(
            error.status_code,
            title=str(error.detail),
            detail=str(error.detail),
            code={404: "not_found", 405: "method_not_allowed", 413: "too_large"}.get(
                error.status_code, "http_error"
            ),
            advice="See /docs for what is here and how it is called.",
            headers=error.headers,
        )

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> JSONResponse:
        log.error("web.request_failed", path=request.url.path, method=request.method, exc_info=error)
        return problem(
            500,
            title="Internal error",
            detail="something went wrong that should not have",
            code="internal",
            advice="Try again; if it repeats, report it with the log line web.request_failed.",
            retryable=True,
        )
