"""SQL of the deltas."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from control_plane.db import Connection, load_queries

_SQL = load_queries("control_plane.firmware")


@dataclass(frozen=True, kw_only=True)
class DeltaRecord:
    """A way from the image `base_sha256` to the image `sha256`. Lengths in bytes, `length` the delta's."""

    base_sha256: str
    sha256: str
    delta_sha256: str
    length: int
    image_length: int
    format: str
    taken_by: str
    taken_at: datetime


async def put(
    connection: Connection,
    *,
    base_sha256: str,
    sha256: str,
    delta_sha256: str,
    length: int,
    image_length: int,
    format_: str,
    by: str,
) -> DeltaRecord:
    """Write a delta; it takes the place of another one between the same images."""
    row = await connection.fetchrow(
        _SQL["put_delta"], base_sha256, sha256, delta_sha256, length, image_length, format_, by
    )
    assert row is not None
    return DeltaRecord(**row)


async def to(connection: Connection, sha256: str) -> list[DeltaRecord]:
    """The deltas that lead to an image."""
    return [DeltaRecord(**row) for row in await connection.fetch(_SQL["deltas_to"], sha256)]


async def between(connection: Connection, pairs: Collection[tuple[str, str]]) -> list[DeltaRecord]:
    """Those of these (base, image) pairs that there are."""
    bases, images = [base for base, _ in pairs], [image for _, image in pairs]
    return [DeltaRecord(**row) for row in await connection.fetch(_SQL["deltas_between"], bases, images)]


async def is_withdrawn(connection: Connection, sha256: str) -> bool:
    """Whether every firmware with this image was withdrawn; none is before the transaction ends."""
    found: bool = await connection.fetchval(_SQL["only_withdrawn"], sha256)
    return found


async def forget(connection: Connection, sha256: str) -> list[str]:
    """Delete what leads to an image that no published firmware has; returns the files' hashes."""
    return [row["delta_sha256"] for row in await connection.fetch(_SQL["forget_deltas"], sha256)]


async def files_in_use(connection: Connection, hashes: Collection[str]) -> set[str]:
    """Those of these files that a delta or a firmware has."""
    return {row["sha256"] for row in await connection.fetch(_SQL["files_in_use"], list(hashes))}
