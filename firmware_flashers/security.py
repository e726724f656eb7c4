"""Security access (ISO 14229-1 10.4): how a key is made from the ECU's seed, and whence the secret.

A secret belongs to an ECU family, never to a profile, and comes from a file that only its owner can
read. Nothing here is ever logged, and no value shows itself in a traceback or a repr.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from shared.errors import ConfigError

SECRET_BYTES = 32
MOST_FILE_BYTES = 200
_HEX = re.compile(rb"[0-9A-Fa-f]{64}")


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


ALGORITHMS: Mapping[str, SecurityAlgorithm] = {"hmac-sha256": HmacSha256()}


@dataclass(frozen=True)
class Secret:
    """The 32 bytes of one ECU family, hidden from repr."""

    value: bytes = field(repr=False)


def read_secret(path: Path) -> Secret:
    """Read 32 bytes, raw or as 64 hex digits, from a file that nobody but its owner can open.

    Raises ConfigError naming `security_secret_file`, never the content.
    """
    where = f"security_secret_file {path}"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise ConfigError(f"{where} can't be read: {error.strerror or error}") from error
    try:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise ConfigError(f"{where} is no regular file")
        if about.st_mode & 0o077:
            raise ConfigError(
                f"{where} can be opened by others (mode {stat.S_IMODE(about.st_mode):04o})",
                advice=f"Give it to its owner alone: chmod 600 {path}",
            )
        raw = os.read(descriptor, MOST_FILE_BYTES)
    finally:
        os.close(descriptor)
    if len(raw) == SECRET_BYTES:
        return Secret(raw)
    if _HEX.fullmatch(raw.strip()):
        return Secret(bytes.fromhex(raw.strip().decode("ascii")))
    raise ConfigError(f"{where} holds neither {SECRET_BYTES} bytes nor {2 * SECRET_BYTES} hex digits")
