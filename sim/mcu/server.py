"""Simulated parts on a python-can bus: power, time, faults and a flash around a device's firmware.

One thread serves a part. Power can be cut at any moment, by order or by a fault; what the part knew in RAM
is then gone, what its flash holds is in the file. Without power it neither answers nor acknowledges.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Generic, Self, TypeVar

import can

from shared.errors import ConfigError
from shared.logs import get_log
from sim.mcu.assembly import McuSettings, assemble, bootloader_of
from sim.mcu.boot import Installed
from sim.mcu.bus_host import BusHost, Reset
from sim.mcu.faults import Faults, FaultState
from sim.mcu.flash import Flash, PowerCut
from sim.mcu.host import Device
from sim.mcu.images import build_image
from sim.mcu.memory import DEFAULT_MAP, FlashMap, MemoryMap
from sim.mcu.stm32_uds import Stm32Uds
from sim.mcu.uds_device import UdsDevice

log = get_log("sim.mcu")

RESET_S = 0.02
SWITCH_WITHIN_S = 10.0
LENGTH_BYTES = 4
D = TypeVar("D", bound=Device)


def factory(flash_file: Path, image: bytes, document: bytes, *, memory: MemoryMap = DEFAULT_MAP) -> None:
    """Fill a flash as the factory does: bootloader, `image` in the slot, its signed `document`.

    Whether the image boots is the bootloader's business. Raises ConfigError when something does not fit,
    FlashFileError when the file is in use.
    """
    for what, size, room in (
        ("image", len(image), memory.slot.size),
        ("document", len(document), memory.document.size - LENGTH_BYTES),
    ):
        if not 0 < size <= room:
            raise ConfigError(f"{what} of {size} bytes, there is room for 1 to {room}")

    def padded(data: bytes) -> bytes:
        return data + b"\xff" * (-len(data) % memory.word_bytes)

    with Flash(flash_file, memory=memory) as flash:
        for sector in range(len(memory.sectors)):
            flash.erase(sector)
        flash.write(memory.bootloader.start, build_image("bootloader", 4096, memory.bootloader.start))
        flash.write(memory.slot.start, padded(image))
        flash.write(memory.document.start, padded(len(document).to_bytes(LENGTH_BYTES, "little") + document))


class Served(Generic[D]):
    """A part of any kind, as a resource; `bus` stays its owner's. With power from the start.

    `device_factory` makes the firmware's object at every power-on and reset. Raises FlashFileError.
    """

    def __init__(
        self,
        device_factory: Callable[[Flash, FaultState], D],
        bus: can.BusABC,
        *,
        flash_file: Path,
        memory: FlashMap,
        faults: Faults | None = None,
    ) -> None:
        self._make = device_factory
        self._flash = Flash(flash_file, memory=memory)
        self._first_faults = faults or Faults()
        self._faults = FaultState(self._first_faults)
        self._host = BusHost(bus, self._faults)
        self._thread = threading.Thread(target=self._run, name="sim.mcu", daemon=True)
        self._stopping = False
        self._has_power = True
        self._is_lit = threading.Event()
        self._is_dark = threading.Event()
        self._ended = threading.Event()
        self._device: D | None = None

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
        self._host.switch_off()
        self._thread.join(SWITCH_WITHIN_S)
        self._flash.close()

    # --- what a test or a person sees and does ---------------------------------------------------

    @property
    def device(self) -> D:
        """The firmware that runs, or ran last."""
        assert self._device is not None
        return self._device

    def order(self, faults: Faults) -> None:
        """Let these things go wrong, instead of those ordered before."""
        self._flash.cut_at_byte = faults.power_cut_at_byte or None
        self._flash.cut_at_erase = faults.power_cut_at_erase or None
        self._faults.give(faults)

    def power_cut(self) -> None:
        """Cut the power now and leave it cut."""
        self._has_power = False
        self._host.switch_off()
        self._wait_for(self._is_dark, "go dark")

    def power_cycle(self) -> None:
        """Cut the power and give it back; returns when the part has booted."""
        self.power_cut()
        self._is_lit.clear()
        self._has_power = True
        self._host.nudge()
        self._wait_for(self._is_lit, "boot")

    def wait_dark(self, within_s: float) -> bool:
        """Whether the part lost its power (by a fault, say) within so many seconds."""
        return self._is_dark.wait(within_s)

    def wait_ended(self, within_s: float) -> bool:
        """Whether its bus has gone, so that nobody will serve it any more."""
        return self._ended.wait(within_s)

    def _wait_for(self, event: threading.Event, what: str) -> None:
        if not event.wait(SWITCH_WITHIN_S):
            raise TimeoutError(f"the simulated MCU did not {what}")

    # --- its thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            with self._host.clock.attending():
                self._live_and_die()
        except can.CanError as error:
            log.warning("mcu.bus_lost", error=str(error))
        finally:
            self._ended.set()

    def _live_and_die(self) -> None:
        was_reset = False
        while not self._stopping:
            try:
                self._live(was_reset=was_reset)
                was_reset = True
            except Reset:
                was_reset = True
            except PowerCut:
                was_reset = False
                self._be_dark()

    def _live(self, *, was_reset: bool) -> None:
        device = self._make(self._flash, self._faults)
        if was_reset:
            log.info("mcu.reset")
            self._host.wait(RESET_S)
        self._host.switch_on(device.accepts)
        # Whoever switched it off a moment ago did so for good.
        if self._stopping or not self._has_power:
            raise PowerCut
        self._device = device
        device.run(self._host, self._is_lit.set)

    def _be_dark(self) -> None:
        log.info("mcu.power_lost")
        self._has_power = False
        self._is_dark.set()
        while not self._has_power and not self._stopping:
            self._host.be_deaf()
        self._is_dark.clear()


class Mcu(Served[D]):
    """A part of any kind; see Served."""

    def content(self, start: int, size: int) -> bytes:
        """Bytes of its flash, as they are. Raises ValueError outside of it."""
        return self._flash.read(start, size)


class Stm32Mcu(Served[UdsDevice[Stm32Uds]]):
    """An STM32 with a UDS bootloader; see Served."""

    def __init__(self, settings: McuSettings, bus: can.BusABC, *, faults: Faults | None = None) -> None:
        self._settings = settings
        super().__init__(
            lambda flash, state: UdsDevice(settings, state, lambda around: assemble(settings, flash, around)),
            bus,
            flash_file=settings.flash_file,
            memory=settings.memory,
            faults=faults,
        )

    def content(self, size: int) -> bytes:
        """The first `size` bytes of the slot, as they are."""
        return self._flash.read(self._settings.memory.slot.start, size)

    @property
    def uds(self) -> Stm32Uds:
        """The protocol, with its `session`, `in_bootloader`, `quiet`, `dtcs_off`."""
        part = self.device.part
        assert part is not None
        return part.uds

    @property
    def programmed_bytes(self) -> int:
        """Bytes written to the slot since its last erase, while the power was on; 0 at first."""
        part = self.device.part
        return part.programmer.programmed_bytes if part else 0

    def boots(self) -> Installed:
        """What the bootloader would say of the flash at this moment."""
        return bootloader_of(self._settings, self._flash).judge()
