"""Signers at the desk: key files that are encrypted at rest, and keys that never leave a PKCS#11 token.

A key file is PKCS#8 in PEM, as `quarry release repo keygen` writes it. A token reference is a JSON file
`{"signer": "hsm:2?label=release", "public_key": "-----BEGIN PUBLIC KEY-----..."}`: the address is that
of securesystemslib's signer for it, whose library and PIN the environment names (PYKCS11LIB). The
passphrase, or PIN, comes from a file descriptor, the environment or, at a terminal, a question.
"""

from __future__ import annotations

import getpass
import os
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.exceptions import Error as SigningError
from securesystemslib.signer import Key, SecretsHandler, Signer

from cli.release_files import KEY_SECRET_VARIABLE, read_file
from shared.trust.document import MAX_DOCUMENT_BYTES
from shared.trust.keys import BadKey, load_role_key, load_signer
from shared.trust.uptane.repository import RoleKeys

MOST_SECRET_BYTES = 4096
PassphraseFd = Annotated[
    int | None,
    typer.Option(
        help="Read the passphrase from this open file descriptor; else QUARRY_KEY_PASSPHRASE is it."
    ),
]


class _TokenReference(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    signer: str
    public_key: str


def secret(passphrase_fd: int | None, what: str, *, new: bool = False) -> str:
    """The passphrase or PIN of `what`; a `new` one is asked for twice. Raises BadKey without one."""
    if passphrase_fd is not None:
        try:
            raw = os.read(passphrase_fd, MOST_SECRET_BYTES)
        except OSError as error:
            raise BadKey(f"file descriptor {passphrase_fd} can't be read: {error.strerror}") from error
        said = raw.decode(errors="replace").split("\n", 1)[0]
    elif os.environ.get(KEY_SECRET_VARIABLE):
        said = os.environ[KEY_SECRET_VARIABLE]
    elif sys.stdin.isatty():
        said = getpass.getpass(f"Passphrase of {what}: ")
        if new and getpass.getpass("Again: ") != said:
            raise BadKey("the two passphrases differ", advice="Begin again.")
    else:
        said = ""
    if not said:
        raise BadKey(
            f"no passphrase for {what}",
            advice=f"Set {KEY_SECRET_VARIABLE}, give --passphrase-fd, or run it at a terminal.",
        )
    return said


def open_signers(paths: list[Path], passphrase_fd: int | None) -> list[Signer]:
    """A signer for each file; one passphrase, asked for once, serves them all. Raises BadKey."""
    known: list[str] = []

    def ask(what: str) -> str:
        if not known:
            known.append(secret(passphrase_fd, what))
        return known[0]

    found: list[Signer] = []
    for path in paths:
        raw = read_file(path, MAX_DOCUMENT_BYTES)
        if raw.lstrip().startswith(b"{"):
            found.append(_token(raw, path, ask))
        elif b"ENCRYPTED" in raw:
            found.append(load_signer(raw, ask(str(path)).encode()))
        else:
            raise BadKey(f"{path} is not encrypted", advice=_encrypt_advice(path, raw))
    return found


def open_public(paths: list[Path], threshold: int) -> RoleKeys:
    """Public keys of a role from PEM files or token references. Raises BadKey."""
    return RoleKeys(keys=tuple(public_key(path) for path in paths), threshold=threshold)


def public_key(path: Path) -> Key:
    """The public key of a PEM file or a token reference. Raises BadKey."""
    raw = read_file(path, MAX_DOCUMENT_BYTES)
    if raw.lstrip().startswith(b"{"):
        return load_role_key(_reference(raw, path).public_key.encode())
    return load_role_key(raw)


def _reference(raw: bytes, path: Path) -> _TokenReference:
    try:
        return msgspec.json.decode(raw, type=_TokenReference)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadKey(f"{path} is no token reference: {error}") from error


def _token(raw: bytes, path: Path, ask: SecretsHandler) -> Signer:
    reference = _reference(raw, path)
    if not reference.signer.startswith("hsm:"):
        raise BadKey(f"{path}: {reference.signer[:80]!r} is not the address of a token, hsm:...")
    try:
        return Signer.from_priv_key_uri(reference.signer, load_role_key(reference.public_key.encode()), ask)
    except (SigningError, ValueError, OSError) as error:
        raise BadKey(
            f"{path}: the token can't be used: {error}",
            advice="Install python-pkcs11 and let PYKCS11LIB name the token's library.",
        ) from error


def _encrypt_advice(path: Path, raw: bytes) -> str:
    try:
        load_pem_private_key(raw, None)
    except (ValueError, TypeError):
        return "Give a private key as `quarry release repo keygen` writes it."
    return f"Encrypt it: openssl pkcs8 -topk8 -in {path} -out {path}.enc"
