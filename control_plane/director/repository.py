"""Takes the image repository in, all or nothing, and finds what of it is served.

Made and signed offline; the office verifies it as a truck would, by the root that it is provisioned
with, and holds no key of it. Images are durable in the firmware store before the rows that name them.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from control_plane.cache import MemoryCache
from control_plane.db import Connection, Database
from control_plane.director import store_images
from control_plane.director.bundle import Bundle, opened
from control_plane.director.bundle_deltas import forget_deltas, take_deltas
from control_plane.director.intake import RepositoryRefused, Target, Verified, verify_bundle
from control_plane.director.store_images import RepositoryRow
from control_plane.errors import Conflict, NotFound
from control_plane.firmware.deltas import DeltaService
from control_plane.storage.base import StoreUnavailable, WrongBytes
from control_plane.storage.folder import FolderFiles
from shared.logs import get_log
from shared.release import FirmwareSpec
from shared.trust.uptane.release_document import ReleaseSpec, read_release
from shared.trust.uptane.store import TrustedStore

log = get_log("control_plane.director")

TIMESTAMP = "timestamp.json"
_TARGET_NAME = re.compile(r"targets/(.+)/([0-9a-f]{64})\.([^/]+)")


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What a taking brought. `changed` is false when it was the same as before."""

    row: RepositoryRow
    targets: int
    changed: bool


@dataclass(frozen=True, kw_only=True)
class Served:
    """A file that trucks may have: its bytes, or where it lies on disk. `sha256` is its tag."""

    sha256: str
    raw: bytes = b""
    path: Path | None = None


