"""A creation that is asked for twice happens once: `Idempotency-Key`.

The key is taken in the transaction of what it guards, so either both are there or neither. The same
request under the same key gets the first answer again for 24 h; another request under it is refused.
An act that failed leaves nothing, so it may be tried again under the same key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec
from fastapi import Header
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from control_plane.access import store
from control_plane.db import Connection, Database
from control_plane.errors import Conflict
from control_plane.web import Principal

KEEP_S = 24 * 3600.0
MOST_CLEANED = 20

IdempotencyHeader = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        pattern=r"^[\x21-\x7e]{1,200}$",
        description="Of your choice, 1 to 200 printable characters; a repeat with it changes nothing.",
        examples=["5f0c1d1e-order-17"],
    ),
]
"""FastAPI dependency: the header's value, or None."""


@dataclass(frozen=True, kw_only=True)
class IdempotencyKey:
    """Whose key it is, and which request it stands for."""

    principal: str
    key: str
    request_sha256: bytes


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a request is answered with; `body` is plain JSON."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)

    def as_response(self) -> JSONResponse:
        """The HTTP response."""
        return JSONResponse(self.body, status_code=self.status, headers=self.headers)


def key_of(by: Principal, header: str | None, act: str, request: BaseModel) -> IdempotencyKey | None:
    """The key of a request: `act` names what it does, `request` is all that decides how."""
    if header is None:
        return None
    text = msgspec.json.encode([act, request.model_dump(mode="json")], order="deterministic")
    return IdempotencyKey(principal=by.name, key=header, request_sha256=hashlib.sha256(text).digest())


async def once(
    db: Database, key: IdempotencyKey | None, act: Callable[[Connection], Awaitable[Answer]]
) -> Answer:
    """Run `act` in one transaction, or give the answer that it gave before under the same key.

    `act` may run again on a deadlock, so it has no effect outside its transaction. What it raises is
    raised, and nothing is kept. Raises Conflict (idempotency_key_reused) for another request under a
    known key.
    """

    async def guarded(connection: Connection) -> Answer:
        if key is None:
            return await act(connection)
        if not await store.reserve_key(
            connection,
            principal=key.principal,
            key=key.key,
            request_sha256=key.request_sha256,
            keep_s=KEEP_S,
            most_cleaned=MOST_CLEANED,
        ):
            return _again(key, await store.stored_answer(connection, key.principal, key.key))
        answer = await act(connection)
        await store.keep_answer(
            connection,
            principal=key.principal,
            key=key.key,
            status=answer.status,
            headers=answer.headers,
            body=answer.body,
        )
        return answer

    return await db.run(guarded)


def _again(key: IdempotencyKey, stored: store.StoredAnswer | None) -> Answer:
    if stored is None or stored.status == 0:
        # Cleaned between the two statements, after a day: the next try takes it anew.
        raise Conflict("this idempotency key is being cleaned up; send it again", retryable=True)
    if stored.request_sha256 != key.request_sha256:
        raise Conflict(
            "this idempotency key was used for another request",
            code="idempotency_key_reused",
            advice="Use a new key for a new request; repeat a request with exactly its own content.",
        )
    return Answer(status=stored.status, body=stored.body, headers=stored.headers)
