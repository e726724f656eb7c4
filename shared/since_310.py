"""What Python 3.11 brought and the truck's rooms use, so that they run on 3.10 (JetPack 6) as well.

Each name is the standard library's own wherever that has it. On 3.10 what carries behaviour comes from the
backports that pyproject.toml names for it: `exceptiongroup`, `taskgroup` (CPython 3.12's own TaskGroup and
timeout, over a task that counts its cancellations), `tomli`, `typing_extensions`; what needs no library
stands here. No other module of these rooms asks which Python it runs on.
"""

from __future__ import annotations

import hashlib
import sys
from datetime import timezone

__all__ = (
    "UTC",
    "BaseExceptionGroup",
    "Self",
    "StrEnum",
    "TaskGroup",
    "assert_never",
    "file_digest",
    "timeout",
    "tomllib",
)

UTC = timezone.utc

if sys.version_info >= (3, 11):
    from asyncio import TaskGroup, timeout
    from builtins import BaseExceptionGroup
    from enum import StrEnum
    from hashlib import file_digest
    from typing import Self, assert_never

    import tomllib
else:
    from enum import Enum
    from typing import BinaryIO

    import tomli as tomllib
    from exceptiongroup import BaseExceptionGroup
    from taskgroup import TaskGroup, timeout
    from typing_extensions import Self, assert_never

    class StrEnum(str, Enum):
        """Members are strings, and print as their values."""

        __str__ = str.__str__

    def file_digest(file: BinaryIO, algorithm: str, /) -> hashlib._Hash:
        """The digest of what is left of a file that is open for reading bytes; blocks while it reads."""
        digest = hashlib.new(algorithm)
        while block := file.read(1 << 18):
            digest.update(block)
        return digest
