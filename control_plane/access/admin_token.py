"""The admin's token file: read, or made whole and private. Blocking."""

from __future__ import annotations

import re
import secrets
from pathlib import Path

from control_plane.secret_files import create_secret, read_secret

# What token_urlsafe(32) gives: 256 random bits. A shorter word in the file is not taken for a token.
_TOKEN = re.compile(rb"[A-Za-z0-9_-]{43,128}")


def read(path: Path) -> str | None:
    """The token in the file; None when there is no file, or no token in it (a truncated copy).

    Raises ConfigError when others than the owner may read it.
    """
    raw = read_secret(path)
    if raw is None:
        return None
    token = raw.strip()
    return token.decode() if _TOKEN.fullmatch(token) else None


def make(path: Path) -> str:
    """Put a new token in the file, in the place of whatever is there."""
    token = secrets.token_urlsafe(32)
    create_secret(path, f"{token}\n".encode(), replace=True)
    return token
