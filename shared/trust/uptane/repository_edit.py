"""Edits an image repository's drafts: targets in and out, delegations, keys. Pure.

Each edit makes, or changes, the draft of one role: the next version, with a fresh expiry and without
the signatures that it had, since they were over something else.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from securesystemslib.signer import Key
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, Role, Root, TargetFile, Targets

from shared.release import FirmwareSpec
from shared.trust.uptane.delegation import HARDWARE
from shared.trust.uptane.ecu_document import DOCUMENT, check_ecu_document
from shared.trust.uptane.release_document import ReleaseSpec
from shared.trust.uptane.repository import (
    TOP_LEVEL,
    Repository,
    RepositoryTrouble,
    RoleKeys,
    after,
)
from shared.trust.uptane.roles import ROLE_NAME
from shared.trust.uptane.side_roles import SIDE_ROLES, set_side_role, side_role


def firmware_target(spec: FirmwareSpec, document: bytes | None = None) -> TargetFile:
    """A firmware as a target of the image repository, with the ECU's own document where it verifies one.

    Raises BadDocument for a document that is not of exactly this firmware (see ecu_document.py).
    """
    custom: dict[str, Any] = {
        "kind": spec.kind,
        "hardware": list(spec.hardware),
        "version": spec.version,
        "release_counter": spec.release_counter,
    }
    if document is not None:
        custom[DOCUMENT] = check_ecu_document(document, spec).decode()
    return TargetFile(
        length=spec.length,
        hashes={"sha256": spec.sha256},
        path=spec.target_path,
        unrecognized_fields={"custom": custom},
    )


def release_target(release: ReleaseSpec) -> TargetFile:
    """A release document as a target."""
    return TargetFile.from_data(release.target_path, release.dump(), ["sha256"])


def add_target(repository: Repository, target: TargetFile, now: datetime) -> tuple[Repository, str]:
    """Put a target into the role that may sign it: the family's where one is delegated, else the top.

    Also the role's name. Raises RepositoryTrouble when the family's delegation is not for this hardware.
    """
    role = role_for(repository, target)
    metadata = edit_targets(repository, role, now)
    metadata.signed.targets[target.path] = target
    return repository.with_draft(role, metadata), role


def role_for(repository: Repository, target: TargetFile) -> str:
    """The role whose word on this target a truck takes."""
    delegations = repository.top().delegations
    for delegated in (delegations.roles or {}).values() if delegations is not None else ():
        if not delegated.is_delegated_path(target.path):
            continue
        wanted = set((target.custom or {}).get("hardware", ()))
        known = set(delegated.unrecognized_fields.get(HARDWARE, ()))
        if not wanted <= known:
            raise RepositoryTrouble(
                f"{delegated.name} may sign for hardware {', '.join(sorted(known))}, "
                f"not for {', '.join(sorted(wanted - known))}"
            )
        return delegated.name
    return Targets.type


def withdraw(repository: Repository, path: str, now: datetime) -> tuple[Repository, str]:
    """Take a target out of its role; trucks refuse it once this is published. Raises RepositoryTrouble."""
    for role in targets_roles(repository):
        metadata = repository.coming(role)
        if metadata is not None and path in metadata.signed.targets:
            draft = edit_targets(repository, role, now)
            del draft.signed.targets[path]
            return repository.with_draft(role, draft), role
    raise RepositoryTrouble(f"no role has a target {path!r}")


def targets_roles(repository: Repository) -> list[str]:
    """The top-level targets and every role that they delegate to."""
    delegations = repository.top().delegations
    return [Targets.type, *((delegations.roles or {}) if delegations is not None else {})]


def delegate(
    repository: Repository, family: str, keys: RoleKeys, hardware: Sequence[str], now: datetime
) -> Repository:
    """Let `keys` sign for an ECU family: what lies in its folder, for this hardware and no other.

    The delegation is terminating: nobody else may answer for the family. Repeating it replaces keys and
    hardware.
    """
    if family in TOP_LEVEL or not ROLE_NAME.fullmatch(family):
        raise RepositoryTrouble(f"{family!r} can't be the name of a family's role")
    top = edit_targets(repository, Targets.type, now)
    signed: Targets = top.signed
    if signed.delegations is None:
        signed.delegations = Delegations(keys={}, roles={})
    roles = signed.delegations.roles
    assert roles is not None
    roles[family] = DelegatedRole(
        name=family,
        keyids=[key.keyid for key in keys.keys],
        threshold=keys.threshold,
        terminating=True,
        paths=[f"{family}/*/*"],
        unrecognized_fields={HARDWARE: sorted(hardware)},
    )
    known = {**signed.delegations.keys, **{key.keyid: key for key in keys.keys}}
    used = {keyid for role in roles.values() for keyid in role.keyids}
    signed.delegations.keys = {keyid: key for keyid, key in known.items() if keyid in used}
    made = repository.with_draft(Targets.type, top)
    # Signed anew, since the published version carries the signatures of the keys that were.
    return made.with_draft(family, edit_targets(made, family, now))


def rotate_key(repository: Repository, role: str, old: str, new: Key, now: datetime) -> Repository:
    """Replace key `old` (its id, or the beginning of it) of a role by `new`. Raises RepositoryTrouble.

    For a top-level or side role this drafts the next root. Rotating `timestamp` or `snapshot` also makes
    void what a thief of the old key counted up (fast-forward).
    """
    if role in SIDE_ROLES:
        return _rotate_side(repository, role, old, new, now)
    if role not in TOP_LEVEL:
        return _rotate_delegated(repository, role, old, new, now)
    metadata = edit_root(repository, now)
    root: Root = metadata.signed
    keyid = _one_of(root.roles[role].keyids, old, role)
    root.revoke_key(keyid, role)
    root.add_key(new, role)
    made = repository.with_draft(Root.type, metadata)
    if role == Targets.type and repository.kind == "image":
        made = made.with_draft(role, edit_targets(made, role, now))
    return made


def _rotate_side(repository: Repository, name: str, old: str, new: Key, now: datetime) -> Repository:
    metadata = edit_root(repository, now)
    root: Root = metadata.signed
    role = side_role(root, name, "director/root")
    keyid = _one_of(role.keyids, old, name)
    if new.keyid in root.keys:
        raise RepositoryTrouble(f"the key {new.keyid[:12]} serves another role already")
    del root.keys[keyid]
    root.keys[new.keyid] = new
    keyids = [new.keyid if one == keyid else one for one in role.keyids]
    set_side_role(root, name, Role(keyids, role.threshold))
    return repository.with_draft(Root.type, metadata)


def _rotate_delegated(repository: Repository, role: str, old: str, new: Key, now: datetime) -> Repository:
    delegations = repository.top().delegations if repository.kind == "image" else None
    known = (delegations.roles or {}).get(role) if delegations is not None else None
    if delegations is None or known is None:
        raise RepositoryTrouble(f"there is no role {role!r}")
    keyid = _one_of(known.keyids, old, role)
    keys = tuple(delegations.keys[one] for one in known.keyids if one != keyid)
    hardware = known.unrecognized_fields[HARDWARE]
    return delegate(repository, role, RoleKeys(keys=(*keys, new), threshold=known.threshold), hardware, now)


def _one_of(keyids: Sequence[str], beginning: str, name: str) -> str:
    found = [keyid for keyid in keyids if beginning and keyid.startswith(beginning)]
    if len(found) != 1:
        raise RepositoryTrouble(f"{len(found)} keys of {name} have an id that begins with {beginning!r}")
    return found[0]


def renew(repository: Repository, role: str, now: datetime) -> Repository:
    """Draft a role as it is with a later expiry: root, targets or a family's. Raises RepositoryTrouble."""
    if role == Root.type:
        return repository.with_draft(role, edit_root(repository, now))
    if repository.kind != "image" or role not in targets_roles(repository):
        raise RepositoryTrouble(f"no role {role!r} to renew; `publish` renews the other two")
    return repository.with_draft(role, edit_targets(repository, role, now))


def edit_root(repository: Repository, now: datetime) -> Metadata[Any]:
    """The draft of the next root, without signatures."""
    metadata = repository.coming(Root.type)
    assert metadata is not None
    if Root.type not in repository.drafts:
        metadata.signed.version += 1
    metadata.signed.expires = after(now, repository.lives.root)
    metadata.signatures.clear()
    return metadata


def edit_targets(repository: Repository, role: str, now: datetime) -> Metadata[Any]:
    """The draft of a targets role's next version, without signatures; empty when it has none yet."""
    metadata = repository.coming(role)
    expires = after(now, repository.lives.targets)
    if metadata is None:
        return Metadata(Targets(expires=expires))
    if role not in repository.drafts:
        metadata.signed.version += 1
    metadata.signed.expires = expires
    metadata.signatures.clear()
    return metadata
