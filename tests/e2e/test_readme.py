"""The README's tour, command by command, as it stands."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
STARTS_WITHIN_S = 90.0
STEP_WITHIN_S = 300.0
STOPS_WITHIN_S = 60.0


def blocks() -> list[tuple[int, str]]:
    """(terminal, commands) of each `sh` block of the tour, in order."""
    text = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"^```sh\n# terminal (\d)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [(int(number), commands) for number, commands in found]


def tour_and_bench() -> tuple[list[tuple[int, str]], list[tuple[int, str]]]:
    """The tour's blocks, and those of the bench, which begins at terminal 4."""
    found = blocks()
    bench = [number for number, _ in found].index(4)
    return found[:bench], found[bench:]


def busy(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Terminal:
    """A shell in the tour's folder; what it starts ends with it."""

    def __init__(self, folder: Path, commands: str, log: Path) -> None:
        self.log = log
        with log.open("wb") as out:
            self._shell = subprocess.Popen(
                ["sh", "-eu", "-c", commands],
                cwd=folder,
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"},
            )

    def wait_for(self, words: str) -> None:
        """Until its output has these words."""
        deadline = time.monotonic() + STARTS_WITHIN_S
        while words not in self.log.read_text(errors="replace"):
            assert self._shell.poll() is None, self.log.read_text(errors="replace")[-2000:]
            assert time.monotonic() < deadline, self.log.read_text(errors="replace")[-2000:]
            time.sleep(0.05)

    def interrupt(self) -> None:
        """What ^C does; returns when everything that was started here has ended by itself."""
        os.killpg(self._shell.pid, signal.SIGINT)
        self._shell.wait(60)
        deadline = time.monotonic() + STOPS_WITHIN_S
        while self._is_running():
            assert time.monotonic() < deadline, self.log.read_text(errors="replace")[-2000:]
            time.sleep(0.05)

    def kill(self) -> None:
        """Leave nothing behind, whatever happened."""
        if self._is_running():
            os.killpg(self._shell.pid, signal.SIGKILL)
        self._shell.wait(60)

    def _is_running(self) -> bool:
        self._shell.poll()
        try:
            os.killpg(self._shell.pid, 0)
        except ProcessLookupError:
            return False
        return True


def at_terminal_2(folder: Path, commands: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-eu", "-c", commands],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=STEP_WITHIN_S,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for port in (8080, 1883):
        if busy(port):
            pytest.skip(f"port {port}, which the README uses, is taken on this machine")
    (tmp_path / "quarry").symlink_to(CHECKOUT / "quarry")
    return tmp_path


STAYS = {1: "office ready", 3: "ready:"}
"""Terminals whose command runs on, and what it says when it is there; terminal 2 is the desk."""


@pytest.mark.timeout(900)
def test_the_tour_works_as_it_stands(folder: Path) -> None:
    tour, _ = tour_and_bench()
    assert {number for number, _ in tour} == {1, 2, 3}
    running: list[Terminal] = []
    exports, said = "", ""
    try:
        for number, commands in tour:
            if number in STAYS:
                running.append(Terminal(folder, commands, folder / f"terminal-{number}.log"))
                running[-1].wait_for(STAYS[number])
                continue
            done = at_terminal_2(folder, exports + commands)
            said = done.stdout
            assert done.returncode == 0, said + done.stderr
            # A terminal keeps what was exported in it before.
            lines = commands.splitlines(keepends=True)
            exports += "".join(line for line in lines if line.startswith("export "))
        assert "is done" in said
        assert '"state":"done"' in said
        for terminal in reversed(running):
            terminal.interrupt()
        assert "Traceback" not in "".join(terminal.log.read_text() for terminal in running)
    finally:
        for terminal in running:
            terminal.kill()


@pytest.mark.timeout(400)
def test_the_bench_works_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / "quarry").symlink_to(CHECKOUT / "quarry")
    (tmp_path / "tour").mkdir()
    (_, bus), (_, mcu), (_, flash) = tour_and_bench()[1]
    running: list[Terminal] = []
    try:
        for commands, log in ((bus, "bus.log"), (mcu, "mcu.log")):
            running.append(Terminal(tmp_path, commands, tmp_path / log))
            running[-1].wait_for("ready:")
        flashed = at_terminal_2(tmp_path, flash)
        assert flashed.returncode == 0, flashed.stdout + flashed.stderr
        assert "2.0.0" in flashed.stdout
        assert (tmp_path / "tour" / "frames.log").stat().st_size > 0
        for terminal in reversed(running):
            terminal.interrupt()
        assert "Traceback" not in "".join(terminal.log.read_text() for terminal in running)
    finally:
        for terminal in running:
            terminal.kill()
