"""SQL of the image repository that was taken in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from control_plane.db import Connection, load_queries
from control_plane.director.intake import Target, Verified

_SQL = load_queries("control_plane.director")


@dataclass(frozen=True, kw_only=True)
class RepositoryRow:
    """The repository as it was last taken in; `trusted` is a TrustedStore's JSON."""

    trusted: bytes
    root: int
    snapshot: int
    timestamp: int
    good_until: datetime
    taken_by: str
    taken_at: datetime


async def repository(connection: Connection, *, lock: bool = False) -> RepositoryRow | None:
    """The repository; `lock` keeps others from taking one in."""
    if lock:
        await connection.execute(_SQL["lock_image_repository"])
    row = await connection.fetchrow(_SQL["image_repository"])
    return None if row is None else RepositoryRow(**dict(row))


async def metadata(connection: Connection, name: str) -> tuple[str, bytes] | None:
    """(SHA-256, bytes) of a metadata file."""
    row = await connection.fetchrow(_SQL["image_metadata"], name)
    return None if row is None else (row["sha256"], row["raw"])


async def metadata_hashes(connection: Connection, names: Sequence[str]) -> dict[str, str]:
    """SHA-256 of those of these files that are here."""
    rows = await connection.fetch(_SQL["image_metadata_hashes"], list(names))
    return {row["name"]: row["sha256"] for row in rows}


async def put(
    connection: Connection, verified: Verified, hashes: Mapping[str, str], names: Sequence[str], by: str
) -> None:
    """The whole new state; of the metadata only `names` are written."""
    await connection.execute(
        _SQL["put_image_repository"],
        *(verified.store.dump(), verified.versions["root"], verified.versions["snapshot"]),
        *(verified.versions["timestamp"], verified.good_until, by),
    )
    await connection.executemany(
        _SQL["put_image_metadata"], [(name, hashes[name], verified.metadata[name]) for name in names]
    )
    await connection.execute(_SQL["clear_image_targets"])
    await connection.executemany(
        _SQL["add_image_target"],
        [(one.path, one.sha256, one.length, one.release, one.document) for one in verified.targets],
    )
    releases = [one.path for one in verified.targets if one.release is not None]
    await connection.execute(_SQL["note_releases"], releases)
    await connection.execute(_SQL["note_withdrawn"], releases)


async def target(connection: Connection, path: str) -> Target | None:
    """A target that the newest metadata signs."""
    row = await connection.fetchrow(_SQL["image_target"], path)
    return None if row is None else Target(**dict(row))


async def targets(connection: Connection, paths: Sequence[str]) -> dict[str, Target]:
    """Those of these targets that the newest metadata signs, by path."""
    rows = await connection.fetch(_SQL["image_targets"], list(paths))
    return {row["path"]: Target(**dict(row)) for row in rows}


async def image_hashes(connection: Connection) -> set[str]:
    """SHA-256 of every image that the newest metadata signs."""
    return {row["sha256"] for row in await connection.fetch(_SQL["image_hashes"])}


async def known_releases(connection: Connection) -> dict[str, bool]:
    """Every release that was ever taken in, and whether it is signed now, by path."""
    return {row["path"]: row["signed"] for row in await connection.fetch(_SQL["known_releases"])}


async def releases(connection: Connection) -> dict[str, bytes]:
    """Every signed release document by its path."""
    return {row["path"]: row["release"] for row in await connection.fetch(_SQL["releases"])}
