"""Server processes that live and die with this one.

A child gets SIGINT from the kernel when its parent dies, however it dies (PR_SET_PDEATHSIG,
prctl(2)), so that no server is left behind. The signal is sent when the *thread* that forked
ends, so servers are started from the main thread only.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from shared.errors import OtaError

PR_SET_PDEATHSIG = 1
CLONE_NEWUSER = 0x10000000
NOBODY = 65534
# Looked up before any fork: between fork and exec nothing may be imported or allocated at leisure.
_LIBC = ctypes.CDLL(None, use_errno=True)


class ServerFailed(OtaError):
    """A server of ours did not start or went away."""

    code = "server_failed"
    retryable = True


def die_with(parent_pid: int) -> None:
    """In the child, before exec: end cleanly (SIGINT) when the parent is gone."""
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGINT)
    if os.getppid() != parent_pid:
        # The parent died between fork and prctl: no signal would ever come.
        os._exit(1)


def become_nobody() -> None:
    """In the child of a root process: a user namespace in which uid 0 is seen as nobody.

    PostgreSQL refuses to run as root. Inside the namespace (user_namespaces(7)) it sees another
    uid, while its files stay root's, with no permission of any folder changed.
    """
    if _LIBC.unshare(CLONE_NEWUSER) != 0:
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWUSER)")
    for name, value in (
        ("setgroups", "deny"),
        ("uid_map", f"{NOBODY} 0 1\n"),
        ("gid_map", f"{NOBODY} 0 1\n"),
    ):
        with open(f"/proc/self/{name}", "w") as file:  # noqa: PTH123 -- between fork and exec
            file.write(value)


def preparation(*, not_root: bool) -> Callable[[], None]:
    """What a child does between fork and exec. `not_root`: the server refuses to run as root."""
    parent = os.getpid()
    hide_root = not_root and os.geteuid() == 0

    def prepare() -> None:
        # A ^C at the terminal is for the parent, which stops its servers in the right order.
        os.setpgid(0, 0)
        if hide_root:
            become_nobody()
        die_with(parent)

    return prepare


def start(
    command: Sequence[str | Path], *, log: Path, not_root: bool = False, env: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a server whose output goes to the end of `log`. Raises ServerFailed."""
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("servers are started from the main thread: they die with it")
    with log.open("ab") as out:
        try:
            return subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=dict(env) if env is not None else None,
                preexec_fn=preparation(not_root=not_root),  # noqa: PLW1509 -- see die_with
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise ServerFailed(
                f"{command[0]} could not be started: {error}",
                advice="As root this needs user namespaces; else start quarry as a normal user.",
            ) from error


async def stop(process: subprocess.Popen[bytes], *, how: signal.Signals, within_s: float) -> None:
    """Stop a server in its clean way and wait; kill it when it does not end in time."""
    if process.poll() is None:
        process.send_signal(how)
    try:
        await asyncio.to_thread(process.wait, within_s)
    except subprocess.TimeoutExpired:
        process.kill()
        await asyncio.to_thread(process.wait, 5)


def tail(log: Path, *, most_bytes: int = 2000) -> str:
    """The end of a server's log, for the sentence that says why it did not start."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - most_bytes))
            return file.read().decode(errors="replace").strip()
    except OSError:
        return ""
