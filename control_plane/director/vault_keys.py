"""A key in HashiCorp Vault's transit engine, over its HTTP API: Ed25519 or ECDSA P-256.

`POST ADDRESS/v1/MOUNT/sign/KEY` with `{"input": BASE64}` and the header `X-Vault-Token`; the answer's
`data.signature` is `vault:vVERSION:BASE64` (Vault API documentation, "Transit secrets engine", Sign data).
Rejected: securesystemslib's VaultSigner (Ed25519 alone, its client library and credentials from the
environment).
"""

from __future__ import annotations

import base64
import binascii
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Annotated, Any
from urllib.parse import quote

import httpx
import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from msgspec import Meta
from securesystemslib.signer import Signer

from control_plane.director.key_references import (
    Checked,
    KeyReference,
    Opening,
    SigningFailed,
    public_key_of,
)
from shared.trust.keys import BadKey

ANSWER_WITHIN_S = 5.0
MOST_ANSWER_BYTES = 64 * 1024
_KEY = re.compile(r"[0-9A-Za-z][0-9A-Za-z_.-]{0,127}")
_SIGNATURE = re.compile(r"vault:v([1-9][0-9]{0,8}):([0-9A-Za-z+/_=-]{1,400})")
_ECDSA: dict[str, Any] = {"hash_algorithm": "sha2-256", "marshaling_algorithm": "asn1", "prehashed": False}


class _Data(msgspec.Struct):
    signature: Annotated[str, Meta(max_length=1000)]


class _Answer(msgspec.Struct):
    data: _Data


class _Version(msgspec.Struct):
    public_key: Annotated[str, Meta(max_length=4000)]


class _Key(msgspec.Struct):
    type: str
    latest_version: int
    keys: dict[str, _Version]


class _KeyAnswer(msgspec.Struct):
    data: _Key


@dataclass(frozen=True, kw_only=True)
class _Vault:
    """One key of one Vault; `asked` goes into every signing, `version` is the only one that may sign."""

    url: str
    where: str
    token: Callable[[], str]
    verify: ssl.SSLContext | bool
    asked: dict[str, Any] = field(default_factory=dict)
    version: int | None = None

    def sign(self, payload: bytes) -> bytes:
        """One signature. Raises SigningFailed."""
        body = {**self.asked, "input": base64.b64encode(payload).decode()}
        raw = self.ask("POST", body)
        try:
            said = msgspec.json.decode(raw, type=_Answer).data.signature
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise SigningFailed(f"{self.where}: what answers is no Vault: {error}") from error
        match = _SIGNATURE.fullmatch(said)
        if match is None:
            raise SigningFailed(f"{self.where}: {said[:80]!r} is no signature of Vault's")
        if self.version is not None and int(match[1]) != self.version:
            raise SigningFailed(f"{self.where}: version {match[1]} of the key signed, not {self.version}")
        try:
            return base64.b64decode(match[2], validate=True)
        except (binascii.Error, ValueError) as error:
            raise SigningFailed(f"{self.where}: {said[:80]!r} is no signature of Vault's") from error

    def ask(self, method: str, body: dict[str, Any] | None = None) -> bytes:
        """The body of a good answer. Raises SigningFailed."""
        status, raw = self._call(method, body)
        if status != 200:
            raise SigningFailed(
                f"{self.where}: Vault answered {status}: {_complaint(raw)}",
                # 403: the token may not; 400 and 404: no such key, or one that does not sign.
                retryable=status >= 500 or status == 429,
            )
        return raw

    def _call(self, method: str, body: dict[str, Any] | None) -> tuple[int, bytes]:
        raw = bytearray()
        try:
            with (
                httpx.Client(
                    verify=self.verify, timeout=ANSWER_WITHIN_S, trust_env=False, follow_redirects=False
                ) as client,
                client.stream(method, self.url, json=body, headers={"X-Vault-Token": self.token()}) as answer,
            ):
                for chunk in answer.iter_bytes():
                    raw += chunk
                    if len(raw) > MOST_ANSWER_BYTES:
                        raise SigningFailed(f"{self.where}: an answer of over {MOST_ANSWER_BYTES} bytes")
                return answer.status_code, bytes(raw)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise SigningFailed(f"{self.where}: Vault does not answer: {error}") from error


