"""`python -m cli.delta_child BASE IMAGE OUT`: the search for one delta, as a process that can be ended.

The library's search is C code without a way to stop it, and takes minutes for tens of MiB. Exits 0, 3 when
there is none (one sentence on stderr says why), 4 when bsdiff4 is not installed.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

from shared.delta import make_delta

NONE, NO_LIBRARY = 3, 4
MOST_MEMORY_BYTES = 4 * 1024**3
"""Of address space: some 17 times the largest image, and the interpreter."""


def main(base: Path, image: Path, out: Path) -> int:
    """Make it; returns the exit code."""
    try:
        out.write_bytes(make_delta(base.read_bytes(), image.read_bytes()))
    except ModuleNotFoundError:
        return NO_LIBRARY
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return NONE
    except MemoryError:
        sys.stderr.write("there is not enough memory for it\n")
        return NONE
    return 0


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY_BYTES, MOST_MEMORY_BYTES))
    sys.exit(main(*map(Path, sys.argv[1:4])))
