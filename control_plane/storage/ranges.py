"""PURE: which bytes a `Range` header asks for (RFC 9110, 14.1.2 and 14.2)."""

from __future__ import annotations

import re
from dataclasses import dataclass

# One range of bytes; several at once may be answered with the whole (14.2), which we do. The digits
# are bounded, and re.ASCII keeps other scripts' digits out.
_ONE = re.compile(r"bytes=[ \t]*(\d{0,18})-(\d{0,18})[ \t]*", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Bytes `first` up to and without `end`."""

    first: int
    end: int

    @property
    def length(self) -> int:
        return self.end - self.first


@dataclass(frozen=True, kw_only=True)
class Unsatisfiable:
    """A well-formed range that covers none of the bytes: answer 416 (15.5.17)."""


def parse_range(header: str | None, size: int) -> Slice | Unsatisfiable | None:
    """What of a file of `size` bytes is asked for; None: the whole, with status 200.

    Unknown units, malformed ranges and several at once are ignored, as the RFC asks or allows.
    """
    match = _ONE.fullmatch(header) if header is not None and len(header) <= 100 else None
    if match is None:
        return None
    first, last = match[1], match[2]
    if not first and not last:
        return None
    if not first:
        # A suffix: the last so many bytes; of none there are none (14.1.2).
        wanted = min(int(last), size)
        return Slice(first=size - wanted, end=size) if wanted else Unsatisfiable()
    if last and int(last) < int(first):
        return None
    if int(first) >= size:
        return Unsatisfiable()
    return Slice(first=int(first), end=min(int(last) + 1, size) if last else size)