def open_vault(reference: KeyReference, opening: Opening, where: str) -> Signer:
    """The signer of `vault:KEY`. Raises BadKey."""
    public_key = public_key_of(reference)
    asked = dict(_ECDSA) if public_key.scheme != "ed25519" else {}
    if reference.key_version is not None:
        asked["key_version"] = reference.key_version
    vault = replace(_reach(reference, opening, where, "sign"), asked=asked, version=reference.key_version)
    return Checked(public_key, vault.sign, where)


def public_in_vault(reference: KeyReference, opening: Opening, where: str) -> tuple[bytes, int]:
    """The public half of Vault's key in PEM, and its version: the newest, or the named one.

    `GET ADDRESS/v1/MOUNT/keys/KEY`; `data.keys` has `public_key` by version, in PEM or, of Ed25519, the 32
    bytes in base64. Raises BadKey or SigningFailed; the reference's own `public_key` is not looked at.
    """
    raw = _reach(reference, opening, where, "keys").ask("GET")
    try:
        data = msgspec.json.decode(raw, type=_KeyAnswer).data
        version = reference.key_version or data.latest_version
        said = data.keys[str(version)].public_key
        if data.type == "ed25519":
            key = Ed25519PublicKey.from_public_bytes(base64.b64decode(said, validate=True))
            form = serialization.PublicFormat.SubjectPublicKeyInfo
            return key.public_bytes(serialization.Encoding.PEM, form), version
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, ValueError) as error:
        raise BadKey(
            f"{where}: Vault shows no such public key: {error}",
            advice="It must be of type ed25519 or ecdsa-p256; see `vault read transit/keys/KEY`.",
        ) from error
    return said.encode(), version


def _reach(reference: KeyReference, opening: Opening, where: str, act: str) -> _Vault:
    key = reference.signer.partition(":")[2]
    if not _KEY.fullmatch(key):
        raise BadKey(f"{where}: {key[:80]!r} is not the name of a key in Vault")
    if reference.address is None or reference.token_file is None:
        raise BadKey(f"{where}: Vault's `address` and a `token_file` must be named")
    try:
        address = httpx.URL(reference.address)
    except httpx.InvalidURL as error:
        raise BadKey(f"{where}: {reference.address[:200]!r} is no address: {error}") from error
    if address.scheme != "https" and not (address.scheme == "http" and _is_loopback(address.host)):
        raise BadKey(
            f"{where}: {reference.address[:200]!r} is not https://",
            advice="Vault's token must not travel in the clear, but on this machine.",
        )
    return _Vault(
        url=f"{reference.address.rstrip('/')}/v1/{reference.mount}/{act}/{quote(key)}",
        where=where,
        token=opening.secret(reference.token_file, f"Vault's token for {key}"),
        verify=_verify(reference, opening, where),
    )


def _verify(reference: KeyReference, opening: Opening, where: str) -> ssl.SSLContext | bool:
    if reference.ca_file is None:
        return True
    try:
        return ssl.create_default_context(cafile=opening.path(reference.ca_file))
    except (OSError, ssl.SSLError) as error:
        raise BadKey(f"{where}: ca_file {reference.ca_file} can't be used: {error}") from error


def _is_loopback(host: str) -> bool:
    return host in {"127.0.0.1", "::1", "localhost"}


def _complaint(raw: bytes) -> str:
    try:
        errors = msgspec.json.decode(raw, type=dict[str, Any]).get("errors", [])
        return "; ".join(str(one) for one in errors)[:300] or "no reason given"
    except (msgspec.DecodeError, UnicodeDecodeError, TypeError):
        return "no reason given"