class ImageRepositoryService:
    """The image repository. `provisioned` is the store of a truck that has seen nothing yet."""

    def __init__(
        self,
        db: Database,
        files: FolderFiles,
        *,
        deltas: DeltaService,
        provisioned: TrustedStore,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._db = db
        self._files = files
        self._deltas = deltas
        self._provisioned = provisioned
        self._clock = clock
        self._one = asyncio.Lock()
        # A path has the hash of its document in it, so what is remembered is right for ever.
        self._parsed: MemoryCache[str, ReleaseSpec] = MemoryCache(most=1000, ttl_s=24 * 3600.0)

    async def take(self, bundle: Path, *, by: str) -> Taken:
        """Take in the repository in a tar file.

        Raises Invalid (no such tar), RepositoryRefused (with the code of the check that failed, or
        `metadata_forked`, `target_missing`, `target_damaged`), Conflict (another process took one in
        meanwhile) or StoreUnavailable. Nothing that is served changes then.
        """
        # One at a time in this process: two at once would only fill the disk with the same files.
        async with self._one:
            with ExitStack() as stack:
                async with self._db.transaction() as connection:
                    before = await store_images.repository(connection)
                    documents = await store_images.releases(connection)
                    old = await store_images.image_hashes(connection)
                tar = await asyncio.to_thread(stack.enter_context, opened(bundle))
                trusted = self._provisioned if before is None else TrustedStore.load(before.trusted)
                verified = await asyncio.to_thread(verify_bundle, tar, trusted, self._clock(), documents.get)
                verified = replace(verified, metadata=self._with_first_root(verified.metadata))
                await self._put_images(tar, [one for one in verified.targets if one.release is None])
                row, changed = await self._db.run(
                    lambda connection: self._commit(connection, before, verified, by)
                )
                images = {one.sha256: one.length for one in verified.targets if one.release is None}
                await take_deltas(tar, self._deltas, self._files.incoming, images, by=by)
                await forget_deltas(self._deltas, old - images.keys())
        if changed:
            log.info(
                "director.image_repository_taken",
                root=row.root,
                snapshot=row.snapshot,
                timestamp=row.timestamp,
                targets=len(verified.targets),
                by=by,
            )
        return Taken(row=row, targets=len(verified.targets), changed=changed)

    def _with_first_root(self, metadata: Mapping[str, bytes]) -> dict[str, bytes]:
        first = self._provisioned.image
        return {f"{first.read_root().signed.version}.root.json": first.root.encode(), **metadata}

    async def _put_images(self, tar: Bundle, targets: list[Target]) -> None:
        missing = []
        for one in targets:
            size = tar.size(one.name)
            if size is None and not await self._files.exists(one.sha256):
                missing.append(one.path)
            elif size is not None and size != one.length:
                raise RepositoryRefused(
                    f"{one.path} has {size} bytes in the bundle, {one.length} are signed",
                    code="target_damaged",
                )
        if missing:
            raise RepositoryRefused(
                f"{len(missing)} signed images are neither in the bundle nor here: {missing[0]}",
                code="target_missing",
                advice="Send them with it: tar -C FOLDER/public -cf - .",
            )
        for one in targets:
            if tar.size(one.name) is None:
                continue
            async with self._files.incoming.file() as part:
                try:
                    await asyncio.to_thread(tar.extract, one.name, part)
                    await self._files.put(one.sha256, part)
                except WrongBytes as error:
                    raise RepositoryRefused(f"{one.path}: {error.message}", code="target_damaged") from error
                except OSError as error:
                    raise StoreUnavailable(f"an image can't be stored: {error.strerror}") from error

    async def _commit(
        self, connection: Connection, before: RepositoryRow | None, verified: Verified, by: str
    ) -> tuple[RepositoryRow, bool]:
        now = await store_images.repository(connection, lock=True)
        if now != before:
            raise Conflict("another process took a repository in meanwhile", retryable=True)
        hashes = {name: hashlib.sha256(raw).hexdigest() for name, raw in verified.metadata.items()}
        known = await store_images.metadata_hashes(connection, list(hashes))
        same_version = before is not None and before.timestamp == verified.versions["timestamp"]
        forked = [
            name
            for name, sha256 in hashes.items()
            if known.get(name, sha256) != sha256 and (name != TIMESTAMP or same_version)
        ]
        if forked:
            raise RepositoryRefused(
                f"{forked[0]} was published before with other bytes",
                code="metadata_forked",
                advice="Two people published one version: publish again, from the folder that is here.",
            )
        fresh = [name for name, sha256 in hashes.items() if known.get(name) != sha256]
        if now is not None and not fresh:
            return now, False
        await store_images.put(connection, verified, hashes, fresh, by)
        row = await store_images.repository(connection)
        assert row is not None
        return row, True

    async def lacking(self, sha256s: Sequence[str]) -> list[str]:
        """Those of these images that are not in the firmware store."""
        return [one for one in sha256s if not await self._files.exists(one)]

    async def status(self) -> tuple[RepositoryRow, dict[str, ReleaseSpec]]:
        """The repository, and its releases by path. Raises NotFound."""
        async with self._db.transaction() as connection:
            row = await store_images.repository(connection)
            if row is None:
                raise NotFound("no image repository was taken in yet", code="no_image_repository")
            return row, await self.releases(connection)

    async def served(self, name: str) -> Served:
        """A file by its served name. Raises NotFound."""
        async with self._db.transaction() as connection:
            if (match := _TARGET_NAME.fullmatch(name)) is not None:
                target = await store_images.target(connection, f"{match[1]}/{match[3]}")
                if target is not None and target.name == name:
                    if target.release is not None:
                        return Served(sha256=target.sha256, raw=target.release)
                    return Served(sha256=target.sha256, path=self._files.path(target.sha256))
            elif "\x00" not in name and (found := await store_images.metadata(connection, name)):
                return Served(sha256=found[0], raw=found[1])
        raise NotFound("the image repository has no such file", code="no_such_file")

    async def releases(self, connection: Connection) -> dict[str, ReleaseSpec]:
        """The releases that are signed now, by path."""
        raws = await store_images.releases(connection)
        return {path: self._parse(path, raw) for path, raw in raws.items()}

    async def release(self, connection: Connection, path: str) -> ReleaseSpec | None:
        """A release, while it is signed."""
        target = await store_images.target(connection, path)
        return None if target is None or target.release is None else self._parse(path, target.release)

    async def unsigned(self, connection: Connection, specs: list[FirmwareSpec]) -> list[str]:
        """Paths of those of these firmwares that are not signed (any more)."""
        paths = [spec.target_path for spec in specs]
        return sorted(set(paths) - (await self.images(connection, paths)).keys())

    async def images(self, connection: Connection, paths: Sequence[str]) -> dict[str, Target]:
        """Those of these targets that are signed now, by path."""
        return await store_images.targets(connection, paths)

    async def known_releases(self, connection: Connection) -> dict[str, bool]:
        """Every release that was ever taken in, and whether it is signed now, by path."""
        return await store_images.known_releases(connection)

    def _parse(self, path: str, raw: bytes) -> ReleaseSpec:
        found = self._parsed.get(path)
        if found is None:
            found = read_release(raw)
            self._parsed.put(path, found)
        return found
