"""Answers that give a file, whole or by Range (RFC 9110, 14), tagged with its SHA-256.

The tag is of the bytes, so a truck that resumes with `If-Range` never joins bytes of two files.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from control_plane.errors import NotFound
from control_plane.storage.base import StoreUnavailable
from control_plane.storage.ranges import Slice, Unsatisfiable, parse_range
from control_plane.web import problem

CHUNK_BYTES = 64 * 1024
MEDIA_TYPE = "application/octet-stream"
IMMUTABLE = "private, immutable"


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


def _open(path: Path) -> tuple[BinaryIO, int]:
    file = path.open("rb")
    return file, os.fstat(file.fileno()).st_size


async def answer_file(request: Request, path: Path, sha256: str) -> Response:
    """A file on disk whose name is that of its bytes. Raises NotFound (`gone`) or StoreUnavailable."""
    try:
        file, size = await asyncio.to_thread(_open, path)
    except FileNotFoundError as error:
        raise NotFound("this image is not here any more", code="gone") from error
    except OSError as error:
        raise StoreUnavailable(f"the image can't be read: {error.strerror}") from error
    headers = _headers(sha256, IMMUTABLE)
    if request.method == "HEAD":
        # Range is defined for GET only (RFC 9110, 14.2).
        file.close()
        return Response(headers=headers | {"Content-Length": str(size)}, media_type=MEDIA_TYPE)
    match _part(request, sha256, size):
        case None:
            whole = Slice(first=0, end=size)
            return _FileResponse(file, whole, 200, headers | {"Content-Length": str(size)})
        case Slice() as part:
            return _FileResponse(file, part, 206, headers | _part_headers(part, size))
        case Unsatisfiable():
            file.close()
            return _unsatisfiable(size)


def answer_bytes(
    request: Request, raw: bytes, sha256: str, *, media_type: str, cache_control: str
) -> Response:
    """Bytes at hand, or 304 for who has them (`If-None-Match`, RFC 9110, 13.1.2)."""
    headers = _headers(sha256, cache_control)
    if f'"{sha256}"' in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    if request.method == "HEAD":
        return Response(headers=headers | {"Content-Length": str(len(raw))}, media_type=media_type)
    match _part(request, sha256, len(raw)):
        case None:
            return Response(raw, headers=headers, media_type=media_type)
        case Slice() as part:
            content = raw[part.first : part.end]
            return Response(
                content, 206, headers=headers | _part_headers(part, len(raw)), media_type=media_type
            )
        case Unsatisfiable():
            return _unsatisfiable(len(raw))


def _headers(sha256: str, cache_control: str) -> dict[str, str]:
    return {"ETag": f'"{sha256}"', "Accept-Ranges": "bytes", "Cache-Control": cache_control}


def _part(request: Request, sha256: str, size: int) -> Slice | Unsatisfiable | None:
    tag = f'"{sha256}"'
    # If-Range: the part if it is of the same file, else the whole (RFC 9110, 13.1.5).
    same = request.headers.get("if-range", tag) == tag
    return parse_range(request.headers.get("range"), size) if same else None


def _part_headers(part: Slice, size: int) -> dict[str, str]:
    return {
        "Content-Length": str(part.length),
        "Content-Range": f"bytes {part.first}-{part.end - 1}/{size}",
    }


def _unsatisfiable(size: int) -> Response:
    return problem(
        416,
        title="RangeNotSatisfiable",
        detail=f"the file has {size} bytes; the range begins behind them",
        code="range_not_satisfiable",
        advice="Ask for a range inside the file; if it is complete, verify it.",
        headers={"Content-Range": f"bytes */{size}", "Accept-Ranges": "bytes"},
    )
