"""Make the checkout's own Python environment, from nothing but a Python and the lock file.

Run by the launcher, before any package is there: standard library only, and never imported by
the rest. It promises that `.venv/.complete` appears only behind a whole environment, so that an
interrupted run is started afresh by the next one, and that two runs at once do the work once.

    python -I bootstrap.py CHECKOUT STAMP

Exit codes: 0 made (or already there), 3 something must be installed first, 4 the packages could
not be had.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

MUST_INSTALL = 3
NO_PACKAGES = 4


class Stop(Exception):
    """The environment can't be made: one sentence for the person, and the exit code."""

    def __init__(self, sentence: str, code: int) -> None:
        super().__init__(sentence)
        self.code = code


def say(text: str) -> None:
    """Tell on stderr what is being done: stdout belongs to the command that follows."""
    print(f"quarry: {text}", file=sys.stderr, flush=True)


def run(command: list[str], env: dict[str, str], purpose: str) -> None:
    """Run one set-up command; its output is shown only when it fails.

    Raises Stop with the last line that it printed.
    """
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.stderr.write(done.stdout + done.stderr)
        raise Stop(f"could not {purpose} (exit {done.returncode}; its output is above).", NO_PACKAGES)


def lock_entry(lock_file: Path, package: str) -> str:
    """The lines of one package in the lock: its pinned version and all its hashes."""
    lines: list[str] = []
    for line in lock_file.read_text().splitlines():
        begins = line.startswith(f"{package}==")
        if begins or (lines and line.lstrip().startswith("--hash")):
            lines.append(line)
        elif lines:
            break
    if not lines:
        raise Stop(f"{lock_file.name} does not pin {package}: restore it from git.", NO_PACKAGES)
    return "\n".join(lines) + "\n"


def writable_cache(checkout: Path) -> Path | None:
    """A package cache inside the checkout when the user's own can't be written, else None."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path("~").expanduser() / ".cache")
    nearest = next(path for path in (home, *home.parents) if path.exists())
    return None if os.access(nearest, os.W_OK | os.X_OK) else checkout / ".cache" / "uv"


def make_venv(lock_file: Path, venv: Path, env: dict[str, str]) -> str:
    """Create the empty environment and return the path of a uv that can fill it.

    Ways, in order: uv on PATH; venv with pip; venv without pip, filled by the system's pip (a
    Debian Python without python3-venv). Raises Stop with what to install when none is there.
    """
    uv = shutil.which("uv")
    if uv:
        run(
            [uv, "venv", "--quiet", "--python", sys.executable, str(venv)],
            env,
            "make the environment with uv",
        )
        return uv
    python = str(venv / "bin" / "python")
    has = {name: importlib.util.find_spec(name) is not None for name in ("venv", "ensurepip", "pip")}
    if not has["venv"] or not (has["ensurepip"] or has["pip"]):
        raise Stop(
            f"{sys.executable} has no venv module: install it "
            "(Debian, Ubuntu: apt-get install python3-venv), or put uv on PATH.",
            MUST_INSTALL,
        )
    if has["ensurepip"]:
        run([sys.executable, "-I", "-m", "venv", str(venv)], env, "make the environment")
        pip = [python, "-I", "-m", "pip"]
    else:
        run([sys.executable, "-I", "-m", "venv", "--without-pip", str(venv)], env, "make the environment")
        pip = [sys.executable, "-m", "pip", "--python", python]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as pinned:
        pinned.write(lock_entry(lock_file, "uv"))
        pinned.flush()
        run(
            [
                *pip,
                *["install", "--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes", "-r"],
                pinned.name,
            ],
            env,
            "install uv by pip",
        )
    return str(venv / "bin" / "uv")


def bootstrap(checkout: Path, stamp: str) -> None:
    """Build `.venv` afresh unless another run has just done it.

    Raises Stop when it can't be made; then no stamp is left behind.
    """
    venv = checkout / ".venv"
    lock_file = checkout / "requirements.lock"
    complete = venv / ".complete"
    with (checkout / ".venv.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another quarry is preparing this checkout; waiting for it ...")
            fcntl.flock(lock, fcntl.LOCK_EX)
        if complete.exists() and complete.read_text().strip() == stamp:
            return
        say("first use of this checkout: preparing .venv from requirements.lock ...")
        shutil.rmtree(venv, ignore_errors=True)
        # Settings of an environment that the user stands in must not leak into ours.
        env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
        cache = writable_cache(checkout)
        if cache is not None:
            env["UV_CACHE_DIR"] = env["PIP_CACHE_DIR"] = str(cache)
        uv = make_venv(lock_file, venv, env)
        target = ["--quiet", "--python", str(venv / "bin" / "python"), "--compile-bytecode"]
        say("installing the locked packages (all hashes checked) ...")
        run(
            [uv, "pip", "install", *target, "--no-deps", "--require-hashes", "-r", str(lock_file)],
            env,
            "install the locked packages",
        )
        run(
            [uv, "pip", "install", *target, "--no-deps", "--no-build-isolation", "-e", str(checkout)],
            env,
            "install this checkout",
        )
        complete.write_text(stamp + "\n")
        say("ready.")


def main() -> int:
    """Entry point: one sentence and a code, never a traceback, for what a person can mend."""
    checkout, stamp = Path(sys.argv[1]), sys.argv[2]
    try:
        bootstrap(checkout, stamp)
    except Stop as stop:
        say(str(stop))
        return stop.code
    except OSError as error:
        say(f"cannot prepare {checkout}: {error.strerror or error} ({error.filename or checkout}).")
        return NO_PACKAGES
    except KeyboardInterrupt:
        say("interrupted; the next start begins afresh.")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
