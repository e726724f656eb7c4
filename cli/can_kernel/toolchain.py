"""Programs that a kernel module is compiled with: this machine's, and what it lacks unpacked from apt."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cli.can_kernel.apt import Apt, last_line, unpack
from cli.can_kernel.choice import Broken, Unavailable

NEEDED = {"gcc": "gcc", "make": "make", "flex": "flex", "bison": "bison", "bc": "bc", "perl": "perl"}
"""Program -> the Debian package that has it."""
C_HEADER = Path("/usr/include/stdio.h")
KEPT_OURS = ("libc6=", "libc-bin=")
"""Never taken from apt: the machine's own C library is the one that its programs run with."""


@dataclass(frozen=True, kw_only=True)
class Toolchain:
    """An environment in which `gcc`, `make` and the rest are found; nothing of the user's leaks in."""

    environment: Mapping[str, str]

    def run(self, *command: str | Path, cwd: Path, within_s: float, log: Path) -> None:
        """Run one step; its output goes to the end of `log`. Raises Broken with the last line."""
        with log.open("ab") as out:
            process = subprocess.Popen(
                [str(part) for part in command],
                cwd=cwd,
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
            try:
                code = process.wait(within_s)
            except subprocess.TimeoutExpired as error:
                raise Broken(f"{command[0]} did not end within {within_s:.0f} s; see {log}") from error
            finally:
                if process.returncode is None:
                    os.killpg(process.pid, 9)
                    process.wait()
        if code != 0:
            text = log.read_text(errors="replace")
            raise Broken(f"{command[0]} failed ({code}): {last_line(text)}; see {log}")


def environment(tools: Path | None, path: str) -> dict[str, str]:
    """The environment; `tools` is a folder with unpacked packages, `path` the machine's PATH."""
    variables = {"PATH": path, "LC_ALL": "C", "HOME": "/nonexistent"}
    if tools is None:
        return variables
    usr = tools / "usr"
    triplet = "x86_64-linux-gnu"
    return variables | {
        "PATH": f"{usr / 'bin'}:{path}",
        "LD_LIBRARY_PATH": f"{usr / 'lib' / triplet}:{tools / 'lib' / triplet}",
        "LIBRARY_PATH": f"{usr / 'lib' / triplet}",
        "C_INCLUDE_PATH": f"{usr / 'include'}:{usr / 'include' / triplet}",
        **({"BISON_PKGDATADIR": str(usr / "share" / "bison")} if (usr / "share" / "bison").exists() else {}),
        **({"M4": str(usr / "bin" / "m4")} if (usr / "bin" / "m4").exists() else {}),
    }


def free_of_paths(linker_script: str) -> str:
    """A linker script of the C library whose files are searched for, instead of looked for in `/`."""
    words = linker_script.split(" ")
    return " ".join(
        Path(word).name if word.startswith("/") and len(word) > 2 and word[1] != "*" else word
        for word in words
    )


def find_toolchain(apt: Apt | None, work: Path) -> Toolchain:
    """Everything of NEEDED, what is missing unpacked below `work`. Raises Unavailable, Broken.

    `apt` None: only what the machine has.
    """
    packages = [package for program, package in NEEDED.items() if shutil.which(program) is None]
    if not C_HEADER.exists():
        packages.append("libc6-dev")
    path = os.environ.get("PATH", os.defpath)
    if not packages:
        return Toolchain(environment=environment(None, path))
    if apt is None:
        raise Unavailable(f"{', '.join(packages)} is not installed")
    if " " in str(work):
        raise Unavailable(f"{', '.join(packages)} is not installed, and can't be unpacked below {work}")
    tools = work / "tools"
    wanted = [one for one in apt.missing(packages) if not one.startswith(KEPT_OURS)]
    if not wanted:
        raise Unavailable(f"apt offers no {', '.join(packages)}")
    for file in apt.fetch(wanted, work / "tools.deb"):
        unpack(file, tools)
    shutil.rmtree(work / "tools.deb")
    for script in (tools / "usr" / "lib" / "x86_64-linux-gnu").glob("lib[cm].so"):
        script.write_text(free_of_paths(script.read_text()))
    return Toolchain(environment=environment(tools, path))
