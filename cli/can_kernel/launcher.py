"""Becomes the guest's kernel: its two terminals on descriptors 3 and 4, an end when its parent ends.

    python -I -S launcher.py PARENT OUT ERR -- PROGRAM ARGUMENT...

A process of its own because between fork and exec of a larger one nothing may be done at leisure.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # prctl(2)
OUT_OF_THE_WAY = 64

if __name__ == "__main__":
    parent, *outputs = (int(word) for word in sys.argv[1:4])
    # User-mode Linux takes its processes with it on SIGTERM; they would go on without it on SIGKILL.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit("the parent has gone")
    # One pipe may have got the very number that the other one shall have.
    moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, OUT_OF_THE_WAY) for descriptor in outputs]
    for place, descriptor in enumerate(moved):
        os.dup2(descriptor, 3 + place, inheritable=True)
    os.closerange(5, OUT_OF_THE_WAY + len(moved) + 1)
    program, *arguments = sys.argv[5:]
    os.execv(program, [program, *arguments])  # noqa: S606 -- the guest's kernel
