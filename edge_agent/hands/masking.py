"""PURE: takes secrets out of what people are given: known values in every usual writing, and named keys.

A known secret is masked as it is, in hex, in base64 of both alphabets and percent-encoded; what only a
name betrays (`password = "..."`) is masked by its name.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from urllib.parse import quote_from_bytes

MASK = b"[masked]"
LEAST_BYTES = 6
"""A shorter value would be found everywhere, and protects nothing."""
_NAMED = re.compile(
    rb"""(?ix)
    (?P<key> ["']? [a-z0-9_.-]* (?:
            password | passwd | secret | token | api_?key | private_?key | passphrase
        ) [a-z0-9_.-]* ["']? \s* [:=] \s* )
    (?P<value> "(?:[^"\\\n]|\\.)*" | '[^'\n]*' | [^\s,}\]"']+ )
    """
)
_KEPT = re.compile(rb"""(?i)(_file|_command|_id)["']?\s*[:=]\s*$""")
_PEM = re.compile(rb"-----BEGIN ([A-Z ]*PRIVATE KEY)-----.*?(-----END \1-----|\Z)", re.DOTALL)
_USERINFO = re.compile(rb"(?i)(\b[a-z][a-z0-9+.-]{1,20}://)[^\s/@\"']{1,500}@")
_SIGNED = re.compile(
    rb"(?i)([?&](?:x-amz-signature|x-amz-credential|x-amz-security-token|signature|sig|token|key)=)[^&\s\"']+"
)
_BEARER = re.compile(rb"(?i)\b(bearer|basic)\s+[a-z0-9._~+/=-]{8,}")


def writings(secret: bytes) -> set[bytes]:
    """How a secret may stand in a text; empty where it is too short to be one."""
    forms: set[bytes] = set()
    for value in (secret, secret.strip()):
        if len(value) < LEAST_BYTES:
            continue
        forms |= {
            value,
            value.hex().encode(),
            value.hex().upper().encode(),
            base64.b64encode(value).rstrip(b"="),
            base64.urlsafe_b64encode(value).rstrip(b"="),
            quote_from_bytes(value).encode(),
        }
    return forms


class Masker:
    """Masks the given secrets in every writing, and whatever looks like one by its name."""

    def __init__(self, secrets: Iterable[bytes]) -> None:
        forms = {form for secret in secrets for form in writings(secret)}
        # The longest first: one writing may be a part of another.
        self._known = (
            re.compile(b"|".join(re.escape(form) for form in sorted(forms, key=len, reverse=True)))
            if forms
            else None
        )

    def __call__(self, raw: bytes) -> bytes:
        """The text without its secrets."""
        if self._known is not None:
            raw = self._known.sub(MASK, raw)
        raw = _PEM.sub(MASK, raw)
        raw = _USERINFO.sub(rb"\1" + MASK + b"@", raw)
        raw = _SIGNED.sub(rb"\1" + MASK, raw)
        raw = _BEARER.sub(rb"\1 " + MASK, raw)
        return _NAMED.sub(_mask_named, raw)


def _mask_named(found: re.Match[bytes]) -> bytes:
    key, value = found["key"], found["value"]
    if _KEPT.search(key) or value in (b"true", b"false", b"null"):
        # A path to a secret is none, and says much about a wrong configuration.
        return found[0]
    return key + b'"' + MASK + b'"'
