"""A signing bundle: drafts on their way to an air-gapped machine and back, one JSON file. Pure.

It carries the drafts, the newest root and top-level targets (they say who may sign), and no image: a
signer signs hashes. What comes back is only signatures: they are taken when they are over exactly the
drafts that we have and valid by keys that may sign them. Nothing else of a returned bundle is believed.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Targets
from tuf.api.serialization import DeserializationError

from shared.trust.uptane.repository import (
    Repository,
    RepositoryTrouble,
    progress,
)
from shared.trust.uptane.store import RepositoryName

MOST_BUNDLE_BYTES = 64 * 1024 * 1024
_Name = Annotated[str, Meta(pattern=r"^[0-9A-Za-z][0-9A-Za-z._-]{0,99}$")]


class _Bundle(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    v: Literal[1] = 1
    kind: RepositoryName
    published: dict[_Name, str]
    drafts: dict[_Name, str]


def dump_bundle(repository: Repository) -> bytes:
    """The drafts, and what is needed to judge them. Raises RepositoryTrouble when there is no draft."""
    if not repository.drafts:
        raise RepositoryTrouble("there is no draft to sign")
    names = [repository.newest_name(role) for role in (Root.type, Targets.type, *repository.drafts)]
    return msgspec.json.encode(
        _Bundle(
            kind=repository.kind,
            published={name: repository.published[name].decode() for name in names if name is not None},
            drafts={role: raw.decode() for role, raw in repository.drafts.items()},
        )
    )


def load_bundle(raw: bytes) -> Repository:
    """The repository that a bundle carries: it can be shown and signed. Raises RepositoryTrouble."""
    if len(raw) > MOST_BUNDLE_BYTES:
        raise RepositoryTrouble(f"a bundle of {len(raw)} bytes, at most {MOST_BUNDLE_BYTES} are read")
    try:
        bundle = msgspec.json.decode(raw, type=_Bundle)
        for text in (*bundle.published.values(), *bundle.drafts.values()):
            Metadata.from_bytes(text.encode())
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise RepositoryTrouble(f"not a signing bundle: {error}") from error
    except (DeserializationError, RepositoryError) as error:
        raise RepositoryTrouble(f"a bundle with what is not metadata: {error}") from error
    return Repository(
        kind=bundle.kind,
        published={name: text.encode() for name, text in bundle.published.items()},
        drafts={role: text.encode() for role, text in bundle.drafts.items()},
    )


def take_signatures(repository: Repository, returned: Repository) -> tuple[Repository, list[tuple[str, str]]]:
    """Our drafts with the new valid signatures of a returned bundle, and those as (role, key id).

    Raises RepositoryTrouble when a draft of ours is not what was signed there.
    """
    taken: list[tuple[str, str]] = []
    for role in returned.drafts:
        ours, theirs = repository.draft(role), returned.draft(role)
        assert theirs is not None
        if ours is None or ours.signed_bytes != theirs.signed_bytes:
            raise RepositoryTrouble(
                f"the draft of {role} is not the one that was signed",
                advice="It was edited or published since: export it again and have it signed again.",
            )
        before = _valid(repository, role)
        merged: Metadata[Any] = ours
        merged.signatures.update(
            {keyid: said for keyid, said in theirs.signatures.items() if keyid not in before}
        )
        candidate = repository.with_draft(role, merged)
        good = _valid(candidate, role)
        merged.signatures = {keyid: said for keyid, said in merged.signatures.items() if keyid in good}
        repository = repository.with_draft(role, merged)
        taken += [(role, keyid) for keyid in sorted(good - before)]
    return repository, taken


def _valid(repository: Repository, role: str) -> frozenset[str]:
    """Key ids whose signature on this draft is good."""
    return frozenset(keyid for one in progress(repository) if one.role == role for keyid in one.signed)
