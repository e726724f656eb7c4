"""The launcher on machines that are not like this one: no Python, an old one, no venv, killed half-way."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[3]
COMMANDS = ("sh", "cat", "cksum", "sed", "dirname", "readlink", "uname")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A fresh clone: what the repository holds, without the environment."""
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=CHECKOUT,
        capture_output=True,
        check=True,
    ).stdout.split(b"\0")
    copy = tmp_path / "a clone with spaces"
    for name in filter(None, files):
        source, target = CHECKOUT / os.fsdecode(name), copy / os.fsdecode(name)
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    return copy


def bare_path(folder: Path, **scripts: str) -> str:
    """A PATH with the few programs of a bare machine, and the given scripts."""
    folder.mkdir()
    for name in COMMANDS:
        found = shutil.which(name)
        assert found, name
        (folder / name).symlink_to(found)
    for name, text in scripts.items():
        program = folder / name
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return str(folder)


def environment(path: str | None = None) -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if k not in {"PYTHONSAFEPATH", "QUARRY_PYTHON", "VIRTUAL_ENV"}}
    return env | ({"PATH": path} if path else {"QUARRY_PYTHON": sys.executable})


def launch(checkout: Path, *args: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(checkout / "quarry"), *args],
        cwd="/",
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )


@pytest.mark.parametrize(
    "scripts",
    [{}, {"python3": "exit 1"}, {"python3": "exit 1", "uv": "exit 2"}],
    ids=["none", "old", "old, uv"],
)
def test_a_machine_without_a_usable_python_is_told_what_to_install(
    checkout: Path, tmp_path: Path, scripts: dict[str, str]
) -> None:
    done = launch(checkout, "demo", env=environment(bare_path(tmp_path / "bin", **scripts)))
    assert done.returncode == 3
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "Python 3.11" in done.stderr
    assert "apt-get install" in done.stderr


def test_a_python_without_venv_and_pip_is_told_what_to_install(checkout: Path, tmp_path: Path) -> None:
    hide = (
        "import importlib.util as u, runpy, sys; real = u.find_spec; "
        "u.find_spec = lambda name, *a: None if name in ('ensurepip', 'pip') else real(name, *a); "
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    # Stands for a Debian Python without python3-venv: the modules are not to be found.
    python = "\n".join(
        (
            'case "$*" in',
            f'*bootstrap.py*) shift; exec {sys.executable} -c "{hide}" "$@";;',
            f'*) exec {sys.executable} "$@";;',
            "esac",
        )
    )
    done = launch(checkout, "demo", env=environment(bare_path(tmp_path / "bin", python3=python)))
    assert done.returncode == 3, done.stderr
    assert "python3-venv" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (checkout / ".venv" / ".complete").exists()


def test_a_first_start_that_was_killed_is_begun_afresh_by_the_next(checkout: Path) -> None:
    env = environment()
    first = subprocess.Popen(
        [str(checkout / "quarry"), "--version"],
        env=env,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert first.stderr is not None
    while "installing" not in first.stderr.readline():
        assert first.poll() is None
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    first.stderr.close()
    assert not (checkout / ".venv" / ".complete").exists()

    # Two at once, through a link: one prepares, the other waits, both run.
    link = checkout.parent / "q"
    link.symlink_to(checkout / "quarry")
    other = subprocess.Popen([str(link), "--version"], env=env, stdout=subprocess.PIPE, text=True, cwd="/")
    done = launch(checkout, "--version", env=env)
    out, _ = other.communicate(timeout=110)
    assert (done.returncode, other.returncode) == (0, 0), done.stderr
    assert done.stdout == out
    assert done.stdout.startswith("quarry ")

    again = launch(checkout, "no-such-verb", env=env)
    assert again.returncode == 2
    assert again.stderr.count("\n") == 1, "a second start prepares nothing"
