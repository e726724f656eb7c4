"""Finds who in the image repository has signed a target (Uptane 5.4.4.7), within bounds.

Preorder, in listed order; a terminating delegation that applies ends the search. A delegation
applies to a target whose path one of its patterns matches and whose hardware id it names. Patterns
match part by part ("brake-controller/*/*"), never across "/". A role that applies and can't be
loaded or verified aborts the search: it might have said something else. No role is asked twice.

Refused rather than half understood: path_hash_prefixes, succinct roles and multi-role delegations
(TAP 3), which the release tool never makes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tuf.api.metadata import DelegatedRole, Delegations, TargetFile, Targets

from shared.trust.uptane.errors import NotInImageRepository, SearchTooLong, Unreadable
from shared.trust.uptane.repository_check import Current, check_listed_version, fetch_listed
from shared.trust.uptane.roles import MOST_TARGETS_BYTES, check_signatures, payload_of, read
from shared.trust.uptane.steps import Run, Steps

MOST_DEPTH = 8
MOST_ROLES_ASKED = 64
"""Roles loaded in one verification, whatever the number of its targets."""

MOST_PATTERNS = 64
MOST_PATTERN_CHARS = 200
HARDWARE = "hardware"
"""A delegation's field that lists the hardware ids it is for."""


@dataclass(kw_only=True)
class Search:
    """Searches in one verified image repository; each role is loaded once."""

    run: Run
    current: Current
    _loaded: dict[tuple[str, str], Targets] = field(default_factory=dict)

    def find(self, path: str, hardware: frozenset[str]) -> Steps[TargetFile]:
        """The target's entry, by whoever may sign for this path and all of `hardware`.

        `hardware` is empty for what runs on none: a release document. Raises MetadataRefused.
        """
        found = yield from self._below(
            Targets.type, self.current.targets, path, hardware, asked=set(), depth=0
        )
        if isinstance(found, TargetFile):
            return found
        raise NotInImageRepository("image/targets", f"nobody who may has signed {path[:200]!r}")

    def _below(
        self, name: str, role: Targets, path: str, hardware: frozenset[str], *, asked: set[str], depth: int
    ) -> Steps[TargetFile | bool]:
        """The entry, or whether the search has ended without one."""
        if (target := role.targets.get(path)) is not None:
            return target
        if depth > MOST_DEPTH:
            raise SearchTooLong(f"image/{name}", f"delegations are deeper than {MOST_DEPTH}")
        asked.add(name)
        for delegated in _delegated(role.delegations, f"image/{name}").values():
            if delegated.name in asked or not _applies(delegated, path, hardware, f"image/{name}"):
                continue
            child = yield from self._load(name, role, delegated)
            found = yield from self._below(
                delegated.name, child, path, hardware, asked=asked, depth=depth + 1
            )
            if found is not False:
                return found
            if delegated.terminating:
                return True
        return False

    def _load(self, parent: str, role: Targets, delegated: DelegatedRole) -> Steps[Targets]:
        known = self._loaded.get((parent, delegated.name))
        if known is not None:
            return known
        where = f"image/{delegated.name}"
        if len(self._loaded) >= MOST_ROLES_ASKED:
            raise SearchTooLong(where, f"more than {MOST_ROLES_ASKED} delegated roles were asked")
        listing = self.current.listing
        raw = yield from fetch_listed("image", delegated.name, listing, MOST_TARGETS_BYTES, where)
        metadata = read(raw, Targets, where, MOST_TARGETS_BYTES)
        assert role.delegations is not None
        payload = payload_of(metadata, where)
        check_signatures(delegated, role.delegations.keys, payload, metadata.signatures, where)
        check_listed_version(metadata.signed, listing[delegated.name], where)
        self.run.check_expiry(where, metadata.signed.expires)
        self._loaded[parent, delegated.name] = metadata.signed
        return metadata.signed


def _delegated(delegations: Delegations | None, where: str) -> Mapping[str, DelegatedRole]:
    if delegations is None:
        return {}
    if delegations.roles is None:
        raise Unreadable(where, "succinct roles are not followed")
    return delegations.roles


def _applies(delegated: DelegatedRole, path: str, hardware: frozenset[str], where: str) -> bool:
    patterns = delegated.paths
    if patterns is None:
        raise Unreadable(where, f"{delegated.name!r} is delegated by path hashes, which are not followed")
    if len(patterns) > MOST_PATTERNS or any(len(one) > MOST_PATTERN_CHARS for one in patterns):
        raise Unreadable(where, f"{delegated.name!r} has too many or too long patterns")
    if not delegated.is_delegated_path(path):
        return False
    named = delegated.unrecognized_fields.get(HARDWARE)
    if not isinstance(named, list) or not all(isinstance(one, str) for one in named):
        raise Unreadable(where, f"the delegation to {delegated.name!r} names no hardware")
    return hardware <= set(named)
