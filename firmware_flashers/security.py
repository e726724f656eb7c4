"""Security access (ISO 14229-1 10.4): how a key is made from the ECU's seed, and whence the secret.

A secret belongs to an ECU family, never to a profile: it comes from a file that only its owner can
read, or stays in a helper program (of a smart card, a key server) that this program asks. Nothing here
is ever logged, and no value shows itself in a traceback or a repr.

Another way of making keys is one object with `seed_bytes` and `key`, registered under a name that
profiles then use as their `security`:

    register("xtea-64", Xtea64())
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from firmware_flashers.secret_files import read_private
from shared.errors import ConfigError

NONE = "none"
"""The ECU asks for no access."""
COMMAND = "command"
"""A helper program makes the key (see security_helper)."""
CERTIFICATE = "certificate"
"""Authentication with a certificate instead of seed and key (see uds_auth)."""

SECRET_BYTES = 32
_HEX = re.compile(rb"[0-9A-Fa-f]{64}")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class SecurityAlgorithm(Protocol):
    """One way of making a key; `seed_bytes` is the only seed length that it takes."""

    @property
    def seed_bytes(self) -> int: ...

    def key(self, seed: bytes, secret: bytes) -> bytes: ...


@dataclass(frozen=True)
class HmacSha256:
    """The first 16 bytes of HMAC-SHA-256 (RFC 2104) of a 16-byte seed."""

    seed_bytes: int = 16
    key_bytes: int = 16

    def key(self, seed: bytes, secret: bytes) -> bytes:
        """The key for `seed`."""
        return hmac.new(secret, seed, hashlib.sha256).digest()[: self.key_bytes]


_algorithms: dict[str, SecurityAlgorithm] = {"hmac-sha256": HmacSha256()}
ALGORITHMS = MappingProxyType(_algorithms)
"""All that are registered, by name."""


def register(name: str, algorithm: SecurityAlgorithm) -> None:
    """Make a key algorithm known to profiles. Raises ConfigError for a name that is taken or none."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"security {name[:80]!r} is not 1 to 64 of lower-case letters, digits, . _ -")
    if name in securities():
        raise ConfigError(f"security {name!r} is registered already")
    _algorithms[name] = algorithm


def securities() -> tuple[str, ...]:
    """Every word that a profile may give as its `security`."""
    return (*_algorithms, COMMAND, CERTIFICATE, NONE)


@dataclass(frozen=True)
class Secret:
    """The 32 bytes of one ECU family, hidden from repr."""

    value: bytes = field(repr=False)


def read_secret(path: Path) -> Secret:
    """Read 32 bytes, raw or as 64 hex digits, from a file that nobody but its owner can open.

    Raises ConfigError naming `security_secret_file`, never the content.
    """
    raw = read_private("security_secret_file", path)
    if len(raw) == SECRET_BYTES:
        return Secret(raw)
    if _HEX.fullmatch(raw.strip()):
        return Secret(bytes.fromhex(raw.strip().decode("ascii")))
    raise ConfigError(
        f"security_secret_file {path} holds neither {SECRET_BYTES} bytes nor {2 * SECRET_BYTES} hex digits"
    )
