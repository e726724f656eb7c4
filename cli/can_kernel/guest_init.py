"""The first process of a guest: sets the machine up, runs one command, hands its end back, powers off.

    python -I -S guest_init.py JOB_FOLDER

Promises: the guest powers itself off whatever happens; what the command left running is killed; all
its output has gone out before its exit code is written (`code` in the job folder); a failure of
this file itself leaves `failed` there. Standard library only. The root is the host's own `/`, so /proc, /sys,
/dev and /run are mounted over it and nothing of the host's is written but by the command.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import subprocess
import sys
import termios
import threading
import traceback
import tty
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from cli.can_kernel import modules, netlink

POWER_OFF = 0x4321FEDC  # LINUX_REBOOT_CMD_POWER_OFF, reboot(2)
RECEIVE_BUFFER_BYTES = 4 * 1024 * 1024
"""What a socket may hold: vcan has no pace, and at the default (212992) a burst drops frames."""
TERMINALS = ("/dev/tty1", "/dev/tty2")
NO_ROOM = 127
"""Exit code for a command that can't be started, as a shell's."""

MOUNTS = (
    ("proc", "/proc", ""),
    ("sysfs", "/sys", ""),
    ("devtmpfs", "/dev", ""),
    ("tmpfs", "/dev/shm", "mode=1777"),  # noqa: S108 -- the guest's own
    ("devpts", "/dev/pts", "newinstance,ptmxmode=666"),
    ("tmpfs", "/run", "mode=755"),
)
LINKS = {
    "/dev/ptmx": "pts/ptmx",
    "/dev/fd": "/proc/self/fd",
    "/dev/stdin": "/proc/self/fd/0",
    "/dev/stdout": "/proc/self/fd/1",
    "/dev/stderr": "/proc/self/fd/2",
}


def mount_all() -> None:
    """Give the guest its own /proc, /sys, /dev and /run. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    for kind, target, options in MOUNTS:
        if target.startswith("/dev/"):
            Path(target).mkdir(exist_ok=True)
        if libc.mount(kind.encode(), target.encode(), kind.encode(), 0, options.encode()) != 0:
            code = ctypes.get_errno()
            if code == errno.EBUSY:
                continue  # the kernel has mounted it itself
            raise OSError(code, f"{kind} can't be mounted: {os.strerror(code)}", target)
    for link, target in LINKS.items():
        Path(link).unlink(missing_ok=True)
        Path(link).symlink_to(target)
    for folder in ("/run/lock", "/run/tmp"):
        Path(folder).mkdir()
        Path(folder).chmod(0o1777)


def set_up_network(job: dict[str, Any]) -> None:
    """Modules, receive buffers, interfaces. Raises OSError."""
    for name in ("rmem_max", "rmem_default"):
        Path(f"/proc/sys/net/core/{name}").write_text(f"{RECEIVE_BUFFER_BYTES}\n")
    for path in job["modules"]:
        modules.load(Path(path))
    netlink.set_link("lo", up=True)
    for name in job["interfaces"]:
        netlink.make_vcan(name)


def pump(source: int, terminal: int) -> None:
    """Carry everything from a pipe to a terminal."""
    while data := os.read(source, 65536):
        while data:
            data = data[os.write(terminal, data) :]


def run_command(job: dict[str, Any]) -> int:
    """Run the command to its end, all its output carried out; returns its exit code as a shell would."""
    pumps, ends, terminals = [], [], []
    for name in TERMINALS:
        terminal = os.open(name, os.O_WRONLY | os.O_NOCTTY)
        tty.setraw(terminal)
        source, end = os.pipe()
        thread = threading.Thread(target=pump, args=(source, terminal), daemon=True)
        thread.start()
        pumps.append(thread)
        ends.append(end)
        terminals.append(terminal)
    try:
        process = subprocess.Popen(
            job["command"],
            cwd=job["cwd"],
            env=job["environment"],
            stdin=subprocess.DEVNULL,
            stdout=ends[0],
            stderr=ends[1],
            start_new_session=True,
        )
    except OSError as error:
        os.write(ends[1], f"quarry: {job['command'][0]}: {error.strerror or error}\n".encode())
        status = NO_ROOM << 8
    else:
        # The first process of a system inherits every orphan, and must take their ends in.
        ended = 0
        while ended != process.pid:
            ended, status = os.wait()
        process.returncode = 0
    kill_the_rest()
    for end in ends:
        os.close(end)
    for thread in pumps:
        thread.join()
    for terminal in terminals:
        termios.tcdrain(terminal)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def kill_the_rest() -> None:
    """What the command left running would keep its output open for ever."""
    try:
        os.kill(-1, signal.SIGKILL)
        while True:
            os.wait()
    except (ProcessLookupError, ChildProcessError):
        return


def leave(path: Path, text: str) -> None:
    """A file that is whole or absent, on the host's disk before the power goes."""
    new = path.with_suffix(".new")
    with new.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.rename(path)
    os.sync()


def main(folder: Path) -> None:
    """Live one life; never returns."""
    try:
        mount_all()
        # The kernel may have started us without any of the three.
        while os.open("/dev/null", os.O_RDWR) < 2:
            pass
        job = json.loads((folder / "job.json").read_text())
        set_up_network(job)
        leave(folder / "code", str(run_command(job)))
    except BaseException:
        leave(folder / "failed", traceback.format_exc())
    finally:
        ctypes.CDLL(None).reboot(POWER_OFF)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
