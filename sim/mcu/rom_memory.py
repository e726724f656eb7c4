"""Memory as a ROM loader reaches it: which addresses it takes, and what it does without a word.

ST's loaders report nothing of what the flash refuses (AN3154, 3.8 and 3.9: "no error is returned"): a
write to a protected sector, to cells that are not erased, or off the flash word is acknowledged all the
same and changes nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable

from shared.logs import get_log
from sim.mcu.flash import Flash, NotErased, WriteProtected
from sim.mcu.rom_settings import RomSettings

log = get_log("sim.mcu")

VECTORS = struct.Struct("<II")
STACK_ALIGNMENT = 4


class RomMemory:
    """Flash and RAM of one part between power-on and power-off. `wait` lets the part's time pass."""

    def __init__(self, settings: RomSettings, flash: Flash, wait: Callable[[float], None]) -> None:
        self._settings = settings
        self._part = settings.part
        self._flash = flash
        self._wait = wait
        self._ram: dict[int, int] = {}

    # --- addresses -------------------------------------------------------------------------------

    def reads(self, address: int) -> bool:
        """Whether the loader reads from here: flash, RAM outside its own, system memory."""
        return self.writes(address) or any(address in span for span in self._part.never_erased)

    def writes(self, address: int) -> bool:
        """Whether the loader writes here."""
        return address in self._part.flash or self._is_ram(address)

    def _is_ram(self, address: int) -> bool:
        part = self._part
        if any(address in span for span in part.rom_ram_reserved):
            return False
        return any(address in span for span in part.ram)

    # --- content ---------------------------------------------------------------------------------

    def read(self, address: int, size: int) -> bytes:
        """The bytes; beyond an area's end the bus of a real part reads zeros at best."""
        flash = self._part.flash
        if flash.start <= address and address + size <= flash.end:
            return self._flash.read(address, size)
        return bytes(self._read_byte(at) for at in range(address, address + size))

    def _read_byte(self, address: int) -> int:
        if address in self._part.flash:
            return self._flash.read(address, 1)[0]
        return self._ram.get(address, 0)

    def write(self, address: int, data: bytes) -> None:
        """Program flash or set RAM; what can't be is silently not done."""
        if address not in self._part.flash:
            self._ram.update((at, byte) for at, byte in enumerate(data, start=address) if self._is_ram(at))
            return
        word = self._part.word_bytes
        data += b"\xff" * (-len(data) % word)
        self._wait(self._settings.program_s * (len(data) // word))
        try:
            self._flash.write(address, data)
        except (NotErased, WriteProtected, ValueError) as error:
            log.info("mcu.not_programmed", address=address, why=type(error).__name__)

    def erase(self, sectors: Iterable[int], *, extra_s: float = 0.0) -> None:
        """Erase sectors by number; one that does not exist or is protected is silently left."""
        for sector in sectors:
            if sector >= len(self._part.sectors):
                log.info("mcu.not_erased", sector=sector, why="no such sector")
                continue
            try:
                self._flash.erase(sector, during=lambda: self._wait(self._settings.erase_s + extra_s))
            except WriteProtected:
                log.info("mcu.not_erased", sector=sector, why="protected")

    def erase_all(self, sectors: Iterable[int] | None = None) -> None:
        """Mass erase, or a bank's."""
        self._wait(self._settings.mass_erase_s)
        for sector in range(len(self._part.sectors)) if sectors is None else sectors:
            try:
                self._flash.erase(sector)
            except WriteProtected:
                log.info("mcu.not_erased", sector=sector, why="protected")

    # --- protection ------------------------------------------------------------------------------

    @property
    def is_readout_protected(self) -> bool:
        """RDP level 1."""
        return self._flash.is_readout_protected

    def readout_protect(self) -> None:
        """From the next reset on, in a real part; the reset follows at once."""
        self._flash.readout_protect()

    def readout_unprotect(self) -> None:
        """Erases everything: flash and RAM."""
        self._ram.clear()
        self._flash.readout_unprotect(during=lambda: self._wait(self._settings.erase_s))

    def write_protect(self, sectors: Iterable[int]) -> None:
        """Protect these sectors; numbers that do not exist are passed over."""
        self._flash.write_protect(one for one in sectors if one < len(self._part.sectors))

    def write_unprotect(self) -> None:
        """Protect none."""
        self._flash.write_unprotect()

    # --- starting code ---------------------------------------------------------------------------

    def has_vectors(self, address: int) -> bool:
        """Whether a vector table could start the part here: stack in RAM, reset handler odd and in memory."""
        stack, reset = VECTORS.unpack(self.read(address, VECTORS.size))
        if stack % STACK_ALIGNMENT or not any(span.start < stack <= span.end for span in self._part.ram):
            return False
        return self.starts(reset)

    def starts(self, reset: int) -> bool:
        """Whether a core that fetches this reset vector executes something."""
        return bool(reset & 1) and (reset & ~1 in self._part.flash or self._is_ram(reset & ~1))

    def reset_vector(self, address: int) -> int:
        """The second word of a vector table."""
        reset: int = VECTORS.unpack(self.read(address, VECTORS.size))[1]
        return reset

    def program_at(self, address: int) -> bytes:
        """All of the flash from `address` on."""
        return self._flash.read(address, self._part.flash.end - address)
