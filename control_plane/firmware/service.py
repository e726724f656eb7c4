"""Publishing and withdrawing firmwares. The file is durable before the row says that it is there.

The office checks what it can, and trucks trust none of it: they verify document and image themselves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from securesystemslib.signer import Key

from control_plane.db import Connection, Database
from control_plane.errors import Conflict, NotFound
from control_plane.firmware import store
from control_plane.firmware.deltas import DeltaService
from control_plane.firmware.store import Firmware
from control_plane.storage.base import FirmwareFiles
from shared.ids import new_id
from shared.logs import get_log
from shared.release import FirmwareSpec
from shared.trust.document import BadDocument, read_unverified, verify_document
from shared.trust.image import check_image

__all__ = ["Firmware", "FirmwareService"]

log = get_log("control_plane.firmware")

CHUNK_BYTES = 256 * 1024
MOST_COUNTER = 2**53
"""The largest whole number that every JSON reader keeps (RFC 8259, 6)."""


class FirmwareService:
    """Published firmwares. With `keys` (by key id) the office refuses what none of them signed.

    `deltas` are the ways between their images.
    """

    def __init__(
        self,
        db: Database,
        files: FirmwareFiles,
        *,
        keys: Mapping[str, Key] | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._db = db
        self._files = files
        self._keys = dict(keys or {})
        self._clock = clock
        self.deltas = DeltaService(db, files)

    async def publish(self, document: bytes, image: Path, *, notes: str, by: str) -> tuple[Firmware, bool]:
        """Publish the image that `document` describes; returns it and whether it is new.

        The same again changes nothing, except that a document that was signed anew (a later expiry)
        replaces the old one. Raises BadDocument, Unsigned, Expired, WrongImage, StoreUnavailable, or
        Conflict: another firmware has this kind and version (version_exists), or it was withdrawn.
        """
        spec = await asyncio.to_thread(self._checked, document, image)
        async with self._db.transaction() as connection:
            # Looked up first, so that refused bytes are not stored; decided below.
            _check_same(await store.of_version(connection, spec.kind, spec.version), spec)
        await self._files.put(spec.sha256, image)

        async def act(connection: Connection) -> tuple[Firmware, bool]:
            new = await store.insert(
                connection, firmware_id=new_id(), spec=spec, document=document, notes=notes, by=by
            )
            if new is not None:
                return new, True
            old = await store.of_version(connection, spec.kind, spec.version, query="lock_version")
            assert old is not None
            _check_same(old, spec)
            if old.document != document:
                log.info("firmware.document_replaced", firmware_id=old.firmware_id, by=by)
                old = await store.replace_document(connection, old.firmware_id, document)
            return old, False

        firmware, created = await self._db.run(act)
        if created:
            log.info(
                "firmware.firmware_published",
                firmware_id=firmware.firmware_id,
                kind=firmware.kind,
                version=firmware.version,
                sha256=firmware.sha256,
                by=by,
            )
        return firmware, created

    def _checked(self, document: bytes, image: Path) -> FirmwareSpec:
        if self._keys:
            spec = verify_document(document, self._keys, now=self._clock())
        else:
            spec = read_unverified(document)
        if spec.release_counter > MOST_COUNTER:
            raise BadDocument(f"release_counter {spec.release_counter} is over {MOST_COUNTER}")
        check_image(_chunks(image), spec)
        return spec

    async def get(self, firmware_id: str) -> Firmware:
        """One firmware with its document. Raises NotFound."""
        async with self._db.transaction() as connection:
            return _found(await store.get(connection, firmware_id), f"firmware {firmware_id[:80]}")

    async def page(
        self, *, kind: str | None = None, before: tuple[datetime, str] | None = None, limit: int = 50
    ) -> list[Firmware]:
        """Firmwares from the newest to the oldest, without their documents."""
        async with self._db.transaction() as connection:
            return await store.page(connection, kind=kind, before=before, limit=limit)

    async def withdraw(self, firmware_id: str, *, why: str, by: str) -> Firmware:
        """No new job gets it from now on. A repeat changes nothing: the first reason stands.

        Raises NotFound, or StoreUnavailable: it is withdrawn, and a repeat removes the deltas to it.
        """

        async def act(connection: Connection) -> tuple[Firmware, bool]:
            old = _found(await store.get(connection, firmware_id, lock=True), f"firmware {firmware_id[:80]}")
            if old.withdrawn:
                return old, False
            return await store.withdraw(connection, firmware_id, why), True

        firmware, changed = await self._db.run(act)
        if changed:
            log.warning("firmware.firmware_withdrawn", firmware_id=firmware_id, why=why[:200], by=by)
        await self.deltas.forget(firmware.sha256)
        return firmware

    async def installable(self, connection: Connection, *, kind: str, version: str) -> Firmware:
        """The firmware for a new job; it is not withdrawn before the caller's transaction ends.

        Raises NotFound (unknown_firmware) or Conflict (withdrawn).
        """
        found = _found(
            await store.of_version(connection, kind, version, query="share_version"),
            f"firmware {kind[:64]} {version[:64]}",
        )
        if found.withdrawn:
            raise _withdrawn(found)
        return found

    async def of_ids(self, connection: Connection, firmware_ids: Collection[str]) -> dict[str, Firmware]:
        """These firmwares, withdrawn ones too; unknown ones are left out."""
        return await store.of_ids(connection, firmware_ids)


def _chunks(image: Path) -> Iterator[bytes]:
    with image.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _check_same(old: Firmware | None, spec: FirmwareSpec) -> None:
    if old is None:
        return
    if old.spec != spec:
        what = "other bytes" if old.sha256 != spec.sha256 else "another description"
        raise Conflict(
            f"{spec.kind} {spec.version} is published already, with {what}",
            code="version_exists",
            advice="A published version never changes: give the new build a new version.",
        )
    if old.withdrawn:
        raise _withdrawn(old)


def _withdrawn(firmware: Firmware) -> Conflict:
    return Conflict(
        f"{firmware.kind} {firmware.version} was withdrawn: {(firmware.withdrawn_why or '')[:200]}",
        code="withdrawn",
        advice="Choose another version; a withdrawn one does not come back.",
    )


def _found(firmware: Firmware | None, what: str) -> Firmware:
    if firmware is None:
        raise NotFound(f"there is no {what}", code="unknown_firmware")
    return firmware
