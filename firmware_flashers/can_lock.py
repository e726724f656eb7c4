"""One holder of a CAN interface on this machine: the agent or an engineer's `quarry flash`.

A kernel lock (flock) on a file named by interface and channel: it ends with its process, however
that ends. Two testers on one interface would answer each other's ECUs.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from firmware_flashers.base import BusDown

IN_PROCESS = frozenset({"virtual", "quarry-model"})
"""python-can interfaces whose channels are each process's own."""
MOST_HOLDER_BYTES = 200
_TRIES = 20


class InterfaceBusy(BusDown):
    """Another program holds the CAN interface."""

    code = "interface_busy"
    retryable = True
    advice = "Stop the named program, or wait until it has finished, then try again."


def lock_folder() -> Path:
    """Where the locks are: a folder that every user of this machine sees alike.

    `/run/lock` (Filesystem Hierarchy Standard 3.0, 5.9) when it may be written, else the temporary
    folder.
    """
    shared = Path("/run/lock")
    return shared if os.access(shared, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())


def lock_path(interface: str, channel: str, folder: Path) -> Path:
    """The file that stands for one interface and channel."""
    own = f"{os.getpid()}:" if interface in IN_PROCESS else ""
    name = hashlib.sha256(f"{own}{interface}:{channel}".encode()).hexdigest()[:24]
    return folder / f"quarry-can-{name}.lock"


def _open(path: Path) -> int:
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        # An existing file is opened without O_CREAT: in a sticky folder the kernel refuses it
        # (fs.protected_regular) for a file of another user.
        return os.open(path, flags)
    except FileNotFoundError:
        descriptor = os.open(path, flags | os.O_CREAT, 0o666)
        # Another user's program must be able to lock it too, whatever this process's umask.
        os.fchmod(descriptor, 0o666)
        return descriptor


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        there, ours = path.stat(), os.fstat(descriptor)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


@contextmanager
def interface_lock(
    interface: str, channel: str, *, holder: str, folder: Path | None = None
) -> Iterator[None]:
    """Hold the interface for the time of the block, without waiting.

    `holder` is what others are told. Raises InterfaceBusy when another has it, BusDown when no lock
    can be made: without a lock nothing is sent.
    """
    path = lock_path(interface, channel, folder or lock_folder())
    try:
        descriptor = _take(path, f"{interface}:{channel}")
    except OSError as error:
        raise BusDown(
            f"no lock can be made for {interface}:{channel}: {path}: {error.strerror or error}",
            advice=f"Make {path.parent} writable for this user.",
        ) from error
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{holder} (process {os.getpid()})"[:MOST_HOLDER_BYTES].encode(), 0)
        yield
    finally:
        # Removed while it is held; whoever opened it meanwhile sees another file there and tries again.
        # Another user's file, left by a crash, stays: locking it is enough.
        with suppress(OSError):
            path.unlink()
        os.close(descriptor)


def _take(path: Path, name: str) -> int:
    for _ in range(_TRIES):
        descriptor = _open(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.pread(descriptor, MOST_HOLDER_BYTES, 0).decode(errors="replace")
            os.close(descriptor)
            who = "".join(c for c in text if c.isprintable()) or "another program"
            raise InterfaceBusy(f"the CAN interface {name} is held by {who}") from None
        except BaseException:
            os.close(descriptor)
            raise
        if _is_still(path, descriptor):
            return descriptor
        os.close(descriptor)
    raise InterfaceBusy(f"the lock of the CAN interface {name} changes hands all the time")
