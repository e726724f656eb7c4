"""Request bodies as they come: bounded before anything is read on, in bounded memory, on the disk or whole.

The framework would take a body of any size before anybody is authenticated; these are asked for afterwards.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO

from starlette.requests import ClientDisconnect, Request

from control_plane.errors import Invalid, TooLarge
from control_plane.storage.base import StoreUnavailable

NEXT_BYTES_WITHIN_S = 60.0


async def body_chunks(request: Request, most: int) -> AsyncIterator[bytes]:
    """The body, bounded. Raises TooLarge, or Invalid when it breaks off or nothing comes for long."""
    stream = request.stream()
    total = 0
    while True:
        try:
            async with asyncio.timeout(NEXT_BYTES_WITHIN_S):
                chunk = await anext(stream, None)
        except TimeoutError as error:
            raise Invalid(f"nothing came for {NEXT_BYTES_WITHIN_S:.0f} s", retryable=True) from error
        except ClientDisconnect as error:
            raise Invalid("the upload broke off", retryable=True) from error
        if chunk is None:
            return
        total += len(chunk)
        if total > most:
            raise TooLarge(f"an upload here has at most {most} bytes")
        yield chunk


async def receive_whole(request: Request, most: int) -> bytes:
    """A small body. Raises TooLarge or Invalid."""
    whole = bytearray()
    async for chunk in body_chunks(request, most):
        whole += chunk
    return bytes(whole)


async def receive_file(request: Request, path: Path, most: int) -> None:
    """A body into a file. Raises TooLarge, Invalid or StoreUnavailable."""
    try:
        file = await asyncio.to_thread(path.open, "wb", 0)
        try:
            async for chunk in body_chunks(request, most):
                await asyncio.to_thread(write_all, file, chunk)
        finally:
            await asyncio.to_thread(file.close)
    except OSError as error:
        raise StoreUnavailable(f"the upload can't be written: {error.strerror}") from error


def write_all(file: IO[bytes], data: bytes) -> None:
    """Every byte; a file without a buffer may take fewer at once. Blocks."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]
