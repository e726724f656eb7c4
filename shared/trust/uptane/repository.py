"""An image repository as its maker holds it: what is published, and drafts that gather signatures. Pure.

A draft is the next version of one role. `sign` adds a signature to every draft that a key may sign;
when all have their thresholds, publication puts them out with a new snapshot and timestamp. Names are
those of consistent snapshots (N.role.json), so any static file server or bucket can serve them; only
timestamp.json is ever overwritten.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import Key, Signer
from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import Metadata, Role, Root, Snapshot, Targets, Timestamp
from tuf.api.serialization.json import JSONSerializer

from shared.errors import OtaError
from shared.since_310 import UTC
from shared.trust.uptane.side_roles import SIDE_ROLES, set_side_role
from shared.trust.uptane.store import RepositoryName

TIME_FORM = "%Y-%m-%dT%H:%M:%SZ"
TOP_LEVEL = (Root.type, Targets.type, Snapshot.type, Timestamp.type)


class RepositoryTrouble(OtaError):
    """The repository can't be changed in this way."""

    code = "repository"
    advice = "See `quarry release show`: it lists drafts, and which signatures they miss."


@dataclass(frozen=True, kw_only=True)
class RoleKeys:
    """Who may sign a role, and how many of them must."""

    keys: tuple[Key, ...]
    threshold: int

    def __post_init__(self) -> None:
        """Raises RepositoryTrouble for a key given twice or a threshold that the keys can't meet."""
        if len({key.keyid for key in self.keys}) != len(self.keys):
            raise RepositoryTrouble("one key is given twice")
        if not 1 <= self.threshold <= len(self.keys):
            raise RepositoryTrouble(f"threshold {self.threshold} with {len(self.keys)} keys")


@dataclass(frozen=True, kw_only=True)
class Lives:
    """For how many days each role is good."""

    root: int = 365
    targets: int = 365
    snapshot: int = 30
    timestamp: int = 7


@dataclass(frozen=True, kw_only=True)
class Repository:
    """`published` by served name, `drafts` by role. A value: every act returns a new one."""

    kind: RepositoryName = "image"
    published: Mapping[str, bytes] = field(default_factory=dict)
    drafts: Mapping[str, bytes] = field(default_factory=dict)
    lives: Lives = field(default_factory=Lives)

    def newest_name(self, role: str) -> str | None:
        """The served name of a role's newest version."""
        versions = [
            int(name.partition(".")[0])
            for name in self.published
            if name.endswith(f".{role}.json") and name.partition(".")[0].isdigit()
        ]
        return f"{max(versions)}.{role}.json" if versions else None

    def newest(self, role: str) -> Metadata[Any] | None:
        """A role's newest published version."""
        name = "timestamp.json" if role == Timestamp.type else self.newest_name(role)
        raw = self.published.get(name) if name is not None else None
        return None if raw is None else Metadata.from_bytes(raw)

    def draft(self, role: str) -> Metadata[Any] | None:
        """A role's draft."""
        raw = self.drafts.get(role)
        return None if raw is None else Metadata.from_bytes(raw)

    def coming(self, role: str) -> Metadata[Any] | None:
        """The draft, else the newest published version."""
        return self.draft(role) or self.newest(role)

    def root(self) -> Root:
        """The root that will hold after the next publication. Raises RepositoryTrouble."""
        root = self.coming(Root.type)
        if root is None:
            raise RepositoryTrouble("there is no root: begin with `quarry release init`")
        signed: Root = root.signed
        return signed

    def top(self) -> Targets:
        """The top-level targets that will hold after the next publication."""
        targets = self.coming(Targets.type)
        assert targets is not None
        signed: Targets = targets.signed
        return signed

    def with_draft(self, role: str, metadata: Metadata[Any]) -> Repository:
        """The repository with a draft put in, its signatures as they are."""
        return replace(self, drafts={**self.drafts, role: to_bytes(metadata)})


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a draft is: key ids that have signed, those that could, and how many it takes."""

    role: str
    signed: tuple[str, ...]
    unsigned: tuple[str, ...]
    threshold: int

    @property
    def missing(self) -> int:
        """Signatures that are still needed."""
        return max(0, self.threshold - len(self.signed))


def begin(
    kind: RepositoryName,
    roles: Mapping[str, RoleKeys],
    now: datetime,
    *,
    sides: Mapping[str, RoleKeys] | None = None,
    lives: Lives | None = None,
) -> Repository:
    """A repository with the draft of its first root; an image repository's with empty targets, too.

    `roles` are the four top-level ones, `sides` a director's `time` and `offline`. Raises
    RepositoryTrouble.
    """
    if set(roles) != set(TOP_LEVEL):
        raise RepositoryTrouble(f"keys are needed for {', '.join(TOP_LEVEL)}")
    sides, lives = sides or {}, lives or Lives()
    if sides and (kind != "director" or not set(sides) <= SIDE_ROLES):
        raise RepositoryTrouble(f"only a director has side roles, {' and '.join(sorted(SIDE_ROLES))}")
    root = Root(
        expires=after(now, lives.root),
        consistent_snapshot=True,
        keys={key.keyid: key for one in roles.values() for key in one.keys},
        roles={name: Role([key.keyid for key in one.keys], one.threshold) for name, one in roles.items()},
    )
    taken = set(root.keys)
    for name, one in sides.items():
        for key in one.keys:
            if key.keyid in taken:
                raise RepositoryTrouble(f"the key {key.keyid[:12]} of {name} serves another role already")
            root.keys[key.keyid] = key
        set_side_role(root, name, Role([key.keyid for key in one.keys], one.threshold))
    made = Repository(kind=kind, lives=lives).with_draft(Root.type, Metadata(root))
    if kind == "director":
        return made
    return made.with_draft(Targets.type, Metadata(Targets(expires=after(now, lives.targets))))


def progress(repository: Repository) -> tuple[Progress, ...]:
    """Every draft and its signatures; a new root appears twice, by the old root's keys and by its own."""
    found: list[Progress] = []
    for role in repository.drafts:
        metadata = repository.draft(role)
        assert metadata is not None
        for who, keys in signers_of(repository, role):
            signed = tuple(keyid for keyid in who.keyids if has_signed(metadata, keys.get(keyid)))
            unsigned = tuple(keyid for keyid in who.keyids if keyid not in signed)
            found.append(Progress(role=role, signed=signed, unsigned=unsigned, threshold=who.threshold))
    return tuple(found)


