"""Puts an image repository's drafts out, listed by a new snapshot and timestamp. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from securesystemslib.signer import Signer
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, Targets, Timestamp

from shared.since_310 import UTC
from shared.trust.uptane.repository import (
    TIME_FORM,
    Repository,
    RepositoryTrouble,
    after,
    has_signed,
    progress,
    sign_metadata,
    to_bytes,
)
from shared.trust.uptane.repository_check import SIGNED_AT


def publish(
    repository: Repository,
    *,
    snapshot_signers: Sequence[Signer] = (),
    timestamp_signers: Sequence[Signer] = (),
    now: datetime,
) -> Repository:
    """All drafts put out with a new snapshot and timestamp; with no drafts those two are renewed.

    A director's root goes out alone: its other roles are made per truck. Raises RepositoryTrouble while
    signatures are missing.
    """
    lacking = [
        f"{one.role} misses {one.missing} of {one.threshold}" for one in progress(repository) if one.missing
    ]
    if lacking:
        raise RepositoryTrouble(f"not enough signatures: {'; '.join(lacking)}")
    published = dict(repository.published)
    for role, raw in repository.drafts.items():
        published[f"{Metadata.from_bytes(raw).signed.version}.{role}.json"] = raw
    done = replace(repository, published=published, drafts={})
    if done.kind == "director":
        return done
    snapshot = _make_snapshot(done, now)
    _sign_all(snapshot, snapshot_signers, done.root(), Snapshot.type)
    raw = to_bytes(snapshot)
    published[f"{snapshot.signed.version}.snapshot.json"] = raw
    timestamp = Metadata(
        Timestamp(
            version=_next(done.newest(Timestamp.type)),
            expires=after(now, done.lives.timestamp),
            snapshot_meta=MetaFile.from_data(snapshot.signed.version, raw, ["sha256"]),
            unrecognized_fields={SIGNED_AT: now.astimezone(UTC).strftime(TIME_FORM)},
        )
    )
    _sign_all(timestamp, timestamp_signers, done.root(), Timestamp.type)
    published["timestamp.json"] = to_bytes(timestamp)
    return replace(done, published=published)


def _make_snapshot(repository: Repository, now: datetime) -> Metadata[Snapshot]:
    """The next snapshot; a role that was once listed stays listed for ever."""
    old = repository.newest(Snapshot.type)
    roles = {Targets.type}
    if (delegations := repository.top().delegations) is not None:
        roles |= set(delegations.roles or ())
    if old is not None:
        roles |= {name.removesuffix(".json") for name in old.signed.meta}
    return Metadata(
        Snapshot(
            version=_next(old),
            expires=after(now, repository.lives.snapshot),
            meta={f"{role}.json": _listed(repository, role) for role in sorted(roles)},
        )
    )


def _listed(repository: Repository, role: str) -> MetaFile:
    """How a snapshot lists a role's newest version. Raises RepositoryTrouble when it has none."""
    name = repository.newest_name(role)
    if name is None:
        raise RepositoryTrouble(f"role {role!r} has never been signed and published")
    return MetaFile.from_data(int(name.partition(".")[0]), repository.published[name], ["sha256"])


def _sign_all(metadata: Metadata[Any], signers: Sequence[Signer], root: Root, role: str) -> None:
    for signer in signers:
        sign_metadata(metadata, signer)
    who = root.roles[role]
    good = [keyid for keyid in who.keyids if has_signed(metadata, root.keys.get(keyid))]
    if len(good) < who.threshold:
        raise RepositoryTrouble(f"{role} needs {who.threshold} of its keys, {len(good)} were given")


def _next(metadata: Metadata[Any] | None) -> int:
    return 1 if metadata is None else int(metadata.signed.version) + 1
