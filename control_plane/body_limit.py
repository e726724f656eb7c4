"""No request body is read beyond a bound: ASGI middleware in front of every endpoint."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from control_plane.errors import TooLarge
from control_plane.web import problem

MOST_BODY_BYTES = 1024 * 1024


class BodyLimit:
    """Answers 413 when a body is announced, or turns out, to be larger than its path allows.

    `most` gives the bytes for paths that take more than MOST_BODY_BYTES.
    """

    def __init__(self, app: ASGIApp, most: Mapping[str, int]) -> None:
        self._app = app
        self._most = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        most = self._most.get(scope["path"], MOST_BODY_BYTES)
        sentence = f"the body is over {most} bytes"
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        # More than 18 digits are too many bytes whatever they are.
        if not announced.isdigit() or len(announced) > 18 or int(announced) > most:
            answer = problem(
                413,
                title="Too large",
                detail=sentence,
                code=TooLarge.code,
                advice=TooLarge.advice,
                headers={"Connection": "close"},
            )
            await answer(scope, receive, send)
            return
        seen = 0

        async def bounded() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > most:
                # The framework passes on this kind of error only while it reads a body.
                raise HTTPException(413, sentence)
            return message

        await self._app(scope, bounded, send)
