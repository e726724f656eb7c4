"""A simulated ESP32 with UDS: its settings, what the factory puts into it, and the part on a bus."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import can

from shared.errors import ConfigError
from sim.mcu.assembly import Part, UdsSettings, access_of
from sim.mcu.boot import SIZE_BYTES, Installed
from sim.mcu.esp32_uds import Esp32Uds
from sim.mcu.esp_boot import DEFAULT_ESP_MAP, Chip, EspBootloader, EspMap
from sim.mcu.faults import Faults
from sim.mcu.flash import Flash
from sim.mcu.pending import Pending
from sim.mcu.programming import Programmer, Regions
from sim.mcu.server import Served
from sim.mcu.uds_device import UdsDevice
from sim.mcu.uds_server import Surroundings


@dataclass(frozen=True, kw_only=True)
class Esp32Settings(UdsSettings):
    """One simulated ESP32."""

    memory: EspMap = DEFAULT_ESP_MAP
    chip: Chip = field(default_factory=Chip)


def esp32_factory(
    flash_file: Path, image: bytes, document: bytes, *, memory: EspMap = DEFAULT_ESP_MAP
) -> None:
    """Fill a flash as the factory does: `image` in slot 0, its signed `document`; otadata is blank.

    Whether the image boots is the bootloader's business. Raises ConfigError when something does not fit,
    FlashFileError when the file is in use.
    """
    packed = len(document).to_bytes(SIZE_BYTES, "little") + document
    for what, data, area in (
        ("image", image, memory.slots[0]),
        ("document", packed, memory.documents[0]),
    ):
        if not 0 < len(data) <= area.size:
            raise ConfigError(f"{what} of {len(data)} bytes, there is room for 1 to {area.size}")
    with Flash(flash_file, memory=memory) as flash:
        for sector, area in enumerate(memory.sector_areas()):
            if flash.is_torn(sector) or flash.read(area.start, area.size).strip(b"\xff"):
                flash.erase(sector)
        for data, area in ((image, memory.slots[0]), (packed, memory.documents[0])):
            flash.write(area.start, data + b"\xff" * (-len(data) % memory.word_bytes))


def assemble_esp32(settings: Esp32Settings, flash: Flash, around: Surroundings) -> Part[Esp32Uds]:
    """An ESP32 at power-on."""
    memory, timing = settings.memory, settings.timing
    pending = Pending(around.wait, every_s=timing.pending_every_s)

    def regions() -> Regions:
        return uds.regions()

    programmer = Programmer(flash, pending, timing, settings.downloads, regions=regions, clock=around.clock)
    uds = Esp32Uds(
        bootloader=EspBootloader(flash, memory, settings.judge, settings.chip),
        memory=memory,
        chip=settings.chip,
        access=access_of(settings, flash, memory.state, around.clock),
        programmer=programmer,
        pending=pending,
        identity=settings.identity,
        timing=timing,
        around=around,
        trouble=settings.trouble,
    )
    return Part(uds=uds, programmer=programmer)


class Esp32Mcu(Served[UdsDevice[Esp32Uds]]):
    """An ESP32 with UDS in its application; see Served."""

    def __init__(self, settings: Esp32Settings, bus: can.BusABC, *, faults: Faults | None = None) -> None:
        self._settings = settings
        super().__init__(
            lambda flash, state: UdsDevice(
                settings, state, lambda around: assemble_esp32(settings, flash, around)
            ),
            bus,
            flash_file=settings.flash_file,
            memory=settings.memory,
            faults=faults,
        )

    @property
    def uds(self) -> Esp32Uds:
        """The protocol, with what runs: `running`, `session`, `quiet`, `dtcs_off`."""
        part = self.device.part
        assert part is not None
        return part.uds

    @property
    def programmed_bytes(self) -> int:
        """Bytes written to the passive slot since its last erase, while the power was on; 0 at first."""
        part = self.device.part
        return part.programmer.programmed_bytes if part else 0

    def content(self, slot: int, size: int) -> bytes:
        """The first `size` bytes of a slot, as they are."""
        return self._flash.read(self._settings.memory.slots[slot].start, size)

    def judge(self, slot: int) -> Installed:
        """What the bootloader would say of a slot at this moment."""
        settings = self._settings
        return EspBootloader(self._flash, settings.memory, settings.judge, settings.chip).judge(slot)

    @property
    def secure_version(self) -> int:
        """What the eFuse holds."""
        return self._flash.counter
