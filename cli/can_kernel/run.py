"""A command on the kernel that was chosen: looks at the machine, prepares what is needed, runs it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from cli.can_kernel import namespace
from cli.can_kernel.choice import INTERFACES, Broken, Choice, Machine, Unavailable, Where
from cli.can_kernel.guest import KERNEL_VARIABLE, Job, RanTooLong, run_in_guest
from cli.can_kernel.kernel import Cache, Kernel, cache_folder, is_cached, locked
from shared.errors import OtaError

BOOT_S = 60.0
PROBE_S = 20.0
UP = 0x1  # IFF_UP, netdevice(7)


def look_at_this_machine(checkout: Path) -> Machine:
    """What `choose` decides from."""
    linux = platform.system() == "Linux"
    return Machine(
        system=platform.system(),
        architecture=platform.machine(),
        namespace_refusal=namespace_refusal() if linux else None,
        interfaces=interfaces_up() if linux else (),
        has_apt=shutil.which("apt-get") is not None,
        has_guest=is_cached(checkout),
    )


def in_namespace(*command: str) -> list[str]:
    """The command that runs `command` in a namespace with the tests' interfaces."""
    return [sys.executable, "-I", "-S", namespace.__file__, *INTERFACES, "--", *command]


def namespace_refusal() -> str | None:
    """Why this machine's kernel gives us no vcan; None when it does. Tried in a process of its own."""
    try:
        done = subprocess.run(
            in_namespace("true"), capture_output=True, text=True, timeout=PROBE_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None if done.returncode == 0 else done.stderr.strip() or f"exit code {done.returncode}"


def interfaces_up() -> frozenset[str]:
    """The network interfaces of this machine that are up."""
    found = set()
    for folder in Path("/sys/class/net").glob("*"):
        try:
            if int((folder / "flags").read_text(), 16) & UP:
                found.add(folder.name)
        except (OSError, ValueError):
            continue
    return frozenset(found)


def ready_kernel(checkout: Path) -> Kernel:
    """A guest's kernel that has booted on this kind of CPU. Raises Unavailable, Broken."""
    folder = cache_folder(checkout)
    try:
        with locked(folder):
            cache = Cache(folder)
            kernel = cache.assemble()
            if not cache.boots_here().exists():
                code = run_in_guest(
                    kernel,
                    Job(command=["true"], cwd=Path("/"), environment=os.environ, time_out_s=BOOT_S),
                )
                if code != 0:
                    raise Broken(f"a guest booted, and could not run 'true' ({code})")
                cache.boots_here().touch()
            return kernel
    except OSError as error:
        raise Broken(f"the CAN kernel can't be prepared in {folder}: {error.strerror or error}") from error


@dataclass(frozen=True, kw_only=True)
class Place:
    """A kernel with vcan0 and vcan1, ready for commands."""

    where: Where
    kernel: Kernel | None = None
    """The guest's, where it is a guest."""

    @property
    def no_isotp(self) -> OtaError | None:
        """Why a guest has no kernel ISO-TP; of the machine's own kernel nothing is said."""
        return None if self.kernel is None else self.kernel.no_isotp

    def __str__(self) -> str:
        if self.kernel is not None:
            return f"user-mode Linux {self.kernel.version}"
        return f"this machine's kernel, {platform.release()}"

    def run(self, job: Job) -> int:
        """Run one command; returns its exit code. Raises Broken, RanTooLong."""
        if self.kernel is not None:
            return run_in_guest(self.kernel, job)
        own = in_namespace(*job.command) if self.where is Where.NAMESPACE else list(job.command)
        return run_here(own, job, self.where)


def prepare(choice: Choice, checkout: Path) -> Place:
    """Have what the choice needs. Raises Unavailable (nowhere, or not to be had now), Broken."""
    match choice.where:
        case Where.NOWHERE:
            raise Unavailable(choice.reason)
        case Where.GUEST:
            return Place(where=choice.where, kernel=ready_kernel(checkout))
        case Where.NAMESPACE | Where.INTERFACES:
            return Place(where=choice.where)


def run_here(command: list[str], job: Job, where: Where) -> int:
    """Run a command on this machine's own kernel. Raises RanTooLong."""
    try:
        code = subprocess.run(
            command,
            cwd=job.cwd,
            env=dict(job.environment) | {KERNEL_VARIABLE: where.value},
            stdin=subprocess.DEVNULL,
            timeout=job.time_out_s,
            check=False,
        ).returncode
    except subprocess.TimeoutExpired as error:
        raise RanTooLong("the command ran longer than it may") from error
    return code if code >= 0 else 128 - code
