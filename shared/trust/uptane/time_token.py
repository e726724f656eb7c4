"""A time token: the time role's answer to a truck that doesn't know what time it is.

It travels over plain HTTP, for TLS itself fails on wrong dates. The nonce, fresh for each question,
binds it to this truck's moment: an old answer proves nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta
from securesystemslib.formats import encode_canonical
from securesystemslib.signer import Signature, Signer

from shared.since_310 import UTC
from shared.trust.uptane.errors import BadTimeToken
from shared.trust.uptane.roles import check_signatures
from shared.trust.uptane.side_roles import TIME, side_role
from shared.trust.uptane.store import TrustedStore

WHERE = "director/time"
MOST_TOKEN_BYTES = 8 * 1024
_FORM = "%Y-%m-%dT%H:%M:%SZ"


class _Said(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    kind: Literal["time"] = "time"
    nonce: Annotated[str, Meta(pattern=r"^[0-9a-f]{32,128}$")]
    at: str


class _Token(msgspec.Struct, frozen=True, kw_only=True):
    signed: _Said
    signatures: Annotated[dict[str, str], Meta(max_length=32)]


def make_time_token(nonce: str, at: datetime, signers: Sequence[Signer]) -> bytes:
    """The answer to a question with `nonce` (32 to 128 hex digits), signed."""
    said = _Said(nonce=nonce, at=at.astimezone(UTC).strftime(_FORM))
    made = [signer.sign(_payload(said)) for signer in signers]
    return msgspec.json.encode(_Token(signed=said, signatures={one.keyid: one.signature for one in made}))


def check_time_token(raw: bytes, nonce: str, store: TrustedStore) -> tuple[datetime, TrustedStore]:
    """The time that a token proves, and the store with its floor raised to it.

    Raises BadTimeToken, or BelowThreshold when the time role did not sign it.
    """
    if len(raw) > MOST_TOKEN_BYTES:
        raise BadTimeToken(WHERE, f"{len(raw)} bytes, at most {MOST_TOKEN_BYTES} are read")
    try:
        token = msgspec.json.decode(raw, type=_Token)
        at = datetime.strptime(token.signed.at, _FORM).replace(tzinfo=UTC)
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise BadTimeToken(WHERE, f"not a token: {error}") from error
    if token.signed.nonce != nonce:
        raise BadTimeToken(WHERE, "it answers another question")
    root = store.director.read_root().signed
    signatures = {keyid: Signature(keyid, said) for keyid, said in token.signatures.items()}
    check_signatures(side_role(root, TIME, WHERE), root.keys, _payload(token.signed), signatures, WHERE)
    return at, store.seen_time(WHERE, at)


def _payload(said: _Said) -> bytes:
    text = encode_canonical(msgspec.to_builtins(said))
    assert text is not None
    return text.encode()
