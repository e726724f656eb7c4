"""Deltas: smaller ways to images for trucks that hold an older one. Taken in, kept, offered.

They are made where releases are made (`quarry release`), never here. A delta is not signed, for what comes
out of it is compared with the image's signed hash by every truck; here it is applied before it is kept, so
that a bad one costs no truck a download.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Collection
from contextlib import AsyncExitStack
from pathlib import Path

from control_plane.db import Connection, Database
from control_plane.errors import Conflict, Invalid
from control_plane.firmware import store_deltas as store
from control_plane.firmware.store_deltas import DeltaRecord
from control_plane.storage.base import FirmwareFiles
from shared.delta import FORMAT, MOST_IMAGE_BYTES, DeltaBroken, apply_delta
from shared.logs import get_log

__all__ = ["BadDelta", "DeltaRecord", "DeltaService"]

log = get_log("control_plane.firmware")

MOST_PER_IMAGE = 32
"""Deltas that lead to one image: as many older ones as a fleet still runs."""
APPLIED_WITHIN_S = 60.0


class BadDelta(Invalid):
    """A delta that is not kept: it does not make the image, or saves nothing."""

    code = "bad_delta"
    advice = "Make it anew from the two images, with this version of quarry release."


class DeltaService:
    """The deltas of the firmware store."""

    def __init__(self, db: Database, files: FirmwareFiles) -> None:
        self._db = db
        self._files = files
        # One is applied at a time: it takes a thread, and reads two images.
        self._applying = asyncio.Lock()
        # Files come and go beside their rows.
        self._changing = asyncio.Lock()

    async def take(self, delta: Path, *, base_sha256: str, sha256: str, by: str) -> tuple[DeltaRecord, bool]:
        """Keep the delta in a file when it makes the image `sha256` of the image `base_sha256`.

        Both images must be in the store. Returns it and whether it is new; it takes the place of another
        one between the same images. Raises NotFound (`gone`: an image is not here), BadDelta, Conflict
        (`withdrawn`, or `too_many_deltas`) or StoreUnavailable.
        """
        async with self._applying, AsyncExitStack() as stack:
            base = await stack.enter_async_context(self._files.reading(base_sha256))
            image = await stack.enter_async_context(self._files.reading(sha256))
            image_length = (await asyncio.to_thread(image.stat)).st_size
            made = await asyncio.to_thread(_checked, base, delta, sha256=sha256, length=image_length)
        delta_sha256, length = made

        async def act(connection: Connection) -> tuple[DeltaRecord, DeltaRecord | None]:
            if await store.is_withdrawn(connection, sha256):
                raise Conflict(f"the image {sha256} was withdrawn", code="withdrawn")
            others = {one.base_sha256: one for one in await store.to(connection, sha256)}
            before = others.get(base_sha256)
            if before is None and len(others) >= MOST_PER_IMAGE:
                raise Conflict(f"{MOST_PER_IMAGE} deltas lead to {sha256} already", code="too_many_deltas")
            record = await store.put(
                connection,
                base_sha256=base_sha256,
                sha256=sha256,
                delta_sha256=delta_sha256,
                length=length,
                image_length=image_length,
                format_=FORMAT,
                by=by,
            )
            return record, before

        async with self._changing:
            await self._files.put(delta_sha256, delta)
            try:
                record, before = await self._db.run(act)
            except Conflict:
                await self._drop_files([delta_sha256])
                raise
            if before is not None and before.delta_sha256 != delta_sha256:
                await self._drop_files([before.delta_sha256])
        is_new = before is None or before.delta_sha256 != delta_sha256
        if is_new:
            log.info(
                "firmware.delta_taken",
                base_sha256=base_sha256,
                sha256=sha256,
                bytes=length,
                of_bytes=image_length,
                by=by,
            )
        return record, is_new

    async def to(self, sha256: str) -> list[DeltaRecord]:
        """The deltas that lead to an image."""
        async with self._db.transaction() as connection:
            return await store.to(connection, sha256)

    async def known(self, pairs: Collection[tuple[str, str]]) -> set[tuple[str, str]]:
        """Those of these (hash of the base, hash of the image) that there is a delta for."""
        async with self._db.transaction() as connection:
            return set(await self.between(connection, pairs))

    async def between(
        self, connection: Connection, pairs: Collection[tuple[str, str]]
    ) -> dict[tuple[str, str], DeltaRecord]:
        """By (hash of the base, hash of the image), what there is of these."""
        if not pairs:
            return {}
        return {(one.base_sha256, one.sha256): one for one in await store.between(connection, pairs)}

    async def forget(self, sha256: str) -> int:
        """Remove what leads to an image that is withdrawn; returns how many. Raises StoreUnavailable.

        Nothing happens while a published firmware has it. What leads away from it stays: trucks that run
        it are to leave it.
        """
        async with self._changing:
            hashes = await self._db.run(lambda connection: store.forget(connection, sha256))
            await self._drop_files(hashes)
        return len(hashes)

    async def _drop_files(self, hashes: Collection[str]) -> None:
        """Remove files that no row names. A truck that still asks for one fetches the whole image."""
        async with self._db.transaction() as connection:
            used = await store.files_in_use(connection, hashes)
        for sha256 in sorted(set(hashes) - used):
            await self._files.remove(sha256)


def _checked(base: Path, delta: Path, *, sha256: str, length: int) -> tuple[str, int]:
    """The delta's own hash and length, when it makes the image. Raises BadDelta. For a thread.

    Memory is bounded by `apply_delta`, output by the image's length, time by APPLIED_WITHIN_S and, where
    nothing comes out, by the number of pieces that a delta may have.
    """
    size = delta.stat().st_size
    if size >= length or length > MOST_IMAGE_BYTES:
        raise BadDelta(f"a delta of {size} bytes saves nothing of an image of {length}")
    until = time.monotonic() + APPLIED_WITHIN_S
    digest = hashlib.sha256()
    try:
        with base.open("rb") as old, delta.open("rb") as difference:
            for chunk in apply_delta(old, difference, length=length):
                digest.update(chunk)
                if time.monotonic() > until:
                    raise BadDelta(f"it takes more than {APPLIED_WITHIN_S:.0f} s to apply this delta")
    except DeltaBroken as error:
        raise BadDelta(f"the delta is not kept: {error.message}") from error
    if digest.hexdigest() != sha256:
        raise BadDelta(f"the delta makes an image with SHA-256 {digest.hexdigest()}, not {sha256}")
    with delta.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), size
