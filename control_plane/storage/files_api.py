"""`GET|HEAD /files/{sha256}`: an image, whole or by Range, for whoever holds a signed URL.

The tag is the file's SHA-256, so a truck that resumes with `If-Range` never joins bytes of two files.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path as FilePath
from typing import Annotated, BinaryIO

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from control_plane.errors import NotFound
from control_plane.storage.base import StoreUnavailable
from control_plane.storage.folder import FolderFiles
from control_plane.storage.ranges import Slice, Unsatisfiable, parse_range
from control_plane.storage.urls import SHA256_PATTERN, UrlSigner
from control_plane.web import PROBLEMS, problem

CHUNK_BYTES = 64 * 1024
MEDIA_TYPE = "application/octet-stream"
_BINARY = {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}


class _FileResponse(StreamingResponse):
    """A part of an open file; closes it however the answer ends."""

    def __init__(self, file: BinaryIO, part: Slice, status: int, headers: dict[str, str]) -> None:
        super().__init__(_chunks(file, part), status_code=status, headers=headers, media_type=MEDIA_TYPE)
        self._file = file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._file.close()


async def _chunks(file: BinaryIO, part: Slice) -> AsyncIterator[bytes]:
    at = part.first
    while at < part.end:
        chunk = await asyncio.to_thread(os.pread, file.fileno(), min(CHUNK_BYTES, part.end - at), at)
        if not chunk:
            # The announced length is not kept: the server breaks the connection, the truck resumes.
            return
        at += len(chunk)
        yield chunk


def _open(path: FilePath) -> tuple[BinaryIO, int]:
    file = path.open("rb")
    return file, os.fstat(file.fileno()).st_size


def make_router(files: FolderFiles, signer: UrlSigner) -> APIRouter:
    """The endpoints of this room."""
    router = APIRouter(tags=["files"])

    @router.head("/files/{sha256}", response_class=Response, include_in_schema=False)
    @router.get(
        "/files/{sha256}",
        response_class=Response,
        responses={
            200: {"description": "The whole file.", "content": _BINARY},
            206: {"description": "The bytes that Range asked for.", "content": _BINARY},
            416: PROBLEMS[422] | {"description": "The file ends before the range begins."},
            **{status: PROBLEMS[status] for status in (403, 404, 422, 503)},
        },
    )
    async def get_file(
        request: Request,
        sha256: Annotated[str, Path(pattern=SHA256_PATTERN)],
        expires: Annotated[str, Query(max_length=40, description="Unix time.")] = "",
        sig: Annotated[str, Query(max_length=200)] = "",
    ) -> Response:
        """Fetch an image; no account is needed, the URL is signed."""
        signer.check(sha256, expires, sig)
        try:
            file, size = await asyncio.to_thread(_open, files.path(sha256))
        except FileNotFoundError as error:
            raise NotFound("this image is not here any more", code="gone") from error
        except OSError as error:
            raise StoreUnavailable(f"the image can't be read: {error.strerror}") from error
        tag = f'"{sha256}"'
        headers = {"ETag": tag, "Accept-Ranges": "bytes", "Cache-Control": "private, immutable"}
        whole = Slice(first=0, end=size)
        if request.method == "HEAD":
            # Range is defined for GET only (RFC 9110, 14.2).
            file.close()
            return Response(headers=headers | {"Content-Length": str(size)}, media_type=MEDIA_TYPE)
        # If-Range: the part if it is of the same file, else the whole (RFC 9110, 13.1.5).
        same = request.headers.get("if-range", tag) == tag
        match parse_range(request.headers.get("range"), size) if same else None:
            case None:
                return _FileResponse(file, whole, 200, headers | {"Content-Length": str(size)})
            case Slice() as part:
                return _FileResponse(
                    file,
                    part,
                    206,
                    headers
                    | {
                        "Content-Length": str(part.length),
                        "Content-Range": f"bytes {part.first}-{part.end - 1}/{size}",
                    },
                )
            case Unsatisfiable():
                file.close()
                return problem(
                    416,
                    title="RangeNotSatisfiable",
                    detail=f"the file has {size} bytes; the range begins behind them",
                    code="range_not_satisfiable",
                    advice="Ask for a range inside the file; if it is complete, verify it.",
                    headers={"Content-Range": f"bytes */{size}", "Accept-Ranges": "bytes"},
                )

    return router
