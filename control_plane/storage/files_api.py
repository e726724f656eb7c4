"""`GET|HEAD /files/{sha256}`: an image, whole or by Range, for whoever holds a signed URL.

The tag is the file's SHA-256, so a truck that resumes with `If-Range` never joins bytes of two files.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import Response

from control_plane.storage.answers import MEDIA_TYPE, answer_file
from control_plane.storage.folder import FolderFiles
from control_plane.storage.urls import SHA256_PATTERN, UrlSigner
from control_plane.web import PROBLEMS

_BINARY = {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}


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
        return await answer_file(request, files.path(sha256), sha256)

    return router
