"""Debian 13 with its own Python 3.13: the agent's package installed, run and removed, and the unit tests.

The root is Debian's own packages, which apt takes from this machine's mirror under its keys, unpacked into a
folder; nothing of this machine is in it, and nothing on this machine is changed.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli import package
from cli.check import CHECKOUT

PACKAGES = (
    *("python3.13", "dpkg", "base-files", "base-passwd", "passwd", "dash", "coreutils", "ca-certificates"),
    *("libc-bin", "sed", "grep", "findutils", "diffutils", "tar"),
)
KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
WITHIN_S = 600
HERE = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine)

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(os.geteuid() != 0, reason="chroot and dpkg are for root only"),
    pytest.mark.skipif(shutil.which("apt-get") is None, reason="Debian's packages are fetched by apt"),
    pytest.mark.skipif(HERE is None, reason="no package for this machine's processor"),
]


def apt(folder: Path, *arguments: str) -> str:
    """apt-get with all of its state under `folder`; what can't be had skips with apt's own words."""
    options = {
        "Dir::Etc": folder / "etc",
        "Dir::Etc::sourceparts": "-",
        "Dir::State": folder / "state",
        "Dir::State::status": folder / "state/status",
        "Dir::Cache": folder / "cache",
        "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
        "Acquire::http::Timeout": "20",
        "APT::Update::Error-Mode": "any",
    }
    done = subprocess.run(
        ["apt-get", "-q", *(f"-o{name}={value}" for name, value in options.items()), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=WITHIN_S,
        env=os.environ | {"LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
    )
    if done.returncode != 0:
        pytest.skip(f"Debian 13 can't be had: apt-get {arguments[0]}: {done.stderr.strip()[-300:]}")
    return done.stdout


def mirror() -> str:
    """Where this machine has its Debian from."""
    done = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(SITE) $(ORIGIN) $(LABEL)", "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=False,
    )
    for line in done.stdout.splitlines():
        site, _, who = line.partition(" ")
        if who == "Debian Debian":
            return site
    pytest.skip("this machine has no Debian mirror in its apt sources, or never fetched its lists")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A Debian 13 with nothing but Python and what dpkg needs."""
    folder = tmp_path_factory.mktemp("debian13")
    for name in ("etc/apt.conf.d", "etc/preferences.d", "state/lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True)
    (folder / "state/status").touch()
    signed = f"[signed-by={KEYS}] " if KEYS.exists() else ""
    (folder / "etc/sources.list").write_text(f"deb {signed}{mirror()} trixie main\n")
    apt(folder, "update")
    apt(folder, "install", "-y", "--download-only", *PACKAGES)
    made = folder / "root"
    made.mkdir()
    for deb in sorted((folder / "cache/archives").glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", str(deb), str(made)], check=True)
    for name in ("passwd", "group"):
        shutil.copy(made / f"usr/share/base-passwd/{name}.master", made / f"etc/{name}")
    (made / "var/lib/dpkg/updates").mkdir(parents=True, exist_ok=True)
    (made / "var/lib/dpkg/info").mkdir(exist_ok=True)
    (made / "var/lib/dpkg/status").touch()
    for name, minor in (("null", 3), ("zero", 5), ("random", 8), ("urandom", 9)):
        os.mknod(made / "dev" / name, 0o666 | stat.S_IFCHR, os.makedev(1, minor))
    yield made
    shutil.rmtree(folder, ignore_errors=True)


def within(root: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A command in the root, with a /proc of its own where the machine lets it be mounted."""
    shell = 'mount -t proc proc "$0/proc" 2>/dev/null; exec chroot "$0" "$@"'
    return subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", shell, str(root), *command],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/root"} | variables,
    )


def test_the_package_is_installed_runs_and_is_removed(root: Path, tmp_path: Path) -> None:
    built = CliRunner().invoke(
        package.app, ["agent", "--arch", str(HERE), "--python", "3.13", "--out", str(tmp_path)]
    )
    assert built.exit_code == 0, built.output
    [deb] = tmp_path.glob("*.deb")
    shutil.copy(deb, root / "tmp/agent.deb")
    # What it depends on is there, and unpacked only: dpkg does not know it.
    done = within(root, "dpkg", "--force-depends", "-i", "/tmp/agent.deb")
    assert done.returncode == 0, done.stdout + done.stderr
    said = within(root, "quarry-agent", "--version")
    assert re.fullmatch(r"quarry-agent \d[^\n]*\n", said.stdout), said.stderr
    script = (
        "import sys, edge_agent.app, edge_agent.cli, firmware_flashers.registry, can, udsoncan, tuf;"
        "print(sys.version_info[:2])"
    )
    said = within(root, "/usr/lib/quarry-agent/bin/python", "-I", "-W", "error", "-c", script)
    assert (said.returncode, said.stdout) == (0, "(3, 13)\n"), said.stderr
    said = within(root, "quarry-agent", "run", "--config", "/etc/quarry-agent/agent.toml")
    assert said.returncode == 78, said.stderr
    assert "agent.toml: component[0].security_secret_file" in said.stderr
    assert "quarry:" in (root / "etc/passwd").read_text()
    done = within(root, "dpkg", "-P", "quarry-agent")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (root / "usr/lib/quarry-agent").exists()
    assert not (root / "etc/quarry-agent").exists()


def test_the_unit_tests_pass_on_its_python(
    root: Path, lay: Callable[..., None], install: Callable[..., None]
) -> None:
    lay("3.13", root / "opt/half")
    install("3.13", root / "opt/tools")
    for room in ("shared", "firmware_flashers", "edge_agent", "sim", "cli", "control_plane", "tests"):
        shutil.copytree(
            CHECKOUT / room,
            root / "opt/checkout" / room,
            ignore=shutil.ignore_patterns("__pycache__"),
            dirs_exist_ok=True,
        )
    shutil.copy(CHECKOUT / "pyproject.toml", root / "opt/checkout")
    rooms = " ".join(f"tests/unit/{room}" for room in ("edge_agent", "shared", "firmware_flashers"))
    done = within(
        root,
        "sh",
        "-c",
        "cd /opt/checkout && exec /opt/half/bin/python -m pytest -p stand_ins -p no:cacheprovider"
        f" --confcutdir tests/unit -q -n 2 --dist loadfile -m 'not long and not socketcan' {rooms}",
        PYTHONPATH="/opt/tools:/opt/checkout:/opt/checkout/tests/integration/pythons",
        PYTHONDONTWRITEBYTECODE="1",
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > 1000
