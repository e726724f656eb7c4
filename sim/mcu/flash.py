"""Flash memory as microcontrollers have it, kept in a file, that a power cut leaves as a real one would.

- A sector is erased as a whole to 0xFF; a byte that is not erased can't be programmed.
- What was erased or programmed is in the file at once: a killed process loses nothing that was done.
- A cut erase leaves garbage in its sector, a cut write the bytes before the cut and a garbled word.
  Such a sector is *torn*: it is programmed no more until it has been erased, however it reads.
- A counter beside the flash only rises, as one in eFuses does.
- A write-protected sector is neither erased nor programmed. Read-out protection is a mark here; who may
  read is the firmware's business. Taking it away erases the whole flash first.

The file is the content, then one byte a sector (0xFF whole, 0x00 torn), then one byte a sector (0xFF free,
0x00 write-protected), then one byte (0xFF readable, 0x00 read-out protected), then a counter of four bytes,
little-endian, inverted. The last three may be missing.
"""

from __future__ import annotations

import fcntl
import os
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from shared.errors import OtaError
from sim.mcu.memory import DEFAULT_MAP, FlashMap

CLEAR = 0xFF
SET = 0x00
COUNTER_BYTES = 4
MOST_COUNTED = 2**32 - 1


class FlashFileError(OtaError):
    """The file of a simulated flash can't be used."""

    code = "flash_file"
    advice = (
        "Give the flash file of a simulated MCU that nobody else uses, or a path that does not exist yet."
    )


class NotErased(Exception):
    """A write to bytes that are not erased, or in a torn sector; nothing was written."""


class WriteProtected(Exception):
    """An erase or write in a protected sector; nothing was changed."""


class PowerCut(BaseException):
    """The power went in the middle. BaseException, since no handler may soften it."""


class Flash:
    """The memory, as a resource. Addresses are those of the MCU; ranges outside raise ValueError.

    `cut_at_byte` and `cut_at_erase` order a power cut in the middle of programming that byte or of
    erasing that sector, counted from 1 from now on. `generation` grows with every change.
    """

    def __init__(self, path: Path, *, memory: FlashMap = DEFAULT_MAP) -> None:
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
        least = self._protected_at
        size = self._counter_at + COUNTER_BYTES
        found = os.fstat(self._fd).st_size
        if found in {0, least, self._counter_at}:
            os.pwrite(self._fd, b"\xff" * (size - found), found)
        elif found != size:
            return f"{self._path} has {found} bytes, this MCU's flash file has {size}"
        return None

    @property
    def _protected_at(self) -> int:
        return self.memory.flash.size + len(self.memory.sectors)

    @property
    def _readout_at(self) -> int:
        return self._protected_at + len(self.memory.sectors)

    @property
    def _counter_at(self) -> int:
        return self._readout_at + 1

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
        return self._is_set(self.memory.flash.size + sector)

    def erase(self, sector: int, *, during: Callable[[], None] = lambda: None) -> None:
        """Erase one sector; `during` is called while it is half erased. Raises WriteProtected."""
        if self.is_write_protected(sector):
            raise WriteProtected
        area = self.memory.sector_areas()[sector]
        self._mark(self.memory.flash.size + sector, SET)
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
        self._mark(self.memory.flash.size + sector, CLEAR)

    def write(self, start: int, data: bytes) -> None:
        """Program whole words; raises WriteProtected or NotErased before anything is written."""
        word_bytes = self.memory.word_bytes
        if start % word_bytes or len(data) % word_bytes:
            raise ValueError("flash is programmed in whole words")
        sectors = self.memory.sectors_of(start, len(data))
        if any(self.is_write_protected(one) for one in sectors):
            raise WriteProtected
        if self.read(start, len(data)).strip(b"\xff") or any(self.is_torn(one) for one in sectors):
            raise NotErased
        if self.cut_at_byte is None or self.cut_at_byte > len(data):
            if self.cut_at_byte is not None:
                self.cut_at_byte -= len(data)
            self._put(start, data)
            return
        done = self.cut_at_byte - 1
        self.cut_at_byte = None
        at = done - done % word_bytes
        # Some cells of the word have not fallen to 0 yet.
        late = int.from_bytes(b"\x00\x0f\xf0\x00" * (word_bytes // 4), "little")
        garbled = int.from_bytes(data[at : at + word_bytes], "little") | late
        self._mark(self.memory.flash.size + self.memory.sectors_of(start + at, word_bytes)[0], SET)
        self._put(start, data[:at] + garbled.to_bytes(word_bytes, "little"))
        raise PowerCut

    @property
    def counter(self) -> int:
        """The counter beside the flash; 0 at first."""
        return MOST_COUNTED - int.from_bytes(os.pread(self._fd, COUNTER_BYTES, self._counter_at), "little")

    def raise_counter(self, value: int) -> None:
        """Let the counter rise to a value up to 2**32 - 1; it never falls."""
        if value > self.counter:
            raw = (MOST_COUNTED - value).to_bytes(COUNTER_BYTES, "little")
            os.pwrite(self._fd, raw, self._counter_at)
            self.generation += 1

    # --- protection ------------------------------------------------------------------------------

    def is_write_protected(self, sector: int) -> bool:
        """Whether the sector is neither erased nor programmed."""
        return self._is_set(self._protected_at + sector)

    def write_protect(self, sectors: Iterable[int]) -> None:
        """Protect these sectors too."""
        for sector in sectors:
            self._mark(self._protected_at + sector, SET)

    def write_unprotect(self) -> None:
        """Protect no sector any more."""
        for sector in range(len(self.memory.sectors)):
            self._mark(self._protected_at + sector, CLEAR)

    @property
    def is_readout_protected(self) -> bool:
        """Whether the content is to be kept from whoever asks over a wire."""
        return self._is_set(self._readout_at)

    def readout_protect(self) -> None:
        """Set the mark."""
        self._mark(self._readout_at, SET)

    def readout_unprotect(self, *, during: Callable[[], None] = lambda: None) -> None:
        """Take the mark away after everything has been erased, write-protected sectors too.

        `during` is called for each sector. A cut on the way leaves the protection on.
        """
        self.write_unprotect()
        for sector in range(len(self.memory.sectors)):
            self.erase(sector, during=during)
        self._mark(self._readout_at, CLEAR)

    def _put(self, start: int, data: bytes) -> None:
        os.pwrite(self._fd, data, self._offset(start, len(data)))
        self.generation += 1

    def _is_set(self, at: int) -> bool:
        return os.pread(self._fd, 1, at) != bytes([CLEAR])

    def _mark(self, at: int, mark: int) -> None:
        os.pwrite(self._fd, bytes([mark]), at)
        self.generation += 1

    def _offset(self, start: int, size: int) -> int:
        if not self.memory.flash.holds(start, size):
            raise ValueError(f"{size} bytes at {start:#x} are not in flash")
        return start - self.memory.flash_start
