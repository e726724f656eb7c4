"""Power cuts, full disks and clock jumps for a real process: the driver's half of sim/power.c.

The library is compiled when it is needed, which takes a C compiler (`cc`), and is preloaded into the process.
SIGKILL alone never loses an unsynced page; with the recorded log `Power.cut` throws them away. The process
must load the C library dynamically, as CPython does.
"""

from __future__ import annotations

import os
import platform
import shutil
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path

from shared.errors import OtaError
from sim.power_disk import Disk, Loss, cut_power

SOURCE = Path(__file__).with_name("power.c")
COMPILE_WITHIN_S = 60.0
NO_LIMIT = -1
_CONTROL = struct.Struct("<qqqq")


class NoCompiler(OtaError):
    """Power cuts can't be simulated on this machine."""

    code = "no_compiler"
    advice = "Install a C compiler (Debian: apt-get install gcc libc6-dev)."


def build(folder: Path) -> Path:
    """The compiled library, in `folder`. Blocks. Raises NoCompiler."""
    library = folder / "power.so"
    compiler = shutil.which("cc") or shutil.which("gcc")
    if platform.system() != "Linux":
        raise NoCompiler("power cuts are simulated on Linux only", advice="Run it on Linux.")
    if compiler is None:
        raise NoCompiler("there is no C compiler here")
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-lpthread"]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=COMPILE_WITHIN_S)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or b""
        raise NoCompiler(f"sim/power.c can't be compiled: {error} {said.decode()[-400:]}") from error
    return library


class Power:
    """The power, disk and clock of one process at a time that works in the folder `root`.

    `work` is where the log and the shared control file are; it must not be below `root`.
    """

    def __init__(self, library: Path, root: Path, work: Path) -> None:
        self._library = library
        self.root = root.resolve()
        self.log = work / "power.log"
        self.control = work / "power.control"
        self._disk: Disk | None = None
        self.control.write_bytes(_CONTROL.pack(0, NO_LIMIT, 0, 0))

    def on(self) -> None:
        """The process is about to begin: what `root` holds now is safe, and its log is begun anew."""
        self.log.unlink(missing_ok=True)
        self._put(3, 0)
        self._disk = Disk(self.root)

    def environment(self, more: Mapping[str, str] = os.environ) -> dict[str, str]:
        """The environment that the process is to have."""
        return {
            **more,
            "LD_PRELOAD": str(self._library),
            "QUARRY_POWER_ROOT": str(self.root),
            "QUARRY_POWER_LOG": str(self.log),
            "QUARRY_POWER_CONTROL": str(self.control),
        }

    def cut(self, loss: Loss, seed: int) -> None:
        """The process was killed: take from `root` all that was not synced. Raises LostTrack."""
        assert self._disk is not None, "the power was never on"
        disk, self._disk = self._disk, None
        if self.log.exists():
            cut_power(self.root, disk, self.log, loss=loss, seed=seed)

    def kill_at(self, act: int) -> None:
        """Kill the process instead of its act of this number on the disk, from 1; 0: never."""
        self._put(2, act)

    def fill_disk(self, room_bytes: int = 0) -> None:
        """Let the folder's files grow by so much in all and then fail (ENOSPC)."""
        self._put(1, room_bytes)

    def empty_disk(self) -> None:
        """There is room again."""
        self._put(1, NO_LIMIT)

    def shift_clock(self, by_s: float) -> None:
        """Let the process's wall clock read so much more than the machine's."""
        self._put(0, round(by_s * 1e9))

    @property
    def acts(self) -> int:
        """How many acts on the disk there were since `on`."""
        return int(_CONTROL.unpack(self.control.read_bytes())[3])

    def _put(self, place: int, value: int) -> None:
        # Written in place: the process has the file mapped.
        with self.control.open("r+b") as file:
            file.seek(8 * place)
            file.write(struct.pack("<q", value))
