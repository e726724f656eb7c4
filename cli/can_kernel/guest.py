"""Run a command in user-mode Linux on this machine's files: its output, its colours, its exit code.

Promises: standard output and standard error are the command's own, apart; the exit code is its own; the
guest is killed at the time limit, on ^C and on SIGTERM, and dies with this process however that ends; the
job folder (0700, it holds the environment) is gone afterwards. Only one such run a process at a time,
from the main thread.
"""

from __future__ import annotations

import json
import mmap
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from cli.can_kernel import guest_init
from cli.can_kernel.choice import INTERFACES, Broken
from cli.can_kernel.kernel import Kernel, place_without_spaces

MEMORY_MIB = 1024
CONSOLE_BYTES = 16 * 1024
"""What is kept of the end of the kernel's console."""
CONSOLE_LINES = 15
TERMINATED = 143
KERNEL_VARIABLE = "QUARRY_CAN_KERNEL"
"""What a command finds in its environment: `guest`, `namespace` or `interfaces`."""
NO_ISOTP_VARIABLE = "QUARRY_NO_KERNEL_ISOTP"
"""Why the kernel has no ISO-TP, where it has none."""


class RanTooLong(Broken):
    """The command did not end within its time."""

    code = "can_kernel_ran_too_long"
    retryable = True
    advice = "Give it more time (--time-out), or less to do."


@dataclass(frozen=True, kw_only=True)
class Job:
    """One command."""

    command: Sequence[str]
    cwd: Path
    environment: Mapping[str, str]
    time_out_s: float


def memory_folder() -> Path:
    """Where the guest's memory can lie, as a file that is mapped executable. Raises Broken.

    A container's /dev/shm is often small or not executable; then it is the temporary folder.
    """
    why = []
    for folder in (Path("/dev/shm"), Path(place_without_spaces()), Path("/var/tmp")):  # noqa: S108 -- as above
        try:
            free = shutil.disk_usage(folder).free
            if free < MEMORY_MIB * 1024 * 1024:
                why.append(f"{folder} has {free // 1024 // 1024} MiB free")
                continue
            with tempfile.TemporaryFile(dir=folder) as file:
                file.truncate(mmap.PAGESIZE)
                mmap.mmap(file.fileno(), mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_EXEC).close()
        except OSError as error:
            why.append(f"{folder}: {error.strerror or error}")
            continue
        return folder
    raise Broken(
        f"nowhere can {MEMORY_MIB} MiB of memory be mapped executable: {'; '.join(why)}",
        advice="Mount a larger /dev/shm with exec, or set TMPDIR to a folder with room.",
    )


def variables(kernel: Kernel, environment: Mapping[str, str]) -> dict[str, str]:
    """The command's environment in a guest: the caller's, without the places that are the guest's own."""
    return {key: value for key, value in environment.items() if key not in ("TMPDIR", "TMP", "TEMP")} | {
        "TMPDIR": "/run/tmp",
        KERNEL_VARIABLE: "guest",
        **({} if kernel.no_isotp is None else {NO_ISOTP_VARIABLE: kernel.no_isotp.message}),
    }


def command_line(kernel: Kernel, folder: Path) -> list[str]:
    """How the guest is started; its root is the machine's own `/`."""
    return [
        *(str(kernel.program), f"mem={MEMORY_MIB}M", "quiet", "loglevel=4", f"uml_dir={folder}/"),
        *("root=/dev/root", "rootfstype=hostfs", "rootflags=/", "rw"),
        # The kernel's console is our pipe 1, the command's two outputs are terminals on pipes of their own.
        *("con=null", "con0=null,fd:1", "con1=null,fd:3", "con2=null,fd:4"),
        *(f"init={folder}/python", "--", "-I", "-S", f"{folder}/init.py", str(folder)),
    ]


