"""A simulated STM32 on a python-can bus: power, time and CAN frames around the protocol.

One thread serves it. Power can be cut at any moment, by order or by a fault; what the part knew in RAM
is then gone, what its flash holds is in the file. Without power it neither answers nor acknowledges.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Self

import can

from shared.errors import ConfigError
from shared.logs import get_log
from sim.mcu.assembly import McuSettings, Part, assemble, bootloader_of
from sim.mcu.boot import Installed
from sim.mcu.faults import Faults, FaultState
from sim.mcu.flash import Flash, PowerCut
from sim.mcu.images import build_image
from sim.mcu.isotp import Pci, Receiver, SendFailed, send_message
from sim.mcu.memory import DEFAULT_MAP, WORD, MemoryMap

log = get_log("sim.mcu")

POLL_S = 0.1
N_BS_S = 1.0
SWITCH_WITHIN_S = 10.0
MOST_PUT_BY = 64


def factory(flash_file: Path, image: bytes, document: bytes, *, memory: MemoryMap = DEFAULT_MAP) -> None:
    """Fill a flash as the factory does: bootloader, `image` in the slot, its signed `document`.

    Whether the image boots is the bootloader's business. Raises ConfigError when something does not fit,
    FlashFileError when the file is in use.
    """
    for what, size, room in (
        ("image", len(image), memory.slot.size),
        ("document", len(document), memory.document.size - WORD),
    ):
        if not 0 < size <= room:
            raise ConfigError(f"{what} of {size} bytes, there is room for 1 to {room}")
    with Flash(flash_file, memory=memory) as flash:
        for sector in range(len(memory.sectors)):
            flash.erase(sector)
        flash.write(memory.bootloader.start, build_image("bootloader", 4096, memory.bootloader.start))
        flash.write(memory.slot.start, _padded(image))
        flash.write(memory.document.start, _padded(len(document).to_bytes(4, "little") + document))


def _padded(data: bytes) -> bytes:
    return data + b"\xff" * (-len(data) % WORD)


class Stm32Mcu:
    """The part, as a resource; `bus` stays its owner's. With power from the start."""

    def __init__(self, settings: McuSettings, bus: can.BusABC, *, faults: Faults | None = None) -> None:
        self._settings = settings
        self._bus = bus
        self._flash = Flash(settings.flash_file, memory=settings.memory)
        self._first_faults = faults or Faults()
        self._faults = FaultState(self._first_faults)
        self._thread = threading.Thread(target=self._run, name="sim.mcu", daemon=True)
        self._stopping = False
        self._has_power = True
        self._switched = threading.Event()
        self._is_lit = threading.Event()
        self._is_dark = threading.Event()
        self._ended = threading.Event()
        self._put_by: deque[can.Message] = deque(maxlen=MOST_PUT_BY)
        self._part: Part | None = None
        self._receiver = Receiver(self._send, clock=time.monotonic)

    def __enter__(self) -> Self:
        self._flash.__enter__()
        self.order(self._first_faults)
        self._thread.start()
        self._wait_for(self._is_lit, "boot")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping = True
        self._switched.set()
        self._thread.join(SWITCH_WITHIN_S)
        self._flash.close()

    # --- what a test or a person sees and does ---------------------------------------------------

    def order(self, faults: Faults) -> None:
        """Let these things go wrong, instead of those ordered before."""
        self._flash.cut_at_byte = faults.power_cut_at_byte or None
        self._flash.cut_at_erase = faults.power_cut_at_erase or None
        self._faults = FaultState(faults)
        if self._part:
            self._part.uds.faults = self._faults

    def power_cut(self) -> None:
        """Cut the power now and leave it cut."""
        self._has_power = False
        self._switched.set()
        self._wait_for(self._is_dark, "go dark")

    def power_cycle(self) -> None:
        """Cut the power and give it back; returns when the part has booted."""
        self.power_cut()
        self._is_lit.clear()
        self._has_power = True
        self._wait_for(self._is_lit, "boot")

    def wait_dark(self, within_s: float) -> bool:
        """Whether the part lost its power (by a fault, say) within so many seconds."""
        return self._is_dark.wait(within_s)

    def wait_ended(self, within_s: float) -> bool:
        """Whether its bus has gone, so that nobody will serve it any more."""
        return self._ended.wait(within_s)

    def content(self, size: int) -> bytes:
        """The first `size` bytes of the slot, as they are."""
        return self._flash.read(self._settings.memory.slot.start, size)

    @property
    def programmed_bytes(self) -> int:
        """Bytes written to the slot since its last erase, while the power was on; 0 at first."""
        return self._part.programmer.programmed_bytes if self._part else 0

    def boots(self) -> Installed:
        """What the bootloader would say of the flash at this moment."""
        return bootloader_of(self._settings, self._flash).judge()

    def _wait_for(self, event: threading.Event, what: str) -> None:
        if not event.wait(SWITCH_WITHIN_S):
            raise TimeoutError(f"the simulated MCU did not {what}")

    # --- its thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stopping:
                try:
                    self._live()
                except PowerCut:
                    self._has_power = False
                    self._be_dark()
        except can.CanError as error:
            log.warning("mcu.bus_lost", error=str(error))
        finally:
            self._ended.set()

    def _be_dark(self) -> None:
        log.info("mcu.power_lost")
        self._is_dark.set()
        while not self._has_power and not self._stopping:
            self._bus.recv(POLL_S)
        self._switched.clear()
        self._is_dark.clear()

    def _live(self) -> None:
        settings = self._settings
        self._put_by.clear()
        self._receiver.forget()
        self._part = part = assemble(
            settings,
            self._flash,
            faults=self._faults,
            clock=time.monotonic,
            wait=self._pass,
            restart=self._restart,
        )
        ecu = part.uds
        log.info("mcu.booted", in_bootloader=ecu.in_bootloader, verdict=ecu.installed().verdict.name.lower())
        self._is_lit.set()
        while True:
            message = self._put_by.popleft() if self._put_by else self._receive(POLL_S)
            if not self._receiver.is_receiving:
                ecu.tick()
            if message is None:
                continue
            functional = message.arbitration_id == settings.functional_id
            request = self._receiver.feed(bytes(message.data), functional=functional)
            if request is not None:
                ecu.handle(request, functional=functional, reply=self._reply)

    def _check_power(self) -> None:
        if self._switched.is_set():
            raise PowerCut

    def _pass(self, seconds: float) -> None:
        """Let time pass for the part; the power may go meanwhile."""
        self._switched.wait(seconds)
        self._check_power()

    def _receive(self, within_s: float) -> can.Message | None:
        """The next frame for this part, if one comes in time."""
        settings = self._settings
        until = time.monotonic() + within_s
        while True:
            self._check_power()
            message = self._bus.recv(max(0.0, until - time.monotonic()))
            if message is None:
                return None
            if message.is_extended_id or message.is_remote_frame or message.is_error_frame:
                continue
            if message.arbitration_id not in {settings.request_id, settings.functional_id}:
                continue
            if self._faults.power.due():
                raise PowerCut
            if not self._faults.frame.due():
                return message

    def _restart(self) -> None:
        until = time.monotonic() + self._settings.timing.reset_s
        while (left_s := until - time.monotonic()) > 0:
            self._check_power()
            self._bus.recv(left_s)
        self._put_by.clear()
        self._receiver.forget()

    def _send(self, data: bytes) -> None:
        self._check_power()
        if self._faults.response_frame.due():
            return
        self._bus.send(
            can.Message(arbitration_id=self._settings.response_id, data=data, is_extended_id=False)
        )

    def _reply(self, response: bytes) -> None:
        if self._faults.response.due():
            return
        try:
            send_message(response, self._send, self._next_flow_control, self._pass)
        except SendFailed as error:
            log.info("mcu.response_lost", why=str(error), response=response[:3].hex())

    def _next_flow_control(self) -> bytes | None:
        until = time.monotonic() + N_BS_S
        while (left_s := until - time.monotonic()) > 0:
            message = self._receive(left_s)
            if message is None:
                return None
            data = bytes(message.data)
            is_ours = message.arbitration_id == self._settings.request_id
            if is_ours and len(data) >= 3 and data[0] >> 4 == Pci.FLOW_CONTROL:
                return data
            # What comes meanwhile is answered afterwards.
            self._put_by.append(message)
        return None
