"""Keys that lie elsewhere: in a PKCS #11 token, or in Vault's transit engine. One JSON file names them.

    {"signer": "hsm:2?label=director", "public_key": "-----BEGIN PUBLIC KEY-----...",
     "library": "/usr/lib/softhsm/libsofthsm2.so", "pin_file": "director.pin"}

    {"signer": "vault:director", "public_key": "-----BEGIN PUBLIC KEY-----...",
     "address": "https://vault:8200", "token_file": "vault.token", "ca_file": "vault-ca.pem"}

or a list of such. The private key is never seen here; what its owner signed is checked with the public key
before it is used, so that a key that was replaced there is noticed here and not by the trucks. The office and
the release desk read the same form; where a person is there to be asked, `pin_file` may be left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta
from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import Key, Signature, Signer

from control_plane.secret_files import read_secret
from shared.errors import ConfigError
from shared.trust.document import TrustError
from shared.trust.keys import BadKey, load_role_key

_Short = Annotated[str, Meta(min_length=1, max_length=1000)]


class SigningFailed(TrustError):
    """The key's owner, a token or a server, did not sign."""

    code = "signing_failed"
    retryable = True
    advice = "Look at the token, or at Vault's log; the key itself is not here."


class KeyReference(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a private key is. `key_version` and `mount` are Vault's, `library` and `pin_file` a token's."""

    signer: _Short
    public_key: Annotated[str, Meta(max_length=4000)]
    library: _Short | None = None
    pin_file: _Short | None = None
    address: _Short | None = None
    token_file: _Short | None = None
    ca_file: _Short | None = None
    mount: Annotated[str, Meta(pattern=r"^[0-9A-Za-z_-]{1,64}(/[0-9A-Za-z_-]{1,64}){0,7}$")] = "transit"
    key_version: Annotated[int, Meta(ge=1)] | None = None

    @property
    def scheme(self) -> str:
        """Hsm or vault."""
        return self.signer.partition(":")[0]


class Checked(Signer):
    """A signer whose every signature is checked before it is given out."""

    def __init__(self, public_key: Key, act: Callable[[bytes], bytes], where: str) -> None:
        """`act` signs a payload: raw bytes for Ed25519, DER for ECDSA. It raises SigningFailed."""
        self._public_key = public_key
        self._act = act
        self._where = where

    @property
    def public_key(self) -> Key:
        """Its public half."""
        return self._public_key

    @classmethod
    def from_priv_key_uri(
        cls, priv_key_uri: str, public_key: Key, secrets_handler: Callable[[str], str] | None = None
    ) -> Signer:
        """Nothing is known of such a key but by its reference."""
        raise NotImplementedError("open it by its KeyReference")

    def sign(self, payload: bytes) -> Signature:
        """The signature. Raises SigningFailed, also when another key than the named one signed."""
        made = Signature(self._public_key.keyid, self._act(payload).hex())
        try:
            self._public_key.verify_signature(made, payload)
        except UnverifiedSignatureError as error:
            raise SigningFailed(
                f"{self._where} signs with another key than its reference names",
                retryable=False,
                advice="Was the key replaced there? Rotate it in the root, and name its new public half.",
            ) from error
        return made


@dataclass(frozen=True, kw_only=True)
class Opening:
    """How a reference is opened: files are below `folder`; `ask` gets a PIN that no file holds."""

    folder: Path
    ask: Callable[[str], str] | None = None

    def path(self, name: str) -> Path:
        """A file that a reference names."""
        return self.folder / name

    def secret(self, name: str | None, what: str) -> Callable[[], str]:
        """Reads the secret of `what` anew at each call: a Vault token is renewed in its file."""

        def read() -> str:
            if name is None:
                if self.ask is None:
                    raise ConfigError(f"no file is named for {what}, and nobody is there to be asked")
                return self.ask(what)
            raw = read_secret(self.path(name))
            if raw is None:
                raise ConfigError(f"{what}: there is no file {self.path(name)}")
            return raw.decode("utf-8", "replace").strip()

        return read


def is_reference(raw: bytes) -> bool:
    """Whether a key file holds references, not keys."""
    return raw.lstrip()[:1] in {b"{", b"["}


def read_references(raw: bytes, where: str) -> list[KeyReference]:
    """The references of a file. Raises BadKey."""
    try:
        found = msgspec.json.decode(raw, type=KeyReference | list[KeyReference])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadKey(
            f"{where} is no key reference: {error}", advice="See cli/README.md for its form."
        ) from error
    return found if isinstance(found, list) else [found]


def public_key_of(reference: KeyReference) -> Key:
    """Its public half. Raises BadKey."""
    return load_role_key(reference.public_key.encode())


def open_reference(reference: KeyReference, opening: Opening, where: str) -> Signer:
    """The signer that a reference names; nothing is asked of its owner yet. Raises BadKey or ConfigError."""
    # Imported where they are used: a desk without a token needs neither.
    match reference.scheme:
        case "hsm":
            from control_plane.director.pkcs11_keys import open_token

            return open_token(reference, opening, where)
        case "vault":
            from control_plane.director.vault_keys import open_vault

            return open_vault(reference, opening, where)
        case _:
            raise BadKey(
                f"{where}: {reference.signer[:80]!r} is not the address of a key",
                advice="It begins with hsm: (a PKCS #11 token) or vault: (Vault's transit engine).",
            )