@contextmanager
def job_folder(kernel: Kernel, job: Job) -> Iterator[Path]:
    """A private folder that says what the guest shall do; removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="quarry-vcan-", dir=place_without_spaces()))
    try:
        # Links, since a kernel's command line can't name a path with a space.
        (folder / "python").symlink_to(Path(sys.executable).resolve())
        (folder / "init.py").symlink_to(guest_init.__file__)
        orders = {
            "command": list(job.command),
            "cwd": str(job.cwd),
            "environment": variables(kernel, job.environment),
            "modules": [str(path) for path in kernel.modules],
            "interfaces": INTERFACES,
        }
        (folder / "job.json").write_text(json.dumps(orders))
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def ends_by_sigterm() -> Iterator[None]:
    """For the time of the block SIGTERM and SIGHUP leave by the same way as ^C, so that all is cleared up."""

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {one: signal.signal(one, leave) for one in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def start(kernel: Kernel, folder: Path, outputs: Sequence[int]) -> subprocess.Popen[bytes]:
    """Start the guest; `outputs` are written by console, standard output and standard error."""
    environment = {"PATH": os.defpath, "HOME": str(folder), "TMPDIR": str(memory_folder())}
    if kernel.shim is not None:
        environment["LD_PRELOAD"] = str(kernel.shim)
    launcher = Path(__file__).with_name("launcher.py")
    return subprocess.Popen(
        [
            *(sys.executable, "-I", "-S", str(launcher), str(os.getpid()), *map(str, outputs[1:]), "--"),
            *command_line(kernel, folder),
        ],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=outputs[0],
        stderr=outputs[0],
        pass_fds=outputs[1:],
        start_new_session=True,
    )


def carry(guest: subprocess.Popen[bytes], pipes: Sequence[int], deadline: float) -> bytes:
    """Carry the command's outputs to ours until the guest is gone; returns the console's end.

    Raises RanTooLong at `deadline` (monotonic).
    """
    console = b""
    with selectors.DefaultSelector() as ready:
        for pipe, target in zip(pipes, (None, 1, 2), strict=True):
            ready.register(pipe, selectors.EVENT_READ, target)
        while ready.get_map():
            left = deadline - time.monotonic()
            if left <= 0:
                raise RanTooLong("the command in the guest ran longer than it may")
            for key, _ in ready.select(left):
                data = os.read(key.fd, 65536)
                if not data:
                    ready.unregister(key.fd)
                elif key.data is None:
                    console = (console + data)[-CONSOLE_BYTES:]
                while data and key.data is not None:
                    data = data[os.write(key.data, data) :]
    with suppress(subprocess.TimeoutExpired):
        guest.wait(max(0.0, deadline - time.monotonic()))
    return console


def kill(guest: subprocess.Popen[bytes]) -> None:
    """End the guest and its processes, whatever they do; waits for it."""
    # All of them are in its group: it was started as the leader of a session of its own.
    with suppress(ProcessLookupError):
        os.killpg(guest.pid, signal.SIGKILL)
    guest.wait()


def run_in_guest(kernel: Kernel, job: Job) -> int:
    """Run the command in a guest of its own; returns its exit code.

    Raises RanTooLong, and Broken with the end of the console when the guest ended without a result.
    """
    with ends_by_sigterm(), job_folder(kernel, job) as folder:
        sys.stdout.flush()
        sys.stderr.flush()
        pairs = [os.pipe() for _ in range(3)]
        pipes = [source for source, _ in pairs]
        try:
            try:
                guest = start(kernel, folder, [end for _, end in pairs])
            finally:
                for _, end in pairs:
                    os.close(end)
            try:
                console = carry(guest, pipes, time.monotonic() + job.time_out_s)
            finally:
                kill(guest)
        finally:
            for pipe in pipes:
                os.close(pipe)
        return result(folder, console)


def result(folder: Path, console: bytes) -> int:
    """The exit code that the guest left. Raises Broken."""
    try:
        return int((folder / "code").read_text())
    except FileNotFoundError:
        failed = folder / "failed"
        text = failed.read_text() if failed.exists() else console.decode(errors="replace")
        tail = "\n".join(f"  | {line.rstrip()}" for line in text.splitlines()[-CONSOLE_LINES:])
        raise Broken(f"the guest ended without a result; its console ends with:\n{tail}\n") from None
