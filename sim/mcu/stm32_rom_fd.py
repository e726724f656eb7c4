"""The CAN FD loader in the ROM of STM32 parts with an FDCAN controller: ST AN5405, rev. 2.

FD frames with bit-rate switch and 11-bit identifiers; classic ones are not heard. As in AN3154 the command's
code is the identifier, but data comes in frames of 64 bytes that are not acknowledged one by one.
"""

from __future__ import annotations

from collections.abc import Callable

import can

from sim.mcu.faults import FaultState
from sim.mcu.flash import Flash
from sim.mcu.rom_loader import LONG_S, Jump, Restart, RomDevice
from sim.mcu.rom_settings import RomSettings

SYNC = 0x79
FRAME_BYTES = 64
BUFFER_BYTES = 1024
MASS_ERASE = {0xFFFF: (0, 2), 0xFFFE: (0, 1), 0xFFFD: (1, 2)}
"""Code of a special erase: from which half of the sectors to which."""
SPECIAL_CODES = 0xFFF0


class Stm32RomFd(RomDevice):
    """See RomDevice. One receive buffer for headers and data, as in OpenBL's RxData."""

    def __init__(
        self, settings: RomSettings, flash: Flash, faults: FaultState, *, boot0: Callable[[], bool]
    ) -> None:
        super().__init__(settings, flash, faults, boot0=boot0)
        self._buffer = bytearray(BUFFER_BYTES)
        self._length = 0

    def _reads_format(self, message: can.Message) -> bool:
        return message.is_fd

    def _table(self) -> dict[int, Callable[[], None]]:
        return {
            0x00: self._get,
            0x01: self._get_version,
            0x02: self._get_id,
            0x11: self._read,
            0x21: self._go,
            0x31: self._write,
            0x44: self._erase,
            0x63: self._write_protect,
            0x73: self._write_unprotect,
            0x82: self._readout_protect,
            0x92: self._readout_unprotect,
            0x50: self._special,
            0x51: self._extended_special,
        }

    # --- frames ----------------------------------------------------------------------------------

    def _take(self, message: can.Message) -> None:
        self._length = self._store(message, 0)
        self._command = message.arbitration_id
        if self._command == SYNC:
            self._sync()
        elif not self._synced:
            return
        elif self._command in self._commands:
            self._commands[self._command]()
        else:
            self._nack()

    def _store(self, message: can.Message, at: int) -> int:
        size = len(message.data)
        self._buffer[at : at + size] = message.data
        return size

    def _next_frame(self, at: int) -> int:
        """Put the next frame, whatever its identifier, at this place in the buffer; returns its length."""
        while True:
            message = self._host.receive(LONG_S)
            if message is not None:
                return self._store(message, at)

    def _send(self, data: bytes) -> None:
        self._host.send(self._command, data, fd=True)

    def _address(self) -> int:
        return int.from_bytes(self._buffer[:4], "big")

    # --- commands --------------------------------------------------------------------------------

    def _read(self) -> None:
        if self._is_locked():
            return
        address = self._address()
        if self._length != 5 or not self._memory.reads(address):
            self._nack()
            return
        self._ack()
        content = self._memory.read(address, self._buffer[4] + 1)
        for at in range(0, len(content), FRAME_BYTES):
            self._send(content[at : at + FRAME_BYTES].ljust(FRAME_BYTES, b"\xff"))
        self._ack()

    def _go(self) -> None:
        if self._is_locked():
            return
        self._ack()
        address = self._address()
        wanted = self._settings.go_looks
        if (
            self._length != 4
            or not self._memory.writes(address)
            or (wanted and not self._memory.has_vectors(address))
        ):
            self._nack()
            return
        self._ack()
        raise Jump(address)

    def _write(self) -> None:
        if self._is_locked():
            return
        address = self._address()
        if self._length != 5 or not self._memory.writes(address):
            self._nack()
            return
        size = self._buffer[4] + 1
        self._ack()
        got = 0
        while got < size:
            length = self._next_frame(got)
            got += FRAME_BYTES if self._settings.counts_frames else length
        self._memory.write(address, bytes(self._buffer[:size]))
        self._ack()

    def _erase(self) -> None:
        if self._is_locked():
            return
        self._ack()
        if self._length != 2:
            self._nack()
            return
        count = int.from_bytes(self._buffer[:2], "big")
        extra_s = self._faults.take_pending_s()
        if count & SPECIAL_CODES == SPECIAL_CODES:
            halves = MASS_ERASE.get(count)
            if halves is None:
                self._nack()
                return
            half = len(self._settings.part.sectors) // 2
            self._host.wait(extra_s)
            self._memory.erase_all(range(halves[0] * half, halves[1] * half))
            self._ack()
            return
        self._ack()
        count += self._settings.erase_counts_from_zero
        self._next_frame(2)
        sectors = [int.from_bytes(self._buffer[at : at + 2], "big") for at in range(2, 2 + 2 * count, 2)]
        self._memory.erase(sectors[: FRAME_BYTES // 2], extra_s=extra_s)
        self._ack()

    def _write_protect(self) -> None:
        if self._is_locked():
            return
        self._ack()
        count = self._buffer[0]
        self._memory.write_protect(self._buffer[1 : 1 + count])
        self._ack()
        raise Restart

    def _special(self) -> None:
        """Special: operation, size, data; nothing comes back but two sizes of 0 (OpenBL's default)."""
        if self._knows_operation():
            if not self._take_sized():
                return
            self._ack()
            self._send(bytes(4))
            self._ack()

    def _extended_special(self) -> None:
        """Extended Special: two sizes with their data, one size of 0 back."""
        if self._knows_operation():
            for _ in range(2):
                if not self._take_sized():
                    return
                self._ack()
            self._send(bytes(2))
            self._ack()

    def _knows_operation(self) -> bool:
        self._ack()
        known = int.from_bytes(self._buffer[:2], "big") in self._settings.special_operations
        (self._ack if known else self._nack)()
        return known

    def _take_sized(self) -> bool:
        self._next_frame(0)
        size = int.from_bytes(self._buffer[:2], "big")
        if size > BUFFER_BYTES:
            self._nack()
            return False
        for at in range(0, size, FRAME_BYTES):
            self._next_frame(at)
        return True