def signers_of(repository: Repository, role: str) -> list[tuple[Role, Mapping[str, Key]]]:
    """Each set of keys that must sign a draft of this role. Raises RepositoryTrouble."""
    root = repository.root()
    if role == Root.type:
        old = repository.newest(Root.type)
        roots = [root] if old is None else [old.signed, root]
        return [(one.roles[Root.type], one.keys) for one in roots]
    if role in TOP_LEVEL:
        return [(root.roles[role], root.keys)]
    delegations = repository.top().delegations
    if delegations is None or not delegations.roles or role not in delegations.roles:
        raise RepositoryTrouble(f"nobody delegates to {role!r}: use `quarry release delegate`")
    return [(delegations.roles[role], delegations.keys)]


def sign(repository: Repository, signer: Signer, only: str | None = None) -> tuple[Repository, list[str]]:
    """Sign every draft (or `only` one) that this key may sign; also the names of the roles signed.

    Raises RepositoryTrouble when it may sign none of them.
    """
    keyid = signer.public_key.keyid
    done: list[str] = []
    for role in [one for one in repository.drafts if only in {None, one}]:
        if any(keyid in who.keyids for who, _ in signers_of(repository, role)):
            metadata = repository.draft(role)
            assert metadata is not None
            sign_metadata(metadata, signer)
            repository, done = repository.with_draft(role, metadata), [*done, role]
    if not done:
        raise RepositoryTrouble(f"no draft takes a signature by key {keyid[:12]}")
    return repository, done


def sign_metadata(metadata: Metadata[Any], signer: Signer) -> None:
    """Add a signature. Raises RepositoryTrouble when the key, a token perhaps, does not."""
    try:
        metadata.sign(signer, append=True)
    except UnsignedMetadataError as error:
        raise RepositoryTrouble(str(error)) from error


def to_bytes(metadata: Metadata[Any]) -> bytes:
    """As it is stored and served."""
    return metadata.to_bytes(JSONSerializer(compact=True))


def after(now: datetime, days: int) -> datetime:
    """`days` from now, in UTC to the second."""
    return (now.astimezone(UTC) + timedelta(days=days)).replace(microsecond=0, tzinfo=UTC)


def has_signed(metadata: Metadata[Any], key: Key | None) -> bool:
    """Whether a good signature by this key is there."""
    signature = metadata.signatures.get(key.keyid) if key is not None else None
    if key is None or signature is None:
        return False
    try:
        key.verify_signature(signature, metadata.signed_bytes)
    except UnverifiedSignatureError:
        return False
    return True
