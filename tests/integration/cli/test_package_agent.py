"""The agent's package, built for real: looked at, started from a folder, installed and removed by dpkg."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.agent_package.tree import MACHINES

HERE = {machine: arch for arch, machine in MACHINES.items()}.get(platform.machine())
INTERPRETER = Path(sys._base_executable)  # type: ignore[attr-defined]
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
SITE = f"usr/lib/quarry-agent/lib/python{PYTHON}/site-packages"

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(HERE is None, reason="no package for this machine's processor"),
    pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg is not installed"),
]


def build(out: Path, *more: str, arch: str | None = HERE) -> dict[str, Path]:
    command = [sys.executable, "-P", "-m", "cli.main", "package", "agent", "--arch", str(arch), "--json"]
    done = subprocess.run(
        [*command, "--python", PYTHON, "--out", str(out), *more], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    files = json.loads(done.stdout)["files"]
    for one in files:
        assert hashlib.sha256(Path(one["file"]).read_bytes()).hexdigest() == one["sha256"]
    return {Path(one["file"]).suffix: Path(one["file"]) for one in files}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """For this machine and the Python that the tests run on."""
    return build(tmp_path_factory.mktemp("deb"), "--interpreter", str(INTERPRETER))


@pytest.fixture(scope="module")
def root(built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("root")
    subprocess.run(["dpkg-deb", "-x", str(built[".deb"]), str(folder)], check=True)
    yield folder
    shutil.rmtree(folder)


def quarry(root: Path, *args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(cwd),
        "QUARRY_AGENT_VERSIONS": str(cwd / "v"),
    }
    return subprocess.run(
        [str(root / "usr/bin/quarry-agent"), *args],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_what_is_in_it(built: dict[str, Path], root: Path) -> None:
    deb = str(built[".deb"])
    fields = subprocess.run(["dpkg-deb", "-f", deb], capture_output=True, text=True, check=True).stdout
    assert f"Architecture: {HERE}\n" in fields
    assert "Package: quarry-agent\n" in fields
    listed = subprocess.run(["dpkg-deb", "-c", deb], capture_output=True, text=True, check=True).stdout
    assert all(line.split()[1] == "root/root" for line in listed.splitlines())
    conffiles = subprocess.run(
        ["dpkg-deb", "-I", deb, "conffiles"], capture_output=True, text=True, check=True
    ).stdout
    assert conffiles == "/etc/quarry-agent/agent.toml\n"
    site = root / SITE
    for name in ("edge_agent", "shared", "firmware_flashers", "tuf", "can", "aiomqtt"):
        assert (site / name).is_dir()
    for name in ("sim", "control_plane", "cli", "tests", "pytest", "fastapi"):
        assert not (site / name).exists()
    assert not list(root.rglob("*.pyc"))
    assert not list(site.rglob("direct_url.json"))
    unit = (root / "usr/lib/systemd/system/quarry-agent.service").read_text()
    assert "ExecStart=/usr/lib/quarry-agent/bin/quarry-agent-launcher run" in unit
    here = str(Path.cwd()).encode()
    for path in root.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.suffix not in (".so",):
            assert here not in path.read_bytes(), f"{path} names the machine that built it"


def test_it_runs_from_anywhere(root: Path, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "__init__.py").write_text("raise SystemExit('the wrong shared')")
    said = quarry(root, "--version", cwd=tmp_path)
    assert (said.returncode, said.stderr) == (0, "")
    assert said.stdout.startswith("quarry-agent ")
    config = tmp_path / "agent.toml"
    assert quarry(root, "init", "--out", str(config), cwd=tmp_path).returncode == 0
    assert config.read_bytes() == (root / "etc/quarry-agent/agent.toml").read_bytes()
    # Every import that a start needs is in it: the configuration is what is missing.
    said = quarry(root, "run", "--config", str(config), cwd=tmp_path)
    assert said.returncode == 78, said.stderr
    assert "agent.toml: component[0].security_secret_file" in said.stderr
    imported = subprocess.run(
        [str(root / "usr/lib/quarry-agent/bin/python"), "-I", "-c", "import edge_agent.app, can, udsoncan"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert imported.returncode == 0, imported.stderr


@pytest.mark.long
def test_the_same_checkout_gives_the_same_bytes(built: dict[str, Path], tmp_path: Path) -> None:
    again = build(tmp_path, "--interpreter", str(INTERPRETER))
    for suffix, path in again.items():
        first = hashlib.sha256(built[suffix].read_bytes()).hexdigest()
        assert hashlib.sha256(path.read_bytes()).hexdigest() == first, suffix


@pytest.mark.long
def test_the_other_processors_package_has_its_own_code_only(tmp_path: Path) -> None:
    other = next(arch for arch in MACHINES if arch != HERE)
    built = build(tmp_path / "deb", arch=other)
    subprocess.run(["dpkg-deb", "-x", str(built[".deb"]), str(tmp_path / "root")], check=True)
    libraries = list((tmp_path / "root").rglob("*.so"))
    assert len(libraries) >= 4
    # e_machine of an ELF header: 62 is x86-64, 183 is AArch64 (the System V ABI).
    machines = {int.from_bytes(path.read_bytes()[18:20], "little") for path in libraries}
    assert machines == {{"amd64": 62, "arm64": 183}[other]}
    assert (tmp_path / "root/usr/lib/quarry-agent/bin/python").readlink() == Path(f"/usr/bin/python{PYTHON}")


@pytest.mark.long
@pytest.mark.skipif(os.geteuid() != 0, reason="dpkg installs as root only")
def test_dpkg_installs_upgrades_removes_and_purges_it(tmp_path: Path) -> None:
    """In an overlay over this machine's own root: all its tools, and nothing of it is changed."""
    python = Path(f"/usr/bin/python{PYTHON}")
    if not python.exists():
        pytest.skip(f"the distribution has no python{PYTHON}")
    built = build(tmp_path / "deb")
    root = tmp_path / "root"
    memory = tmp_path / "memory"
    memory.mkdir()
    script = tmp_path / "script"
    script.write_text(
        f"""set -eu
mount -t tmpfs tmpfs {memory}
mkdir {memory}/over {memory}/work {root}
mount -t overlay overlay -o lowerdir=/,upperdir={memory}/over,workdir={memory}/work {root}
mkdir -p {root}/tmp && cp {built[".deb"]} {root}/tmp/agent.deb
mount -t proc proc {root}/proc
exec chroot {root} sh -eu -c '
install() {{ dpkg --force-depends -i /tmp/agent.deb; }}
install
quarry-agent --version
getent passwd quarry
stat -c "%U %a" /var/lib/quarry-agent /etc/quarry-agent /etc/quarry-agent/agent.toml
ls /usr/lib/quarry-agent/lib/python*/site-packages/edge_agent/__pycache__ | head -1
echo "# mine" >> /etc/quarry-agent/agent.toml
install
tail -1 /etc/quarry-agent/agent.toml
touch /var/lib/quarry-agent/agent.db
dpkg -r quarry-agent
test ! -e /usr/lib/quarry-agent
test ! -e /usr/bin/quarry-agent
test -e /var/lib/quarry-agent/agent.db
test -e /etc/quarry-agent/agent.toml
dpkg -P quarry-agent
test ! -e /var/lib/quarry-agent
test ! -e /etc/quarry-agent
echo purged
'
"""
    )
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", str(script)],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"},
    )
    if "mount:" in done.stderr or "unshare" in done.stderr:
        pytest.skip(f"this machine mounts no overlay: {done.stderr.strip()[-300:]}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("purged")
    assert "quarry-agent 0" in done.stdout
    assert "quarry 700\nroot 750\nroot 640\n" in done.stdout
    assert "# mine\n" in done.stdout
