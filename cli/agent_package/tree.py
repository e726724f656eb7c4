"""The agent's own environment as a tree of files: a virtual environment that was never on its machine.

`bin/python` is a link to the machine's interpreter, `pyvenv.cfg` says so, and
`lib/pythonX.Y/site-packages` has the locked wheels of that architecture and interpreter beside the three
rooms of the truck. It can stand anywhere; nothing in it names its own place.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from cli.agent_package.closure import closure, pinned
from cli.agent_package.deb import Entry
from cli.check import CHECKOUT, tool
from shared.errors import OtaError

ROOMS = ("shared", "firmware_flashers", "edge_agent")
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
GLIBC = "2_28"
LOCK = CHECKOUT / "requirements.lock"
LOCK_310 = CHECKOUT / "edge_agent/packaging/requirements-py310.lock"
FETCH_S = 900.0


class PackagingFailed(OtaError):
    """The package can't be made."""

    code = "packaging_failed"
    advice = "See the sentence; the packages of requirements.lock must be within reach."


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a package is for. `interpreter` None: the distribution's own Python of that version."""

    arch: str
    python: str
    interpreter: Path | None = None

    @property
    def python_path(self) -> Path:
        """Where its Python is."""
        return self.interpreter or Path(f"/usr/bin/python{self.python}")

    @property
    def markers(self) -> dict[str, str]:
        """Its marker variables (PEP 508)."""
        return {
            "implementation_name": "cpython",
            "implementation_version": f"{self.python}.0",
            "os_name": "posix",
            "platform_machine": MACHINES[self.arch],
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": f"{self.python}.0",
            "python_version": self.python,
            "sys_platform": "linux",
        }


def agent_tree(machine: Machine) -> dict[str, Entry]:
    """Every file of the environment by its path in it. Raises PackagingFailed or NotLocked."""
    site = f"lib/python{machine.python}/site-packages"
    settings = {
        "home": str(machine.python_path.parent),
        "include-system-site-packages": "false",
        "version": machine.python,
    }
    tree = {
        "pyvenv.cfg": Entry(
            content="".join(f"{key} = {value}\n" for key, value in settings.items()).encode()
        ),
        "bin/python": Entry(link=str(machine.python_path)),
        "bin/quarry-agent-launcher": Entry(
            content=(CHECKOUT / "edge_agent/packaging/quarry-agent-launcher").read_bytes(), mode=0o755
        ),
    }
    for name, entry in {**_wheels(machine), **_rooms()}.items():
        tree[f"{site}/{name}"] = entry
    return tree


def locked(machine: Machine) -> str:
    """The lock's lines of what the agent needs on that machine. Raises NotLocked."""
    if machine.python == "3.10":
        # The whole of it: the office and the desk, which the other lock is for too, don't run there.
        return LOCK_310.read_text(encoding="utf-8")
    return pinned(LOCK, closure("quarry-ota[edge]", machine.markers))


def _wheels(machine: Machine) -> dict[str, Entry]:
    """The locked packages of that machine, every hash checked by the installer."""
    with tempfile.TemporaryDirectory(prefix="quarry-package-") as folder:
        wanted = Path(folder) / "requirements.txt"
        target = Path(folder) / "site"
        wanted.write_text(locked(machine), encoding="utf-8")
        command = [
            *(tool("uv"), "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--no-config"),
            *("--only-binary", ":all:", "--link-mode", "copy", "--no-compile-bytecode"),
            *("--python-platform", f"{MACHINES[machine.arch]}-manylinux_{GLIBC}"),
            *("--python-version", machine.python, "--target", str(target), "-r", str(wanted)),
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=FETCH_S)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise PackagingFailed(f"the wheels can't be installed: {error}") from error
        if done.returncode != 0:
            raise PackagingFailed(
                f"the wheels for {machine.arch} can't be had: {done.stderr.strip()[-1500:]}"
            )
        return {
            name: entry
            for name, entry in _files(target).items()
            if not name.startswith("bin/") and _wanted(name)
        }


def _wanted(name: str) -> bool:
    # What the installer writes of this machine and moment would make every build another one.
    last = name.rsplit("/", 1)[-1]
    return last not in {".lock", "uv_cache.json", "direct_url.json", "REQUESTED"} and not last.endswith(
        ".pyc"
    )


def _rooms() -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    for room in ROOMS:
        for name, entry in _files(CHECKOUT / room).items():
            if "__pycache__" not in name and not name.endswith(".md"):
                found[f"{room}/{name}"] = entry
    number = version("quarry-ota")
    about = f"Metadata-Version: 2.1\nName: quarry-ota\nVersion: {number}\nRequires-Python: >=3.10\n"
    found[f"quarry_ota-{number}.dist-info/METADATA"] = Entry(content=about.encode())
    return found


def _files(folder: Path) -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            mode = 0o755 if os.access(path, os.X_OK) else 0o644
            found[str(path.relative_to(folder))] = Entry(content=path.read_bytes(), mode=mode)
    return found
