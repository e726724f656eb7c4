"""PURE but for the bundle it reads: does an image repository verify, whole, by the root that is provisioned?

The very checks of the trucks (shared.trust.uptane), so that the office never serves what a truck would
refuse; and beyond them, what one truck can't see: that no name is published twice with other bytes, and
that every role and every target is there, not just those of one truck.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from tuf.api.metadata import DelegatedRole, Delegations, Root, TargetFile, Targets

from control_plane.director.bundle import Bundle
from control_plane.errors import OfficeError
from shared.release import MAX_IMAGE_BYTES
from shared.trust.document import BadDocument, spec_of
from shared.trust.uptane.delegation import HARDWARE, MOST_DEPTH, MOST_ROLES_ASKED
from shared.trust.uptane.ecu_document import document_of
from shared.trust.uptane.errors import BadReleaseDocument, MetadataRefused, SearchTooLong, Unreadable
from shared.trust.uptane.matching import RELEASES, served_name
from shared.trust.uptane.release_document import MOST_RELEASE_BYTES, read_release
from shared.trust.uptane.repository_check import Current, check_listed_version, check_repository, fetch_listed
from shared.trust.uptane.roles import MOST_TARGETS_BYTES, check_signatures, payload_of, read
from shared.trust.uptane.root_chain import update_root
from shared.trust.uptane.steps import Run, Steps, Wanted, drive
from shared.trust.uptane.store import TrustedStore
from shared.trust.uptane.time_policy import Reading, TimePolicy

MOST_TARGETS = 20_000
_BUILT_AT = datetime(2026, 1, 1, tzinfo=UTC)


class RepositoryRefused(OfficeError):
    """An image repository is not taken in. `code` is the name by which trucks would refuse it."""

    status = 422
    code = "repository_refused"
    advice = "Publish the repository again, whole, with `quarry release publish`."


@dataclass(frozen=True, kw_only=True)
class Target:
    """One signed target; `release` is the document itself where it is one, `document` what the ECU of an
    image verifies itself.
    """

    path: str
    sha256: str
    length: int
    release: bytes | None = None
    document: bytes | None = None

    @property
    def name(self) -> str:
        """Its served name."""
        return served_name(self.path, self.sha256)


@dataclass(frozen=True, kw_only=True)
class Verified:
    """A repository that verified: the metadata by served name, what it signs, and until when."""

    store: TrustedStore
    metadata: Mapping[str, bytes]
    targets: tuple[Target, ...]
    versions: Mapping[str, int]
    good_until: datetime


def verify_bundle(
    bundle: Bundle, store: TrustedStore, now: datetime, known: Callable[[str], bytes | None] = lambda _: None
) -> Verified:
    """Verify the repository in a bundle. `known(path)` gives a release document that is stored already.

    Raises RepositoryRefused: the first failed check, by its own code; nothing of it is to be used then.
    """
    taken: dict[str, bytes] = {}

    def fetch(wanted: Wanted) -> bytes | None:
        raw = bundle.read(wanted.name, wanted.most_bytes)
        if raw is not None:
            taken[wanted.name] = raw
        return raw

    policy = TimePolicy(built_at=_BUILT_AT)
    run = Run(store=store, reading=Reading(wall=now), policy=policy)
    try:
        current, entries = drive(_verify(run), fetch)
        targets = tuple(_target(path, entry, bundle, known) for path, entry in sorted(entries.items()))
    except MetadataRefused as refused:
        raise RepositoryRefused(
            refused.message, code=refused.code, retryable=False, advice=refused.advice
        ) from refused
    state = run.store.image
    return Verified(
        store=run.store,
        metadata=taken,
        targets=targets,
        versions={Root.type: current.root.version, "snapshot": state.snapshot, "timestamp": state.timestamp},
        good_until=min(run.expiries.values()),
    )


def _verify(run: Run) -> Steps[tuple[Current, dict[str, TargetFile]]]:
    root = yield from update_root(run, "image")
    current = yield from check_repository(run, "image", root)
    run.check_expiries()
    entries: dict[str, TargetFile] = dict(current.targets.targets)
    roles: dict[str, Targets] = {Targets.type: current.targets}
    level = [Targets.type]
    for _ in range(MOST_DEPTH + 1):
        below: list[str] = []
        for name in level:
            for delegated in _delegated(roles[name].delegations, f"image/{name}"):
                if delegated.name in roles:
                    continue
                if len(roles) > MOST_ROLES_ASKED:
                    raise SearchTooLong(f"image/{name}", f"more than {MOST_ROLES_ASKED} delegated roles")
                child = yield from _load(run, current, roles[name], delegated)
                roles[delegated.name] = child
                below.append(delegated.name)
                # What lies outside of a role's patterns is nobody's word, for trucks too.
                for path, entry in child.targets.items():
                    if delegated.is_delegated_path(path):
                        entries.setdefault(path, entry)
        level = below
    if level or len(entries) > MOST_TARGETS:
        raise SearchTooLong("image/targets", f"deeper than {MOST_DEPTH}, or over {MOST_TARGETS} targets")
    return current, entries


def _delegated(delegations: Delegations | None, where: str) -> list[DelegatedRole]:
    if delegations is None:
        return []
    if delegations.roles is None:
        raise Unreadable(where, "succinct roles are not followed")
    for one in delegations.roles.values():
        if one.paths is None or not isinstance(one.unrecognized_fields.get(HARDWARE), list):
            raise Unreadable(where, f"the delegation to {one.name!r} names no paths or no hardware")
    return list(delegations.roles.values())


def _load(run: Run, current: Current, parent: Targets, delegated: DelegatedRole) -> Steps[Targets]:
    where = f"image/{delegated.name}"
    raw = yield from fetch_listed("image", delegated.name, current.listing, MOST_TARGETS_BYTES, where)
    metadata = read(raw, Targets, where, MOST_TARGETS_BYTES)
    assert parent.delegations is not None
    check_signatures(
        delegated, parent.delegations.keys, payload_of(metadata, where), metadata.signatures, where
    )
    check_listed_version(metadata.signed, current.listing[delegated.name], where)
    run.check_expiry(where, metadata.signed.expires)
    return metadata.signed


def _target(path: str, entry: TargetFile, bundle: Bundle, known: Callable[[str], bytes | None]) -> Target:
    where = "image/targets"
    if set(entry.hashes) != {"sha256"}:
        raise Unreadable(where, f"{path[:200]!r} has hashes {sorted(entry.hashes)}, not sha256 alone")
    sha256 = entry.hashes["sha256"]
    if not path.startswith(RELEASES):
        try:
            spec = spec_of(path, entry)
            document = document_of(entry.custom, spec)
        except BadDocument as error:
            raise Unreadable(where, error.message) from error
        if not 0 < spec.length <= MAX_IMAGE_BYTES:
            raise Unreadable(where, f"{path[:200]!r} has {spec.length} bytes")
        return Target(path=path, sha256=sha256, length=entry.length, document=document)
    if entry.length > MOST_RELEASE_BYTES:
        raise BadReleaseDocument(where, f"{path[:200]!r} has {entry.length} bytes")
    raw = bundle.read(served_name(path, sha256), entry.length)
    if raw is None:
        raw = known(path)
    if raw is None:
        raise RepositoryRefused(
            f"the release {path[:200]!r} is signed but neither in the bundle nor here", code="target_missing"
        )
    if len(raw) != entry.length or hashlib.sha256(raw).hexdigest() != sha256:
        raise BadReleaseDocument(where, f"{path[:200]!r}: these are not the bytes that were signed")
    release = read_release(raw)
    if release.target_path != path:
        raise BadReleaseDocument(where, f"named {path[:200]!r}, it says {release.target_path!r}")
    return Target(path=path, sha256=sha256, length=entry.length, release=raw)
