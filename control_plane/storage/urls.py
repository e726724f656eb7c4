"""Signed expiring URLs: who holds one may fetch one file until a time, and nothing else.

`{base}/files/{sha256}?expires=UNIX&sig=HEX`, where sig is HMAC-SHA256 (RFC 2104) over the path and
the time, independent of the method. A URL is no secret of the office's: it leaks one file for a while.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import re
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from control_plane.errors import Forbidden
from control_plane.secret_files import read_or_create_secret
from control_plane.storage.base import MOST_URL_LIFE_S
from shared.errors import ConfigError

KEY_BYTES = 32
SHA256_PATTERN = r"^[0-9a-f]{64}$"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SIGNATURE = re.compile(r"[0-9a-f]{64}")
_TIME = re.compile(r"[1-9][0-9]{0,14}")


class UrlExpired(Forbidden):
    """The URL was good, its time is over."""

    code = "url_expired"
    advice = "Ask the office for a fresh URL."


class BadSignature(Forbidden):
    """A URL that was never given out as it is."""

    code = "bad_signature"
    advice = "Use the URL exactly as the office sent it."


def load_url_key(path: Path) -> bytes:
    """The key that signs URLs, from a 0600 file that is made at first use.

    Raises ConfigError when the file is not one of ours.
    """
    key = read_or_create_secret(path, lambda: secrets.token_bytes(KEY_BYTES))
    if len(key) != KEY_BYTES:
        raise ConfigError(
            f"{path} has {len(key)} bytes, the key that signs URLs has {KEY_BYTES}",
            advice="Delete it: a new key is made, and URLs that are out now are asked for again.",
        )
    return key


class UrlSigner:
    """Makes and checks the URLs of one office. `clock` gives Unix time in seconds."""

    def __init__(self, key: bytes, base_url: str, *, clock: Callable[[], float] = time.time) -> None:
        """`base_url` is how trucks reach the office. Raises ConfigError when it is no http(s) URL."""
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
            raise ConfigError(
                f"{base_url!r} is not how a truck could reach the office: http(s)://HOST[:PORT]"
            )
        if len(key) != KEY_BYTES:
            raise ValueError(f"the key has {len(key)} bytes, not {KEY_BYTES}")
        self._key = key
        self._base = base_url.rstrip("/")
        self._clock = clock

    def url(self, sha256: str, *, for_s: float) -> str:
        """A URL of one file, good for `for_s` seconds, rounded up."""
        if not _SHA256.fullmatch(sha256):
            raise ValueError(f"{sha256[:80]!r} is no SHA-256 in lower-case hex")
        if not 0 < for_s <= MOST_URL_LIFE_S:
            raise ValueError(f"a URL lives at most {MOST_URL_LIFE_S:.0f} s, not {for_s}")
        expires = str(math.ceil(self._clock() + for_s))
        return f"{self._base}/files/{sha256}?expires={expires}&sig={self._sign(sha256, expires)}"

    def check(self, sha256: str, expires: str, signature: str) -> None:
        """Raise BadSignature for a URL that is not ours, UrlExpired for one of ours that is over.

        The signature is judged first: of a time that nobody vouches for nothing is said.
        """
        if (
            not _TIME.fullmatch(expires)
            or not _SIGNATURE.fullmatch(signature)
            or not hmac.compare_digest(signature, self._sign(sha256, expires))
        ):
            raise BadSignature("the signature of this URL is not right")
        if self._clock() >= int(expires):
            raise UrlExpired("this URL was good until its time, which is over")

    def _sign(self, sha256: str, expires: str) -> str:
        # The first line keeps this key's signatures apart from any other use of it.
        message = f"quarry file url v1\n/files/{sha256}\n{expires}"
        return hmac.new(self._key, message.encode(), hashlib.sha256).hexdigest()
