"""Signers at the desk: key files that are encrypted at rest, and keys that lie in a PKCS#11 token or Vault.

A key file is PKCS#8 in PEM, as `quarry release keygen` writes it. A key reference is a JSON file
(`control_plane.director.key_references`) that names a token's key, `hsm:2?label=release`, or Vault's. The
passphrase, or PIN, comes from a file descriptor, the environment or, at a terminal, a question.
"""

from __future__ import annotations

import getpass
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import Key, Signer

from cli.release_files import KEY_SECRET_VARIABLE, read_file
from control_plane.director.key_references import (
    Opening,
    is_reference,
    open_reference,
    public_key_of,
    read_references,
)
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
        if is_reference(raw):
            opening = Opening(folder=path.parent, ask=ask)
            found += [open_reference(one, opening, str(path)) for one in read_references(raw, str(path))]
        elif b"ENCRYPTED" in raw:
            found.append(load_signer(raw, ask(str(path)).encode()))
        else:
            raise BadKey(f"{path} is not encrypted", advice=_encrypt_advice(path, raw))
    return found


def open_public(paths: list[Path], threshold: int) -> RoleKeys:
    """Public keys of a role from PEM files or key references. Raises BadKey."""
    return RoleKeys(keys=tuple(public_key(path) for path in paths), threshold=threshold)


def public_key(path: Path) -> Key:
    """The public key of a PEM file or a key reference. Raises BadKey."""
    raw = read_file(path, MAX_DOCUMENT_BYTES)
    if not is_reference(raw):
        return load_role_key(raw)
    references = read_references(raw, str(path))
    if len(references) != 1:
        raise BadKey(f"{path} names {len(references)} keys", advice="Name one key in each file.")
    return public_key_of(references[0])


def _encrypt_advice(path: Path, raw: bytes) -> str:
    try:
        load_pem_private_key(raw, None)
    except (ValueError, TypeError):
        return "Give a private key as `quarry release keygen` writes it."
    return f"Encrypt it: openssl pkcs8 -topk8 -in {path} -out {path}.enc"
