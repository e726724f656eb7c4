"""The CAN loader in the ROM of STM32 parts with a bxCAN controller: ST AN3154, rev. 8.

Classic frames with 11-bit identifiers. The command's code is the identifier of its frames, of the answers
too; every answer byte stands alone. What is acknowledged has been received, no more.
"""

from __future__ import annotations

from collections.abc import Callable

import can

from shared.logs import get_log
from sim.mcu.faults import FaultState
from sim.mcu.flash import Flash
from sim.mcu.host import Host
from sim.mcu.rom_loader import LONG_S, Jump, Restart, RomDevice
from sim.mcu.rom_settings import RomSettings

log = get_log("sim.mcu")

SYNC = 0x79
BITRATE = 125_000
RATES = {1: 125_000, 2: 250_000, 3: 500_000, 4: 1_000_000}
FRAME_BYTES = 8
MASS_ERASE = 0xFF


class Stm32Rom(RomDevice):
    """See RomDevice. The receive buffer keeps what a shorter frame does not overwrite."""

    def __init__(
        self, settings: RomSettings, flash: Flash, faults: FaultState, *, boot0: Callable[[], bool]
    ) -> None:
        super().__init__(settings, flash, faults, boot0=boot0)
        self._mailbox = bytearray(FRAME_BYTES)
        self._length = 0
        self._frames_written = 0

    def _reads_format(self, message: can.Message) -> bool:
        return not message.is_fd

    def _table(self) -> dict[int, Callable[[], None]]:
        return {
            0x00: self._get,
            0x01: self._get_version,
            0x02: self._get_id,
            0x03: self._speed,
            0x11: self._read,
            0x21: self._go,
            0x31: self._write,
            0x43: self._erase,
            0x63: self._write_protect,
            0x73: self._write_unprotect,
            0x82: self._readout_protect,
            0x92: self._readout_unprotect,
        }

    def run(self, host: Host, booted: Callable[[], None]) -> None:
        """See Device."""
        if self._boot0():
            host.set_bitrate(BITRATE)
        super().run(host, booted)

    # --- frames ----------------------------------------------------------------------------------

    def _take(self, message: can.Message) -> None:
        self._store(message)
        self._command = message.arbitration_id
        if self._command == SYNC:
            self._sync()
        elif not self._synced:
            log.debug("mcu.frame_before_sync", arbitration_id=self._command)
        elif self._command in self._commands:
            self._commands[self._command]()
        else:
            self._nack()

    def _store(self, message: can.Message) -> None:
        self._length = len(message.data)
        self._mailbox[: self._length] = message.data

    def _next_frame(self) -> bytes:
        """Eight bytes, whatever the length and the identifier of the next frame are."""
        while True:
            message = self._host.receive(LONG_S)
            if message is not None:
                self._store(message)
                return bytes(self._mailbox)

    def _send(self, data: bytes) -> None:
        self._host.send(self._command, data)

    def _address(self, length: int) -> int | None:
        """The address of a header of `length` bytes, else None."""
        return int.from_bytes(self._mailbox[:4], "big") if self._length == length else None

    # --- commands --------------------------------------------------------------------------------

    def _speed(self) -> None:
        rate = RATES.get(self._mailbox[0]) if self._length == 1 else None
        if rate is None:
            self._nack()
            return
        self._ack()
        if self._settings.speed_fails:
            raise Restart
        # The last frame leaves the controller before it is initialised anew.
        self._host.wait(self._settings.speed_s)
        self._host.set_bitrate(rate)
        self._host.drop_input()
        self._ack()

    def _read(self) -> None:
        if self._is_locked():
            return
        address = self._address(5)
        if address is None or not self._memory.reads(address):
            self._nack()
            return
        self._ack()
        content = self._memory.read(address, self._mailbox[4] + 1)
        whole = len(content) - len(content) % FRAME_BYTES
        for at in range(0, whole, FRAME_BYTES):
            self._send(content[at : at + FRAME_BYTES])
        rest = content[whole:]
        step = 1 if self._settings.read_single_bytes else FRAME_BYTES
        for at in range(0, len(rest), step):
            self._send(rest[at : at + step])
        self._ack()

    def _go(self) -> None:
        if self._is_locked():
            return
        address = self._address(4)
        if address is None or not self._memory.writes(address):
            self._nack()
            return
        if self._settings.go_looks and not self._memory.has_vectors(address):
            self._nack()
            return
        self._ack()
        raise Jump(address)

    def _write(self) -> None:
        if self._is_locked():
            return
        address = self._address(5)
        if address is None or not self._memory.writes(address):
            self._nack()
            return
        size = self._mailbox[4] + 1
        self._ack()
        data = bytearray()
        while len(data) < size:
            data += self._next_frame()
            self._ack()
            self._frames_written += 1
            every = self._settings.extra_write_acks
            if every and self._frames_written % every == 0:
                self._ack()
        self._memory.write(address, bytes(data[:size]))
        self._ack()

    def _erase(self) -> None:
        if self._is_locked():
            return
        if self._length == 0:
            self._nack()
            return
        extra_s = self._faults.take_pending_s()
        if self._length == 1 and self._mailbox[0] == MASS_ERASE:
            self._ack()
            self._host.wait(extra_s)
            self._memory.erase_all()
            self._ack()
            if self._settings.third_mass_erase_ack:
                self._ack()
            return
        match self._settings.dialect:
            case "an3154":
                self._erase_listed(extra_s)
            case "zycet":
                sectors = bytes(self._mailbox[: self._length])
                self._ack()
                self._next_frame()
                self._ack()
                self._memory.erase(sectors, extra_s=extra_s)
                self._ack()
            case "count":
                sectors = bytes(self._mailbox[: self._length])
                self._ack()
                self._memory.erase(sectors, extra_s=extra_s)
                self._ack()

    def _erase_listed(self, extra_s: float) -> None:
        """N - 1, then the codes; whole frames of them are acknowledged, the last shorter one is not."""
        if self._length != 1:
            self._nack()
            return
        count = self._mailbox[0] + 1
        self._ack()
        self._ack()
        sectors = self._codes(count, acks_short_frame=False)
        self._memory.erase(sectors, extra_s=extra_s)
        self._ack()

    def _codes(self, count: int, *, acks_short_frame: bool) -> bytes:
        codes = bytearray()
        while len(codes) < count:
            codes += self._next_frame()
            if len(codes) <= count or acks_short_frame:
                self._ack()
        return bytes(codes[:count])

    def _write_protect(self) -> None:
        if self._is_locked():
            return
        if self._length != 1:
            self._nack()
            return
        count = self._mailbox[0] + 1
        self._ack()
        sectors = self._codes(count, acks_short_frame=True)
        self._memory.write_protect(sectors)
        self._ack()
        raise Restart
