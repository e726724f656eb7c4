"""Flash memory as an STM32F4 has it, kept in a file, that a power cut leaves as a real one would.

- A sector is erased as a whole to 0xFF; a byte that is not erased can't be programmed.
- What was erased or programmed is in the file at once: a killed process loses nothing that was done.
- A cut erase leaves garbage in its sector, a cut write the bytes before the cut and a garbled word.
  Such a sector is *torn*: it is programmed no more until it has been erased, however it reads.

The file is the content followed by one byte a sector: 0xFF whole, 0x00 torn.
"""

from __future__ import annotations

import fcntl
import os
import random
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from shared.errors import OtaError
from sim.mcu.memory import DEFAULT_MAP, WORD, MemoryMap

WHOLE = 0xFF
TORN = 0x00


class FlashFileError(OtaError):
    """The file of a simulated flash can't be used."""

    code = "flash_file"
    advice = (
        "Give the flash file of a simulated MCU that nobody else uses, or a path that does not exist yet."
    )


class NotErased(Exception):
    """A write to bytes that are not erased, or in a torn sector; nothing was written."""


class PowerCut(BaseException):
    """The power went in the middle. BaseException, since no handler may soften it."""


class Flash:
    """The memory, as a resource. Addresses are those of the MCU; ranges outside raise ValueError.

    `cut_at_byte` and `cut_at_erase` order a power cut in the middle of programming that byte or of
    erasing that sector, counted from 1 from now on. `generation` grows with every change.
    """

    def __init__(self, path: Path, *, memory: MemoryMap = DEFAULT_MAP) -> None:
        self.memory = memory
        self._path = path
        self._fd = -1
        self.generation = 0
        self.cut_at_byte: int | None = None
        self.cut_at_erase: int | None = None

    def __enter__(self) -> Self:
        try:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            refusal = self._open()
        except OSError as error:
            self.close()
            raise FlashFileError(f"can't use {self._path}: {error.strerror}") from error
        if refusal:
            self.close()
            raise FlashFileError(refusal)
        return self

    def _open(self) -> str | None:
        """Lock the file and see whether it is a flash of this size; returns what is wrong."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return f"another MCU runs on {self._path}"
        size = self.memory.flash.size + len(self.memory.sectors)
        found = os.fstat(self._fd).st_size
        if found == 0:
            os.pwrite(self._fd, b"\xff" * size, 0)
        elif found != size:
            return f"{self._path} has {found} bytes, this MCU's flash file has {size}"
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file; may be repeated."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def read(self, start: int, size: int) -> bytes:
        """The bytes as the MCU reads them."""
        return os.pread(self._fd, size, self._offset(start, size))

    def is_torn(self, sector: int) -> bool:
        """Whether an erase or write of the sector was cut."""
        return os.pread(self._fd, 1, self.memory.flash.size + sector) != bytes([WHOLE])

    def erase(self, sector: int, *, during: Callable[[], None] = lambda: None) -> None:
        """Erase one sector; `during` is called while it is half erased."""
        area = self.memory.sector_areas()[sector]
        self._mark(sector, TORN)
        old = self.read(area.start, area.size)
        # Cells rise to 1 at their own pace: what is read meanwhile is some of the old bits and some ones.
        noise = random.Random(f"{sector}.{self.generation}").randbytes(area.size)
        half = int.from_bytes(old, "little") | int.from_bytes(noise, "little")
        self._put(area.start, half.to_bytes(area.size, "little"))
        if self.cut_at_erase is not None:
            self.cut_at_erase -= 1
            if self.cut_at_erase <= 0:
                self.cut_at_erase = None
                raise PowerCut
        during()
        self._put(area.start, b"\xff" * area.size)
        self._mark(sector, WHOLE)

    def write(self, start: int, data: bytes) -> None:
        """Program whole words; raises NotErased before anything is written."""
        if start % WORD or len(data) % WORD:
            raise ValueError("flash is programmed in whole words")
        sectors = self.memory.sectors_of(start, len(data))
        if self.read(start, len(data)).strip(b"\xff") or any(self.is_torn(one) for one in sectors):
            raise NotErased
        if self.cut_at_byte is None or self.cut_at_byte > len(data):
            if self.cut_at_byte is not None:
                self.cut_at_byte -= len(data)
            self._put(start, data)
            return
        done = self.cut_at_byte - 1
        self.cut_at_byte = None
        word = done - done % WORD
        garbled = int.from_bytes(data[word : word + WORD], "little") | 0x00F0_0F00
        self._mark(self.memory.sectors_of(start + word, WORD)[0], TORN)
        self._put(start, data[:word] + garbled.to_bytes(WORD, "little"))
        raise PowerCut

    def _put(self, start: int, data: bytes) -> None:
        os.pwrite(self._fd, data, self._offset(start, len(data)))
        self.generation += 1

    def _mark(self, sector: int, mark: int) -> None:
        os.pwrite(self._fd, bytes([mark]), self.memory.flash.size + sector)
        self.generation += 1

    def _offset(self, start: int, size: int) -> int:
        if not self.memory.flash.holds(start, size):
            raise ValueError(f"{size} bytes at {start:#x} are not in flash")
        return start - self.memory.flash_start
