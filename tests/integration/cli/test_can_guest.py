"""Running a command in a guest, where the guest's kernel is played by a script: ends of every kind.

(The real one is started by `quarry test` itself, for tests/integration/socketcan.)
"""

from __future__ import annotations

import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.can_kernel.choice import Broken, Unavailable
from cli.can_kernel.guest import Job, RanTooLong, run_in_guest
from cli.can_kernel.kernel import Kernel
from shared.errors import OtaError

CHECKOUT = Path(__file__).resolve().parents[3]

HEAD = """\
import json, os, signal, sys, time
from pathlib import Path
assert [sys.argv[-4], sys.argv[-3]] == ["-I", "-S"], sys.argv
folder = Path(sys.argv[-1])
job = json.loads((folder / "job.json").read_text())
"""


@pytest.fixture
def kernel(tmp_path: Path) -> Callable[..., Kernel]:
    """`kernel(script)`: a kernel that is a Python script behind HEAD."""

    def made(script: str, no_isotp: OtaError | None = None) -> Kernel:
        program = tmp_path / "a cache" / "linux.uml"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!{sys.executable}\n{HEAD}{script}\n")
        program.chmod(0o755)
        return Kernel(program=program, version="6.1.0", modules=(), shim=None, no_isotp=no_isotp)

    return made


def job(*, time_out_s: float = 60) -> Job:
    return Job(
        command=["some", "command with spaces"],
        cwd=Path("/"),
        environment={"A": "b", "TMPDIR": "/somewhere"},
        time_out_s=time_out_s,
    )


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where job folders are made."""
    folder = tmp_path / "jobs"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def gone(pid: int) -> bool:
    """Whether a process has ended; one that waits to be reaped by somebody has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def test_outputs_stay_apart_and_the_exit_code_is_the_commands(
    kernel: Callable[..., Kernel], folders: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    script = """
os.write(1, b"of the console")
os.write(3, b"\\x1b[32mout " + json.dumps(job["command"]).encode())
os.write(4, b"err")
assert (folder.stat().st_mode & 0o777, job["interfaces"]) == (0o700, ["vcan0", "vcan1"])
assert job["environment"] == {
    "A": "b", "TMPDIR": "/run/tmp", "QUARRY_CAN_KERNEL": "guest", "QUARRY_NO_KERNEL_ISOTP": "no gcc"
}
assert Path(folder / "python").resolve().exists() and Path(folder / "init.py").exists()
(folder / "code").write_text("7")
"""
    assert run_in_guest(kernel(script, Unavailable("no gcc")), job()) == 7
    shown = capfd.readouterr()
    assert shown.out == '\x1b[32mout ["some", "command with spaces"]'
    assert shown.err == "err"
    assert list(folders.iterdir()) == []


def test_megabytes_of_output_are_all_there(
    kernel: Callable[..., Kernel], capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    script = """
for n in range(3000):
    os.write(3, b"%08d" % n * 128)
(folder / "code").write_text("0")
"""
    assert run_in_guest(kernel(script), job()) == 0
    assert capfdbinary.readouterr().out == b"".join(b"%08d" % n * 128 for n in range(3000))


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("print('Kernel panic', flush=True); os.kill(0, signal.SIGKILL)", "Kernel panic"),
        ("(folder / 'failed').write_text('OSError: no tty'); print('x')", "OSError: no tty"),
        ("sys.exit(0)", "without a result"),
    ],
    ids=["panic", "first process failed", "silent"],
)
def test_no_result_is_told_with_the_consoles_end(
    kernel: Callable[..., Kernel], script: str, says: str
) -> None:
    with pytest.raises(Broken, match=says):
        run_in_guest(kernel(script), job())


def test_the_console_that_is_kept_is_bounded(kernel: Callable[..., Kernel]) -> None:
    with pytest.raises(Broken, match="the last line") as caught:
        run_in_guest(
            kernel("print('y' * 70 + '\\n', end='', flush=True)\n" * 2 + "print('the last line')"), job()
        )
    assert len(caught.value.message) < 20_000


def test_a_guest_that_runs_too_long_is_killed_with_all_its_processes(
    kernel: Callable[..., Kernel], folders: Path, tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    # A child that keeps the outputs open and hears no signal but the last.
    script = f"""
child = os.fork()
for one in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
    signal.signal(one, signal.SIG_IGN)
if child:
    Path({str(pids)!r}).write_text(f"{{os.getpid()}} {{child}}")
while True:
    time.sleep(100)
"""
    with pytest.raises(RanTooLong):
        run_in_guest(kernel(script), job(time_out_s=3))
    assert list(folders.iterdir()) == []
    until(lambda: all(gone(int(pid)) for pid in pids.read_text().split()))


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_it_ends_with_the_program_that_started_it(
    kernel: Callable[..., Kernel], tmp_path: Path, number: int, code: int
) -> None:
    pids = tmp_path / "pids"
    made = kernel(f"""
Path({str(pids)!r} + ".new").write_text(str(os.getpid()) + " " + str(folder))
os.rename({str(pids)!r} + ".new", {str(pids)!r})
while True:
    time.sleep(100)
""")
    program = f"""
import signal, sys
from pathlib import Path
from cli.can_kernel.guest import Job, run_in_guest
from cli.can_kernel.kernel import Kernel
signal.signal(signal.SIGINT, signal.default_int_handler)
kernel = Kernel(program=Path({str(made.program)!r}), version="6", modules=(), shim=None, no_isotp=None)
try:
    run_in_guest(kernel, Job(command=["x"], cwd=Path("/"), environment={{}}, time_out_s=100))
except KeyboardInterrupt:
    sys.exit(130)
"""
    process = subprocess.Popen([sys.executable, "-P", "-c", program], cwd=CHECKOUT)
    until(pids.exists)
    pid, folder = pids.read_text().split()
    process.send_signal(number)
    assert process.wait(30) == code
    until(lambda: gone(int(pid)))
    # SIGKILL leaves nobody who could remove the folder; nobody else may read it.
    if number == signal.SIGKILL:
        assert stat.S_IMODE(Path(folder).stat().st_mode) == 0o700
        for left in Path(folder).iterdir():
            left.unlink()
        Path(folder).rmdir()
    assert not Path(folder).exists()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
