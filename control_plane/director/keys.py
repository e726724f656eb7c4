"""The director's online keys and its offline root, checked against each other at start.

`KeySource` opens signers of securesystemslib, and nothing else of the room knows where a key lies: in the
file, or, where the file only names it, in a PKCS #11 token or Vault's transit engine (key_references.py).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from securesystemslib.signer import Signer
from tuf.api.metadata import Root

from control_plane.director.key_references import (
    Opening,
    SigningFailed,
    is_reference,
    open_reference,
    read_references,
)
from control_plane.secret_files import read_secret
from shared.errors import ConfigError
from shared.logs import get_log
from shared.trust.keys import BadKey, load_signer
from shared.trust.uptane.director import DirectorSigners
from shared.trust.uptane.errors import MetadataRefused, Unreadable
from shared.trust.uptane.roles import MOST_ROOT_BYTES, check_root_signed, read
from shared.trust.uptane.side_roles import TIME, side_role

log = get_log("control_plane.director")

PROBE = b"quarry: is this key here?"
ONLINE = ("targets", "snapshot", "timestamp")
MOST_ROOTS = 1024
_ROOT_NAME = re.compile(r"([1-9][0-9]{0,8})\.root\.json")
_PRIVATE = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----", re.DOTALL)


class KeySource(Protocol):
    """Where the director's private keys are. `sign` of what it opens may block: it is called in a thread."""

    def open(self) -> Sequence[Signer]:
        """The signers. Raises ConfigError."""
        ...


@dataclass(frozen=True, kw_only=True)
class KeyFile:
    """Ed25519 keys in PKCS #8 PEM, one below the other, or references to keys that lie elsewhere, in a file
    that only its owner can read. `key` is the configuration's word for it.
    """

    path: Path
    key: str = "director_key"

    def open(self) -> Sequence[Signer]:
        """The signers. Raises ConfigError."""
        raw = read_secret(self.path)
        if raw is None:
            raise ConfigError(f"{self.key}: there is no file {self.path}")
        if is_reference(raw):
            return self._referred(raw)
        try:
            found = [load_signer(pem) for pem in _PRIVATE.findall(raw)]
        except BadKey as error:
            raise ConfigError(f"{self.key}: {self.path}: {error.message}") from error
        if not found:
            raise ConfigError(f"{self.key}: {self.path} holds no private key in PEM")
        return found

    def _referred(self, raw: bytes) -> list[Signer]:
        """Each key signs once, so that a wrong PIN or key is known at start, and tried no more."""
        opening = Opening(folder=self.path.parent)
        found: list[Signer] = []
        try:
            for reference in read_references(raw, str(self.path)):
                signer = open_reference(reference, opening, f"{self.path.name} ({reference.signer})")
                found.append(signer)
                try:
                    signer.sign(PROBE)
                except SigningFailed as error:
                    if not error.retryable:
                        raise
                    # The rest of the office goes on; what is directed waits until the key is there.
                    log.warning("director.key_not_reached", key=self.key, why=error.message)
        except (BadKey, SigningFailed) as error:
            raise ConfigError(f"{self.key}: {error.message}", advice=error.advice) from error
        return found


@dataclass(frozen=True, kw_only=True)
class Director:
    """Everything that signs for trucks: `roots` are served as they are, by name."""

    root: Root
    roots: dict[str, bytes]
    signers: DirectorSigners = field(repr=False)

    @property
    def identity(self) -> str:
        """Changes when other keys sign."""
        ids = [
            signer.public_key.keyid
            for role in (self.signers.targets, self.signers.snapshot, self.signers.timestamp)
            for signer in role
        ]
        return hashlib.sha256(" ".join(ids).encode()).hexdigest()


def open_director(keys: KeySource, roots: Path) -> Director:
    """Read the roots from a folder of `N.root.json`, and the keys that they name. Raises ConfigError.

    The chain must verify link by link from the oldest file on, and the newest root must name enough of
    these keys for each online role: a director that trucks would refuse does not start.
    """
    served = _read_roots(roots)
    try:
        root = _newest(served)
    except MetadataRefused as error:
        raise ConfigError(f"director_roots: {roots}: {error.message}") from error
    signers = {signer.public_key.keyid: signer for signer in keys.open()}
    chosen: dict[str, tuple[Signer, ...]] = {}
    for role in ONLINE:
        named = root.roles[role]
        mine = tuple(signers[keyid] for keyid in named.keyids if keyid in signers)
        if len(mine) < named.threshold:
            raise ConfigError(
                f"director_key: {role} needs {named.threshold} of the keys that root {root.version} names,"
                f" {len(mine)} are here",
                advice="Give the keys that the newest root names; see `quarry release show`.",
            )
        chosen[role] = mine
    online_root = [keyid for keyid in root.roles[Root.type].keyids if keyid in signers]
    if online_root:
        raise ConfigError(
            f"director_key: the root's own key {online_root[0][:12]} is here",
            advice="Keep the root's keys offline: with one of them here a captured office could rotate keys.",
        )
    return Director(
        root=root,
        roots={f"{version}.root.json": raw for version, raw in served.items()},
        signers=DirectorSigners(
            targets=chosen["targets"], snapshot=chosen["snapshot"], timestamp=chosen["timestamp"]
        ),
    )


def open_time_signers(keys: KeySource, root: Root) -> tuple[Signer, ...]:
    """Who signs time tokens: those of these keys that the root's role `time` names. Raises ConfigError."""
    try:
        role = side_role(root, TIME, "director/root")
    except MetadataRefused as error:
        raise ConfigError(
            f"director_time_key: {error.message}",
            advice="Make the director's root with a key of role time, or leave director_time_key away.",
        ) from error
    mine = tuple(signer for signer in keys.open() if signer.public_key.keyid in role.keyids)
    if len(mine) < role.threshold:
        raise ConfigError(
            f"director_time_key: time needs {role.threshold} of the keys that root {root.version} names,"
            f" {len(mine)} are here"
        )
    return mine


def read_root_file(path: Path, key: str) -> bytes:
    """A root's bytes for the configuration key `key`. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            raw = file.read(MOST_ROOT_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{key}: {path} can't be read: {error.strerror}") from error
    if len(raw) > MOST_ROOT_BYTES:
        raise ConfigError(f"{key}: {path} is over {MOST_ROOT_BYTES} bytes")
    return raw


def _read_roots(folder: Path) -> dict[int, bytes]:
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise ConfigError(f"director_roots: {folder} can't be read: {error.strerror}") from error
    versions = sorted(int(match[1]) for name in names if (match := _ROOT_NAME.fullmatch(name)))
    if not versions:
        raise ConfigError(
            f"director_roots: {folder} has no N.root.json",
            advice="Give the `public` folder of the director's repository, made offline.",
        )
    if len(versions) > MOST_ROOTS or versions != list(range(versions[0], versions[-1] + 1)):
        raise ConfigError(f"director_roots: {folder} has gaps, or over {MOST_ROOTS} roots")
    return {one: read_root_file(folder / f"{one}.root.json", "director_roots") for one in versions}


def _newest(served: dict[int, bytes]) -> Root:
    old: Root | None = None
    for version, raw in served.items():
        where = f"{version}.root.json"
        metadata = read(raw, Root, where, MOST_ROOT_BYTES)
        check_root_signed(metadata.signed, metadata, Root.type, where)
        if metadata.signed.version != version:
            raise Unreadable(where, f"it says it is version {metadata.signed.version}")
        if old is not None:
            check_root_signed(old, metadata, Root.type, where)
        old = metadata.signed
    assert old is not None
    return old
