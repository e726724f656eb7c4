"""Kernel modules without kmod: in the order of modules.dep(5), by finit_module(2).

Standard library only: a guest's first process runs it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

CAN_MODULES = ("vcan", "vxcan", "can-raw", "can-bcm", "can-gw", "can-j1939")
ISOTP_MODULE = "can-isotp"
# The system call's number on the architectures for which a user-mode kernel is offered (asm/unistd.h).
FINIT_MODULE = {"x86_64": 313, "aarch64": 273}


def dependencies(modules_dep: str) -> dict[str, tuple[str, ...]]:
    """What modules.dep says: path of each module -> paths that it needs, the nearest first."""
    table = {}
    for line in modules_dep.splitlines():
        path, colon, needs = line.partition(":")
        if colon:
            table[path.strip()] = tuple(needs.split())
    return table


def load_order(modules_dep: str, wanted: Iterable[str]) -> list[str]:
    """The paths of `wanted` modules and of all that they need, each once and behind what it needs.

    A module is named by its file without `.ko`; '-' and '_' are alike. Raises KeyError for one that
    modules.dep does not list.
    """
    table = dependencies(modules_dep)
    by_name = {PurePosixPath(path).name.partition(".")[0].replace("-", "_"): path for path in table}
    order: list[str] = []
    for name in wanted:
        path = by_name[name.replace("-", "_")]
        # depmod writes all that a module needs, to the last, so that there is nothing to follow further.
        order += [one for one in (*reversed(table[path]), path) if one not in order]
    return order


def load(path: Path) -> None:
    """Load one module into the running kernel; one that is there already is fine. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.syscall(FINIT_MODULE[platform.machine()], descriptor, b"", 0) != 0:
            code = ctypes.get_errno()
            if code != errno.EEXIST:
                raise OSError(code, os.strerror(code), str(path))
    finally:
        os.close(descriptor)
