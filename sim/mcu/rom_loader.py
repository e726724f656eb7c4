"""What both ROM loaders have in common: from power-on to the application.

BOOT0 high: the loader waits for its synchronisation frame. BOOT0 low: the core fetches the vector table, as
it does after Go. A core does not look at the stack pointer before it starts: **whatever has a reset vector
runs here**, torn or not, so that a test sees it.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable

import can

from shared.logs import get_log
from sim.mcu.faults import FaultState
from sim.mcu.flash import Flash
from sim.mcu.host import Host
from sim.mcu.rom_memory import RomMemory
from sim.mcu.rom_settings import RomSettings

log = get_log("sim.mcu")

ACK = 0x79
NACK = 0x1F
MARK_BYTES = 8
LENGTH_AT = 7 * 4
LONG_S = 3600.0


def mark_of(image: bytes) -> bytes:
    """What the application of `image` sends: the start of a SHA-256 over it.

    An image may say its length in vector 7, which the core does not use (ARMv7-M ARM, B1.5.3); else it ends
    with the last byte in flash that is not erased, for a part can't know better.
    """
    said = int.from_bytes(image[LENGTH_AT : LENGTH_AT + 4], "little")
    content = image[:said] if 0 < said <= len(image) else image
    return hashlib.sha256(content.rstrip(b"\xff")).digest()[:MARK_BYTES]


class Restart(Exception):
    """The part resets itself."""


class Jump(Exception):
    """The loader starts what the vector table at `address` says."""

    def __init__(self, address: int) -> None:
        super().__init__(address)
        self.address = address


class RomDevice(ABC):
    """See Device. A loader of either kind; `running` is the mark of the application that runs, else None."""

    def __init__(
        self, settings: RomSettings, flash: Flash, faults: FaultState, *, boot0: Callable[[], bool]
    ) -> None:
        """`boot0` gives the pin's level."""
        self._settings = settings
        self._flash = flash
        self._faults = faults
        self._boot0 = boot0
        self._host: Host
        self._memory: RomMemory
        self._commands: dict[int, Callable[[], None]] = {}
        self._command = 0
        self._synced = False
        self._in_loader = True
        self.running: bytes | None = None

    def accepts(self, message: can.Message) -> bool:
        """See Device. Without a filter, but of its own frame format only."""
        return self._in_loader and not message.is_extended_id and self._reads_format(message)

    def run(self, host: Host, booted: Callable[[], None]) -> None:
        """See Device."""
        self._host = host
        self._memory = RomMemory(self._settings, self._flash, host.wait)
        self._commands = self._table()
        start = self._settings.boots_at
        if not self._boot0():
            self._execute(start, booted)
            return
        log.info("mcu.loader_started", family=self._settings.family)
        booted()
        try:
            while True:
                message = host.receive(LONG_S)
                if message is not None:
                    self._take(message)
        except Jump as jump:
            self._execute(jump.address, lambda: None)
        except Restart:
            log.info("mcu.loader_restarted")

    # --- what the two formats differ in ----------------------------------------------------------

    @abstractmethod
    def _reads_format(self, message: can.Message) -> bool:
        """Whether the controller takes the frame at all."""

    @abstractmethod
    def _table(self) -> dict[int, Callable[[], None]]:
        """Command code: what it does, in the order in which Get lists them."""

    @abstractmethod
    def _take(self, message: can.Message) -> None:
        """A frame came while the loader waits for a command."""

    @abstractmethod
    def _send(self, data: bytes) -> None:
        """A frame with the identifier of the command that is served."""

    # --- commands that are the same in both ------------------------------------------------------

    def _ack(self) -> None:
        self._send(bytes([ACK]))

    def _nack(self) -> None:
        self._send(bytes([NACK]))

    def _is_locked(self) -> bool:
        """Read-out protection refuses the command."""
        if self._memory.is_readout_protected:
            self._nack()
            return True
        return False

    def _sync(self) -> None:
        if self._synced and self._settings.synced_again == "nack":
            self._nack()
        else:
            self._synced = True
            self._ack()

    def _get(self) -> None:
        commands = list(self._commands)
        # The number of bytes that follow less one, where the version is one of them (AN2662, 3.4).
        count = len(commands) - self._settings.get_n_one_less
        self._ack()
        for value in (count, self._settings.version, *commands):
            self._send(bytes([value]))
        self._ack()

    def _get_version(self) -> None:
        self._ack()
        self._send(bytes([self._settings.version]))
        self._send(bytes(2))
        self._ack()

    def _get_id(self) -> None:
        self._ack()
        self._send(self._settings.part.product_id.to_bytes(2, "big"))
        self._ack()

    def _readout_protect(self) -> None:
        if self._is_locked():
            return
        self._ack()
        self._memory.readout_protect()
        self._ack()
        raise Restart

    def _readout_unprotect(self) -> None:
        # Both before the erase: it takes the loader's own RAM with it (OpenBL).
        self._ack()
        self._ack()
        self._memory.readout_unprotect()
        raise Restart

    def _write_unprotect(self) -> None:
        if self._is_locked():
            return
        self._ack()
        self._memory.write_unprotect()
        self._ack()
        raise Restart

    # --- the application -------------------------------------------------------------------------

    def _execute(self, start: int, booted: Callable[[], None]) -> None:
        """Run what a vector table starts; a return is a reset."""
        self._in_loader = False
        settings, memory = self._settings, self._memory
        if not memory.starts(memory.reset_vector(start)):
            log.info("mcu.nothing_starts", start=start)
            booted()
            while True:
                self._host.receive(LONG_S)
        if settings.crashes:
            booted()
            return
        self.running = mark_of(memory.program_at(start))
        log.info("mcu.application_runs", start=start, mark=self.running.hex())
        booted()
        while True:
            self._host.send(settings.application_id, self.running)
            self._host.receive(settings.application_s)
