"""SocketCAN of this machine's own kernel, in a network namespace of the run's own.

    python -I -S namespace.py INTERFACE... -- COMMAND ARGUMENT...

Makes the namespace (with a user namespace around it where the caller is not root; in it the caller is
seen as root), its loopback and the named vcan interfaces, then becomes the command. Nothing of the
machine's own network is touched, and all of it goes with the last process. Exit code 125 and one
sentence when the kernel refuses. Standard library only.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from cli.can_kernel import netlink

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000  # unshare(2)
REFUSED = 125
WORDS = {
    errno.EOPNOTSUPP: "no vcan in it",
    errno.EPERM: "it lets this user make no interfaces",
    errno.ENOSPC: "no more namespaces are allowed",
}


def enter() -> None:
    """Move this process into a network namespace of its own. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.geteuid(), os.getegid()
    flags = CLONE_NEWNET if uid == 0 else CLONE_NEWUSER | CLONE_NEWNET
    if libc.unshare(flags) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    if uid != 0:
        for name, value in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
            Path(f"/proc/self/{name}").write_text(value)


def prepare(interfaces: Sequence[str]) -> None:
    """The namespace with its loopback and CAN interfaces up. Raises OSError."""
    enter()
    netlink.set_link("lo", up=True)
    for name in interfaces:
        netlink.make_vcan(name)


def main(words: Sequence[str]) -> None:
    """Become the command; returns never."""
    end = words.index("--")
    try:
        prepare(words[:end])
    except OSError as error:
        sys.stderr.write(f"{WORDS.get(error.errno or 0, error.strerror or str(error))}\n")
        raise SystemExit(REFUSED) from None
    try:
        os.execvp(words[end + 1], list(words[end + 1 :]))  # noqa: S606 -- what the caller runs
    except OSError as error:
        sys.stderr.write(f"quarry: {words[end + 1]}: {error.strerror or error}\n")
        raise SystemExit(127) from None


if __name__ == "__main__":
    main(sys.argv[1:])
