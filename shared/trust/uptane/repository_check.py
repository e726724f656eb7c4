"""Timestamp, snapshot and targets of one repository (Uptane 5.4.4.4 to 5.4.4.6)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import msgspec
from tuf.api.metadata import MetaFile, Root, Signed, Snapshot, Targets, Timestamp

from shared.since_310 import UTC
from shared.trust.uptane.errors import (
    Missing,
    NotAsListed,
    RoleRemoved,
    RolledBack,
    TooLarge,
    Unreadable,
)
from shared.trust.uptane.roles import (
    MOST_DIRECTOR_TARGETS_BYTES,
    MOST_SNAPSHOT_BYTES,
    MOST_TARGETS_BYTES,
    MOST_TIMESTAMP_BYTES,
    ROLE_NAME,
    check_listed,
    check_root_signed,
    check_version,
    read,
)
from shared.trust.uptane.steps import Run, Steps, Wanted
from shared.trust.uptane.store import RepositoryName

MOST_ROLES = 1024
SIGNED_AT = "signed_at"
"""A field of ours in timestamps and offline selections: when it was signed, RFC 3339 in UTC."""

_JSON = ".json"


@dataclass(frozen=True, kw_only=True)
class Current:
    """A repository whose top-level roles all verified."""

    repository: RepositoryName
    root: Root
    listing: Mapping[str, MetaFile]
    targets: Targets


def check_repository(run: Run, repository: RepositoryName, root: Root) -> Steps[Current]:
    """What stands below the newest root; the store moves on when all has verified. Raises MetadataRefused."""
    run.check_expiry(f"{repository}/root", root.expires)
    timestamp = yield from _timestamp(run, repository, root)
    snapshot = yield from _snapshot(run, repository, root, timestamp)
    listing = listed_roles(snapshot, f"{repository}/snapshot")
    _check_listing(run, repository, listing)
    where = f"{repository}/targets"
    most = MOST_DIRECTOR_TARGETS_BYTES if repository == "director" else MOST_TARGETS_BYTES
    raw = yield from fetch_listed(repository, Targets.type, listing, most, where)
    targets = read(raw, Targets, where, most)
    check_root_signed(root, targets, Targets.type, where)
    check_listed_version(targets.signed, listing[Targets.type], where)
    run.check_expiry(where, targets.signed.expires)
    run.store = run.store.replaced(
        repository,
        msgspec.structs.replace(
            run.store.of(repository),
            timestamp=timestamp.version,
            snapshot=snapshot.version,
            roles={name: meta.version for name, meta in listing.items()},
        ),
    )
    run.keep_times()
    return Current(repository=repository, root=root, listing=listing, targets=targets.signed)


def _timestamp(run: Run, repository: RepositoryName, root: Root) -> Steps[Timestamp]:
    where = f"{repository}/timestamp"
    wanted = Wanted(repository=repository, name="timestamp.json", most_bytes=MOST_TIMESTAMP_BYTES)
    raw = needed((yield wanted), wanted, where)
    metadata = read(raw, Timestamp, where, MOST_TIMESTAMP_BYTES)
    check_root_signed(root, metadata, Timestamp.type, where)
    timestamp, known = metadata.signed, run.store.of(repository)
    if timestamp.version < known.timestamp:
        raise RolledBack(where, f"version {timestamp.version}, {known.timestamp} was trusted")
    check_version(timestamp.snapshot_meta.version, where)
    if timestamp.snapshot_meta.version < known.snapshot:
        raise RolledBack(where, f"lists snapshot {timestamp.snapshot_meta.version}, trusted {known.snapshot}")
    run.signed_times[where] = signed_at(timestamp, where)
    if not run.offline:
        run.check_expiry(where, timestamp.expires)
    return timestamp


def _snapshot(run: Run, repository: RepositoryName, root: Root, timestamp: Timestamp) -> Steps[Snapshot]:
    where = f"{repository}/snapshot"
    listing = {Snapshot.type: timestamp.snapshot_meta}
    raw = yield from fetch_listed(repository, Snapshot.type, listing, MOST_SNAPSHOT_BYTES, where)
    metadata = read(raw, Snapshot, where, MOST_SNAPSHOT_BYTES)
    check_root_signed(root, metadata, Snapshot.type, where)
    check_listed_version(metadata.signed, timestamp.snapshot_meta, where)
    if not run.offline:
        run.check_expiry(where, metadata.signed.expires)
    return metadata.signed


def listed_roles(snapshot: Snapshot, where: str) -> dict[str, MetaFile]:
    """What a snapshot lists, by the role's name. Raises Unreadable."""
    if len(snapshot.meta) > MOST_ROLES:
        raise Unreadable(where, f"lists {len(snapshot.meta)} roles, at most {MOST_ROLES} are read")
    for name, meta in snapshot.meta.items():
        if not name.endswith(_JSON) or not ROLE_NAME.fullmatch(name.removesuffix(_JSON)):
            raise Unreadable(where, f"lists {name[:80]!r}, which is no role's file")
        check_version(meta.version, where)
    return {name.removesuffix(_JSON): meta for name, meta in snapshot.meta.items()}


def _check_listing(run: Run, repository: RepositoryName, listing: Mapping[str, MetaFile]) -> None:
    where = f"{repository}/snapshot"
    for name, version in run.store.of(repository).roles.items():
        listed = listing.get(name)
        if listed is None:
            raise RoleRemoved(where, f"role {name!r} is not listed any more")
        if listed.version < version:
            raise RolledBack(where, f"lists {name!r} in version {listed.version}, {version} was trusted")


def fetch_listed(
    repository: RepositoryName, role: str, listing: Mapping[str, MetaFile], most_bytes: int, where: str
) -> Steps[bytes]:
    """A role's bytes as another role lists them. Raises RoleRemoved, TooLarge, Missing, NotAsListed."""
    listed = listing.get(role)
    if listed is None:
        raise RoleRemoved(where, f"the snapshot does not list {role!r}")
    if listed.length is not None and listed.length > most_bytes:
        raise TooLarge(where, f"listed with {listed.length} bytes, at most {most_bytes} are read")
    wanted = Wanted(
        repository=repository,
        name=f"{listed.version}.{role}.json",
        most_bytes=most_bytes if listed.length is None else listed.length,
        sha256=(listed.hashes or {}).get("sha256"),
    )
    raw = needed((yield wanted), wanted, where)
    if len(raw) > most_bytes:
        raise TooLarge(where, f"{len(raw)} bytes, at most {most_bytes} are read")
    check_listed(raw, listed, where)
    return raw


def check_listed_version(signed: Signed, listed: MetaFile, where: str) -> None:
    """Raise NotAsListed unless the file's own version is the one that it is listed with."""
    if signed.version != listed.version:
        raise NotAsListed(where, f"version {signed.version}, listed is {listed.version}")


def needed(raw: bytes | None, wanted: Wanted, where: str) -> bytes:
    """The bytes of a file that must be there. Raises Missing."""
    if raw is None:
        raise Missing(where, f"{wanted.name} was not served")
    return raw


def signed_at(signed: Signed, where: str) -> datetime:
    """When it was signed, as its signers say. Raises Unreadable."""
    said = signed.unrecognized_fields.get(SIGNED_AT)
    try:
        at = datetime.strptime(str(said), "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError as error:
        raise Unreadable(where, f"{SIGNED_AT} {str(said)[:40]!r} is no time") from error
    if at >= signed.expires:
        raise Unreadable(where, f"{SIGNED_AT} is not before its expiry")
    return at
