"""Gives memory back that only the start, or a flash that has ended, needed: a gateway rests nearly always.

Two kinds go. What the C library keeps of freed blocks (malloc_trim(3)). And pages of programs and libraries
that are mapped and unchanged: this process lets go of them, and one that is used again comes back from the
page cache by a minor fault (madvise(2), MADV_DONTNEED). Nothing with a change of ours in it is touched: only
a file's private mapping counts that is not writable and has no anonymous page (proc(5), smaps).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

from shared.logs import get_log

log = get_log("edge_agent.memory")

SETTLED_S = 20.0
"""From the start: connected, metadata verified, ECUs asked, where that can be."""
EVERY_S = 3600.0
SMAPS = Path("/proc/self/smaps")
_DONTNEED = 4
_HEAD = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ \d+ *(.*)")
_READ_ONLY = ("r-xp", "r--p")


def unchanged_file_mappings(smaps: str) -> Iterator[tuple[int, int]]:
    """PURE: begin and length (bytes) of the mappings in a text of smaps that may be let go of."""
    found: tuple[int, int] | None = None
    for line in smaps.splitlines():
        if head := _HEAD.fullmatch(line):
            begin, end = int(head[1], 16), int(head[2], 16)
            found = (begin, end - begin) if head[3] in _READ_ONLY and head[4].startswith("/") else None
        elif line.startswith("Anonymous:"):
            if found is not None and line.split()[1] == "0":
                yield found
            found = None


def give_back() -> None:
    """Let go of what is not in use; blocks for some milliseconds. Without Linux's /proc, nothing is done."""
    try:
        import ctypes

        libc = ctypes.CDLL(None)
        libc.malloc_trim(0)
        for begin, length in unchanged_file_mappings(SMAPS.read_text(encoding="utf-8", errors="replace")):
            libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(length), _DONTNEED)
    except (ImportError, OSError, AttributeError) as error:
        log.debug("memory.not_given_back", why=str(error))


async def rest_lightly(settled_s: float = SETTLED_S, every_s: float = EVERY_S) -> None:
    """Give back once the start has settled, and from time to time after."""
    await asyncio.sleep(settled_s)
    while True:
        await asyncio.to_thread(give_back)
        await asyncio.sleep(every_s)
