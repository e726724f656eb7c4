"""Root metadata, version by version (Uptane 5.4.4.3): old and new threshold, then what a rotation undoes.

Each link that verifies is kept at once, whatever fails later: a truck that has seen the rotation of a
stolen key must not forget it because the link was cut.
"""

from __future__ import annotations

import msgspec
from tuf.api.metadata import Root, Snapshot, Timestamp

from shared.trust.uptane.errors import RootVersion, TooManyRoots
from shared.trust.uptane.roles import MOST_ROOT_BYTES, check_root_signed, read
from shared.trust.uptane.side_roles import OFFLINE, TIME, side_keyids
from shared.trust.uptane.steps import Run, Steps, Wanted
from shared.trust.uptane.store import RepositoryName

MOST_NEW_ROOTS = 64


def update_root(run: Run, repository: RepositoryName) -> Steps[Root]:
    """Follow the chain to the newest root, whose expiry is not looked at yet. Raises MetadataRefused.

    Both chains are followed before any expiry is judged: the floor that a thief of one repository's
    key made must not hide the rotation that takes it away.
    """
    where = f"{repository}/root"
    root = run.store.of(repository).read_root().signed
    for _ in range(MOST_NEW_ROOTS):
        raw = yield Wanted(
            repository=repository,
            name=f"{root.version + 1}.root.json",
            most_bytes=MOST_ROOT_BYTES,
            probe=True,
        )
        if raw is None:
            break
        new = read(raw, Root, where, MOST_ROOT_BYTES)
        check_root_signed(root, new, Root.type, where)
        check_root_signed(new.signed, new, Root.type, where)
        if new.signed.version != root.version + 1:
            raise RootVersion(where, f"version {new.signed.version} does not follow {root.version}")
        _accept(run, repository, root, new.signed, raw)
        root = new.signed
    else:
        raise TooManyRoots(where, f"more than {MOST_NEW_ROOTS} new versions in one go")
    return root


def _accept(run: Run, repository: RepositoryName, old: Root, new: Root, raw: bytes) -> None:
    state = msgspec.structs.replace(run.store.of(repository), root=raw.decode())
    timestamp = _rotated(old, new, Timestamp.type)
    if timestamp or _rotated(old, new, Snapshot.type):
        # Recovery from fast-forward (5.4.4.3, step 4): what the thief counted up is void.
        state = msgspec.structs.replace(state, timestamp=0, snapshot=0, roles={})
    run.store = run.store.replaced(repository, state)
    if timestamp:
        run.forget_times(f"{repository}/timestamp")
    if repository == "director":
        if side_keyids(old, TIME) - side_keyids(new, TIME):
            run.forget_times("director/time")
        if side_keyids(old, OFFLINE) - side_keyids(new, OFFLINE):
            run.forget_times("director/offline")
            run.store = msgspec.structs.replace(run.store, offline=0)


def _rotated(old: Root, new: Root, role: str) -> bool:
    """A key was taken away. One that is only added makes nothing void that the others signed."""
    return bool(set(old.roles[role].keyids) - set(new.roles[role].keyids))
