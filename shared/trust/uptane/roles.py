"""Reads one metadata file: bounded before it is parsed, of the right role, signed by enough keys.

On python-tuf's classes (TUF specification 1.0.31). What those leave open is closed here: a bound on
the size, an allow-list of signature schemes, and a threshold that counts different *keys*, not key
ids, since one key may be listed under two ids ("a threshold of unique keys", Uptane 5.4.4.3).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import Key, Signature
from tuf.api.exceptions import LengthOrHashMismatchError, RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Role, Root, Signed, Snapshot, Targets, Timestamp
from tuf.api.serialization import DeserializationError, SerializationError

from shared.trust.uptane.errors import BelowThreshold, NotAsListed, TooLarge, Unreadable

MOST_ROOT_BYTES = 64 * 1024
MOST_TIMESTAMP_BYTES = 16 * 1024
MOST_SNAPSHOT_BYTES = 512 * 1024
MOST_DIRECTOR_TARGETS_BYTES = 256 * 1024
MOST_TARGETS_BYTES = 4 * 1024 * 1024
MOST_KEYS = 32
"""Keys of one role; checking a signature costs time, and a role's file says how many there are."""

SCHEMES = frozenset({"ed25519", "ecdsa-sha2-nistp256"})
"""ECDSA for keys in PKCS#11 tokens, most of which have no Ed25519."""

HIGHEST_VERSION = 2**53
ROLE_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,63}")
"""Of delegated roles. No dot, since names of files are VERSION.ROLE.json."""

_Kind = TypeVar("_Kind", Root, Timestamp, Snapshot, Targets)


def read(raw: bytes, kind: type[_Kind], where: str, most_bytes: int) -> Metadata[_Kind]:
    """Parse a file of one role; nobody has checked yet who signed it. Raises TooLarge or Unreadable."""
    if len(raw) > most_bytes:
        raise TooLarge(where, f"{len(raw)} bytes, at most {most_bytes} are read")
    try:
        metadata: Metadata[_Kind] = Metadata.from_bytes(raw)
    except (DeserializationError, RepositoryError) as error:
        raise Unreadable(where, f"not metadata: {error.__cause__ or error}") from error
    signed: Signed = metadata.signed
    if not isinstance(signed, kind):
        raise Unreadable(where, f"metadata of type {signed.type}, not {kind.type}")
    check_version(signed.version, where)
    return metadata


def check_version(version: object, where: str) -> None:
    """Raise Unreadable unless it is a number that can be a version."""
    if not isinstance(version, int) or isinstance(version, bool) or not 0 < version <= HIGHEST_VERSION:
        raise Unreadable(where, f"version {str(version)[:40]} is not 1 to 2**53")


def check_listed(raw: bytes, listed: MetaFile, where: str) -> None:
    """Raise NotAsListed unless the bytes have the listed length and hashes, where those are given."""
    try:
        listed.verify_length_and_hashes(raw)
    except LengthOrHashMismatchError as error:
        raise NotAsListed(where, str(error)) from error


def payload_of(metadata: Metadata[_Kind], where: str) -> bytes:
    """The bytes that are signed. Raises Unreadable for values that canonical JSON has not."""
    try:
        return metadata.signed_bytes
    except SerializationError as error:
        raise Unreadable(where, "has values that can't be signed") from error


def check_root_signed(by: Root, metadata: Metadata[_Kind], role: str, where: str) -> None:
    """Raise BelowThreshold unless `role`'s threshold of keys in root `by` signed."""
    check_signatures(by.roles[role], by.keys, payload_of(metadata, where), metadata.signatures, where)


def check_signatures(
    role: Role, keys: Mapping[str, Key], payload: bytes, signatures: Mapping[str, Signature], where: str
) -> None:
    """Raise BelowThreshold unless `role.threshold` different keys of the role signed `payload`."""
    if len(role.keyids) > MOST_KEYS:
        raise Unreadable(where, f"the role has {len(role.keyids)} keys, at most {MOST_KEYS} are checked")
    good: set[bytes] = set()
    for keyid in role.keyids:
        key, signature = keys.get(keyid), signatures.get(keyid)
        if key is None or signature is None or key.scheme not in SCHEMES:
            continue
        try:
            key.verify_signature(signature, payload)
        except UnverifiedSignatureError:
            continue
        good.add(_material(key))
    if len(good) < role.threshold:
        raise BelowThreshold(where, f"{len(good)} valid signatures by trusted keys, {role.threshold} needed")


def _material(key: Key) -> bytes:
    """The key itself, however its text is spelt: it has verified a signature, so it can be read."""
    public = str(key.keyval["public"])
    if key.scheme == "ed25519":
        return bytes.fromhex(public)
    try:
        loaded = serialization.load_pem_public_key(public.encode())
    except (ValueError, UnsupportedAlgorithm):
        return public.encode()
    return loaded.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
