"""Other Pythons than this checkout's, and the truck's half in an environment on one of them."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pytest

from cli.agent_package.tree import MACHINES, Machine, agent_tree
from cli.check import CHECKOUT, tool

HERE = {machine: arch for arch, machine in MACHINES.items()}.get(platform.machine())
TEST_TOOLS = (
    *("pytest>=8.3", "pytest-asyncio>=0.25", "pytest-timeout>=2.3", "pytest-xdist>=3.6"),
    *("hypothesis>=6.120", "bsdiff4>=1.2.6", "can-isotp>=2.0.6", "intelhex>=2.3"),
)
ROOMS = ("edge_agent", "shared", "firmware_flashers")


@dataclass(frozen=True, kw_only=True)
class Half:
    """The agent's package's own environment on one Python, and a folder with the tests' tools beside it."""

    python: Path
    tools: Path

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Python with these arguments, the checkout's rooms before the environment's."""
        here = Path(__file__).parent
        paths = (self.tools, CHECKOUT, here)
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PYTEST", "COV"))}
        return subprocess.run(
            [str(self.python), *arguments],
            cwd=CHECKOUT,
            env=environment
            | {"PYTHONPATH": os.pathsep.join(map(str, paths)), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )


def lay_out(python: str, folder: Path, interpreter: Path | None = None) -> None:
    """The package's environment for a Python, as files; without `interpreter`, for the distribution's own."""
    if HERE is None:
        pytest.skip(f"no package for this processor: {platform.machine()}")
    tree = agent_tree(Machine(arch=HERE, python=python, interpreter=interpreter))
    for name, entry in tree.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if entry.link is not None:
            path.symlink_to(entry.link)
        else:
            path.write_bytes(entry.content)
            path.chmod(entry.mode)


def install_tools(python: str, folder: Path) -> None:
    """What the tests need, for that Python; and the simulators' bus, which python-can finds by name."""
    command = [tool("uv"), "pip", "install", "--quiet", "--no-config", "--python-version", python]
    done = subprocess.run(
        [*command, "--only-binary", ":all:", "--target", str(folder), *TEST_TOOLS],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.skip(f"the tests' tools for Python {python} can't be had: {done.stderr.strip()[-300:]}")
    number = version("quarry-ota")
    about = folder / f"quarry_ota-{number}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: quarry-ota\nVersion: {number}\n")
    (about / "entry_points.txt").write_text(
        "[can.interface]\nquarry-hub = sim.can_bus:HubBus\nquarry-model = sim.can_model:ModelEndpoint\n"
    )


def interpreter(python: str) -> Path:
    """A real one, not a wrapper that chooses; skips when the machine has none."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    candidates = [
        *([found] if (found := shutil.which(f"python{python}")) else []),
        *(sorted(pyenv.glob(f"versions/{python}.*/bin/python{python}")) if os.access(pyenv, os.R_OK) else []),
    ]
    for candidate in candidates:
        asked = subprocess.run(
            [str(candidate), "-I", "-c", "import ssl, sqlite3, sys; print(sys._base_executable)"],
            capture_output=True,
            text=True,
            check=False,
        )
        if asked.returncode == 0:
            return Path(asked.stdout.strip())
    pytest.skip(f"this machine has no Python {python}: neither python{python} on PATH nor one of pyenv")


@pytest.fixture
def half(tmp_path: Path) -> Iterator[Callable[[str], Half]]:
    """Makes the environment on a Python like "3.10"."""

    def make(python: str) -> Half:
        lay_out(python, tmp_path / "agent", interpreter(python))
        return Half(python=tmp_path / "agent/bin/python", tools=tmp_path / "tools")

    yield make
    for folder in ("agent", "tools"):
        shutil.rmtree(tmp_path / folder, ignore_errors=True)


@pytest.fixture
def lay() -> Callable[..., None]:
    return lay_out


@pytest.fixture
def install() -> Callable[[str, Path], None]:
    return install_tools
