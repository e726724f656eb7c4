"""A part with a ROM loader on a bus: the loader that its family has, and its BOOT0 pin."""

from __future__ import annotations

from collections.abc import Iterable

import can

from sim.mcu.faults import Faults, FaultState
from sim.mcu.flash import Flash
from sim.mcu.rom_loader import RomDevice, mark_of
from sim.mcu.rom_memory import RomMemory
from sim.mcu.rom_settings import RomSettings
from sim.mcu.server import Mcu
from sim.mcu.stm32_rom import Stm32Rom
from sim.mcu.stm32_rom_fd import Stm32RomFd


class RomMcu(Mcu[RomDevice]):
    """See Mcu. `boot0` may be set at any time; it counts at the next reset or power-on."""

    def __init__(self, settings: RomSettings, bus: can.BusABC, *, faults: Faults | None = None) -> None:
        self.settings = settings
        self.boot0 = settings.boot0
        super().__init__(
            self._new_device, bus, flash_file=settings.flash_file, memory=settings.memory, faults=faults
        )

    def _new_device(self, flash: Flash, faults: FaultState) -> RomDevice:
        kind = Stm32RomFd if self.settings.part.rom == "fdcan" else Stm32Rom
        return kind(self.settings, flash, faults, boot0=lambda: self.boot0)

    @property
    def running(self) -> bytes | None:
        """The mark of the application that runs (see rom_loader.mark_of); None when none does."""
        return self.device.running

    @property
    def flash(self) -> Flash:
        """The memory itself."""
        return self._flash

    def boots(self) -> bytes | None:
        """The mark of what would run if the part were started with BOOT0 low now."""
        memory = RomMemory(self.settings, self._flash, lambda _: None)
        start = self.settings.boots_at
        return mark_of(memory.program_at(start)) if memory.starts(memory.reset_vector(start)) else None

    def boot_application(self) -> bytes | None:
        """Cut the power and give it back with BOOT0 low; returns `running`."""
        self.boot0 = False
        self.power_cycle()
        return self.running

    def enter_loader(self) -> None:
        """Cut the power and give it back with BOOT0 high."""
        self.boot0 = True
        self.power_cycle()

    def fill(self, image: bytes) -> None:
        """Put an image where the part boots from, as the factory does. Before the block is entered."""
        word = self.settings.part.word_bytes
        with Flash(self.settings.flash_file, memory=self.settings.memory) as flash:
            for sector in flash.memory.sectors_of(self.settings.boots_at, len(image)):
                flash.erase(sector)
            flash.write(self.settings.boots_at, image + b"\xff" * (-len(image) % word))

    def protect(self, sectors: Iterable[int], *, readout: bool = False) -> None:
        """Set protection as it would be found. Before the block is entered."""
        with Flash(self.settings.flash_file, memory=self.settings.memory) as flash:
            flash.write_protect(sectors)
            if readout:
                flash.readout_protect()
