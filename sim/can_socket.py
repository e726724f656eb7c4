"""Where a hub listens: a Unix socket that only its owner can reach, in nobody else's place."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

from shared.errors import OtaError
from sim.can_frames import MOST_PATH_BYTES

BACKLOG = 64


class HubError(OtaError):
    """The hub can't listen where it was told to."""

    code = "can_hub"
    advice = "Give a short path in an existing folder that you may write to, used by no other hub."


def check_path(path: Path) -> None:
    """Raise HubError when no Unix socket can have this path."""
    length = len(os.fsencode(path))
    if length > MOST_PATH_BYTES:
        raise HubError(f"socket path of {length} bytes is over {MOST_PATH_BYTES}: {path}")


def listen(path: Path) -> socket.socket:
    """A bound, listening socket; takes the place of a socket that nobody listens on any more."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.exists():
            _remove_stale(path)
        # Nobody but the owner may connect, from the first moment on; bind makes the file at 0666 & ~umask.
        listener.bind(str(path))
        path.chmod(stat.S_IRUSR | stat.S_IWUSR)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise HubError(f"can't listen on {path}: {error.strerror}") from error
    except HubError:
        listener.close()
        raise
    return listener


def _remove_stale(path: Path) -> None:
    if not stat.S_ISSOCK(path.stat().st_mode):
        raise HubError(f"{path} exists and is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError as error:
            if error.errno != errno.ECONNREFUSED:
                raise
            path.unlink()
            return
    raise HubError(f"a hub listens on {path} already")
