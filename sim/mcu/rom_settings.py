"""What one simulated part with a ROM loader is: its family, its loader's habits, its times.

The documents (ST AN3154 for bxCAN, AN5405 for FDCAN) and ST's own open implementation
(stm32-mw-openbl: openbl_can_cmd.c, openbl_fdcan_cmd.c) differ in places; each difference that a tester meets
in the field is a setting here. The defaults are the documents'.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from shared.errors import ConfigError
from shared.images.stm32_families import FAMILIES, Family
from sim.mcu.memory import FlashMap

Dialect = Literal["an3154", "zycet", "count"]
DIALECTS: tuple[Dialect, ...] = ("an3154", "zycet", "count")


@dataclass(frozen=True, kw_only=True)
class RomSettings:
    """One part. `family` is a name of shared.images.stm32_families; its `rom` decides which loader it has.

    Habits: `dialect` is the way of the Erase command (bxCAN only). `get_n_one_less`: Get's N is one less
    than the number of commands (AN2662 and OpenBL: equal to it, for the version counts too).
    `read_single_bytes`: what is left of a read after whole frames comes as frames of one byte (OpenBL)
    instead of one short frame. `third_mass_erase_ack` as OpenBL has it. `extra_write_acks`: every so
    manieth data frame of a write is acknowledged twice (0: none). `synced_again` is the answer to a second
    synchronisation: NACK as most have it, or ACK. `counts_frames`: a write over CAN FD ends after so many
    frames (OpenBL) instead of so many bytes (H563). `erase_counts_from_zero`: Extended Erase takes N - 1.
    `special_operations` are those that Special and Extended Special know (CAN FD).
    `go_looks`: Go refuses an address without a vector table. `crashes`: what runs after Go resets at
    once. `speed_fails`: so does a change of the bit rate.

    Times in seconds: `erase_s` a sector, `mass_erase_s` all of them, `program_s` a flash word, `speed_s`
    from the first ACK of Speed to the second.

    `boot0` is the pin's level at power-on: high starts the loader, low the vector table at `boot_start`
    (None: the start of the flash). The application sends `application_id` every `application_s`.
    Raises ConfigError that names the key.
    """

    flash_file: Path
    family: str = "stm32f40x"
    dialect: Dialect = "an3154"
    version: int = 0x20
    get_n_one_less: bool = False
    read_single_bytes: bool = False
    third_mass_erase_ack: bool = False
    extra_write_acks: int = 0
    synced_again: Literal["ack", "nack"] = "nack"
    counts_frames: bool = False
    erase_counts_from_zero: bool = False
    special_operations: tuple[int, ...] = ()
    go_looks: bool = True
    crashes: bool = False
    speed_fails: bool = False
    erase_s: float = 0.0
    mass_erase_s: float = 0.0
    program_s: float = 0.0
    speed_s: float = 0.303
    boot0: bool = True
    boot_start: int | None = None
    application_id: int = 0x123
    application_s: float = 0.1

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ConfigError(f"family {self.family[:80]!r} is not one of {', '.join(FAMILIES)}")
        if self.part.rom is None:
            raise ConfigError(f"family {self.family} has no CAN in its ROM loader")
        if self.dialect not in DIALECTS:
            raise ConfigError(f"dialect {self.dialect!r} is not one of {', '.join(DIALECTS)}")
        if not 0 <= self.application_id <= 0x7FF:
            raise ConfigError(f"application_id {self.application_id:#x} has more than 11 bits")
        if self.extra_write_acks < 0:
            raise ConfigError(f"extra_write_acks {self.extra_write_acks} is below 0")
        for key in ("erase_s", "mass_erase_s", "program_s", "speed_s"):
            if getattr(self, key) < 0:
                raise ConfigError(f"{key} {getattr(self, key)} is below 0")
        if self.application_s <= 0:
            raise ConfigError(f"application_s {self.application_s} is not over 0")
        if self.boot_start is not None and self.boot_start not in self.part.flash:
            raise ConfigError(f"boot_start {self.boot_start:#x} is not in the flash of {self.family}")

    @property
    def part(self) -> Family:
        """The row of the family's table."""
        return FAMILIES[self.family]

    @property
    def boots_at(self) -> int:
        """Where the vector table is looked for when the part starts by itself."""
        return self.part.flash_start if self.boot_start is None else self.boot_start

    @cached_property
    def memory(self) -> FlashMap:
        """The flash as the simulated part has it."""
        part = self.part
        return FlashMap(sectors=part.sectors, flash_start=part.flash_start, word_bytes=part.word_bytes)
