"""Reading an upload (multipart/form-data, RFC 7578) as it comes: bounded memory, the image on disk.

The framework's own form reader would spool files of any size before anybody is authenticated, so the
stream is read here, after authentication, and refused at the first byte too many.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from control_plane.bodies import body_chunks, write_all
from control_plane.errors import Invalid, TooLarge
from control_plane.storage.base import StoreUnavailable
from shared.release import MAX_IMAGE_BYTES
from shared.trust.document import MAX_DOCUMENT_BYTES

MOST_NOTES_BYTES = 8000
BOUNDS = {"document": MAX_DOCUMENT_BYTES, "image": MAX_IMAGE_BYTES, "notes": MOST_NOTES_BYTES}
REQUIRED = ("document", "image")
# Boundaries and part headers; three parts of at most eight bounded headers fit easily.
MOST_BODY_BYTES = sum(BOUNDS.values()) + 128 * 1024


@dataclass(kw_only=True)
class Upload:
    """What was sent: the small fields, and that the image lies in the file it was to go to."""

    document: bytes
    notes: str


@dataclass(kw_only=True)
class _Parts:
    """Takes the parser's calls. Bytes of the image pile up in `pending` until they are written."""

    sizes: dict[str, int] = field(default_factory=dict)
    small: dict[str, bytearray] = field(default_factory=dict)
    pending: list[bytes] = field(default_factory=list)
    ended: bool = False
    _header: bytearray = field(default_factory=bytearray)
    _value: bytearray = field(default_factory=bytearray)
    _disposition: bytes = b""
    _name: str = ""

    def on_part_begin(self) -> None:
        self._disposition = b""

    def on_header_begin(self) -> None:
        self._header.clear()
        self._value.clear()

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)

    def on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name not in BOUNDS:
            raise Invalid(
                f"there is no field {name[:80]!r} here", fields={name[:80]: f"use {', '.join(BOUNDS)}"}
            )
        if name in self.sizes:
            raise Invalid(f"the field {name} was sent twice", fields={name: "sent twice"})
        self.sizes[name] = 0
        self._name = name

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        name = self._name
        self.sizes[name] += end - start
        if self.sizes[name] > BOUNDS[name]:
            raise TooLarge(f"{name} is over {BOUNDS[name]} bytes", fields={name: "too large"})
        if name == "image":
            self.pending.append(data[start:end])
        else:
            self.small.setdefault(name, bytearray()).extend(data[start:end])

    def on_end(self) -> None:
        self.ended = True


async def receive(request: Request, image: Path) -> Upload:
    """Read the upload; the image's bytes go into the file `image`.

    Raises TooLarge, Invalid or StoreUnavailable, without reading on.
    """
    parts = _Parts()
    parser = _parser(request, parts)
    try:
        # Unbuffered: what is written comes in pieces of a network read, and a full disk shows at once.
        file = await asyncio.to_thread(image.open, "wb", 0)
        try:
            await _read(request, parser, parts, file)
        finally:
            await asyncio.to_thread(file.close)
    except OSError as error:
        raise StoreUnavailable(f"the image can't be written: {error.strerror}") from error
    missing = [name for name in REQUIRED if not parts.sizes.get(name)]
    if missing:
        raise Invalid(
            f"the upload has no {' and no '.join(missing)}", fields=dict.fromkeys(missing, "missing")
        )
    try:
        notes = parts.small.get("notes", bytearray()).decode()
    except UnicodeDecodeError as error:
        raise Invalid("the notes are not UTF-8", fields={"notes": "not UTF-8"}) from error
    if "\x00" in notes:
        raise Invalid("the notes have a null character", fields={"notes": "null character"})
    return Upload(document=bytes(parts.small["document"]), notes=notes)


def _parser(request: Request, parts: _Parts) -> MultipartParser:
    kind, options = parse_options_header(request.headers.get("content-type", "").encode("latin-1"))
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not boundary:
        raise Invalid("an upload is multipart/form-data", fields={"content-type": "give multipart/form-data"})
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and (len(announced) > 18 or int(announced) > MOST_BODY_BYTES):
        raise TooLarge(f"an upload has at most {MOST_BODY_BYTES} bytes")
    try:
        return MultipartParser(
            boundary,
            {
                "on_part_begin": parts.on_part_begin,
                "on_header_begin": parts.on_header_begin,
                "on_header_field": parts.on_header_field,
                "on_header_value": parts.on_header_value,
                "on_header_end": parts.on_header_end,
                "on_headers_finished": parts.on_headers_finished,
                "on_part_data": parts.on_part_data,
                "on_end": parts.on_end,
            },
        )
    except FormParserError as error:
        raise Invalid(f"the upload can't be read: {error}") from error


async def _read(request: Request, parser: MultipartParser, parts: _Parts, file: IO[bytes]) -> None:
    async for chunk in body_chunks(request, MOST_BODY_BYTES):
        try:
            parser.write(chunk)
        except FormParserError as error:
            raise Invalid(f"the upload can't be read: {error}") from error
        if parts.pending:
            await asyncio.to_thread(write_all, file, b"".join(parts.pending))
            parts.pending.clear()
    if not parts.ended:
        raise Invalid("the upload ends in its middle", retryable=True)
