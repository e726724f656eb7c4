"""A profile for a part with a ROM loader: its family, its slot, its loader's way of erasing, its times.

Values only, all checked. Two protocols: `stm32-rom` (ST AN3154, bxCAN) and `stm32-rom-fd` (ST AN5405, FDCAN).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from firmware_flashers.base import Capabilities, MemoryRange, TrustClass
from firmware_flashers.profile_values import check_timing, memory_range, refuse_unknown
from shared.errors import ConfigError
from shared.images.stm32 import Stm32Layout
from shared.images.stm32_families import FAMILIES, Family

STM32_ROM = "stm32-rom"
STM32_ROM_FD = "stm32-rom-fd"
CONTROLLERS = {STM32_ROM: "bxcan", STM32_ROM_FD: "fdcan"}
"""Protocol: which CAN controller the family's loader speaks through."""
DIALECTS = {STM32_ROM: ("an3154", "zycet", "count"), STM32_ROM_FD: ("extended",)}
"""Ways of the Erase command, the document's first (see stm32_rom)."""
SPEEDS = (125_000, 250_000, 500_000, 1_000_000)
BLANK_CHECKS = ("ends", "full")
MOST_RANGES = 64
MOST_SECTOR = {STM32_ROM: 0xFE, STM32_ROM_FD: 0xFFEF}
"""Highest sector number that can be erased by itself: the next ones mean all of the flash."""


@dataclass(frozen=True, kw_only=True)
class RomTiming:
    """Times in seconds, counts of tries.

    `quiet_s`: so long nobody else may be heard before the first frame is sent. `ack_s` one acknowledgement.
    `sync_s` in all for a part to answer the synchronisation, asked anew every `probe_s` (a part that
    still erases for a tester that died answers late). `erase_s` one sector, `mass_erase_s` all of them,
    `program_s` one block of 256 bytes, `speed_s` until the acknowledgement at the new bit rate (OpenBL
    takes 0.303), `reset_s` until a loader answers after it has reset itself, `boot_s`: so long after Go it
    is watched whether the part falls back, `enter_s` the command that brings it into its loader.
    """

    quiet_s: float = 1.2  # many nodes of a vehicle speak once a second
    ack_s: float = 0.5
    sync_s: float = 3.0
    probe_s: float = 0.1
    erase_s: float = 20.0
    mass_erase_s: float = 60.0
    program_s: float = 2.0
    speed_s: float = 1.0
    reset_s: float = 2.0
    boot_s: float = 0.3
    enter_s: float = 10.0
    block_tries: int = 4
    sector_tries: int = 3

    def __post_init__(self) -> None:
        """Raises ConfigError that names the key."""
        check_timing(self)


@dataclass(frozen=True, kw_only=True)
class RomProfile:
    """One family of parts in their ROM loader.

    `family` is a name of shared.images.stm32_families. `dialect` (None: the document's) is the way of the
    Erase command. `slot` is where images go, whole sectors (None: all of the flash); `never_erased` what is
    not touched beside the family's own system memory and option bytes. `speed` (bit/s, AN3154 only) is
    changed to after the start; None stays. `isolated_bus` says that the part is alone on its bus, which the
    agent demands. `skip_unchanged`: sectors that hold the right bytes are left alone. `blank_check`: an
    erase within `stage` is proved at both `ends` of the sector before it is written, or over all of it,
    `full` (what the image covers is read back after writing in any case). `mass_erase` allows what loses
    the whole flash, and only beside an explicit argument.
    """

    protocol: str = STM32_ROM
    family: str = "stm32f40x"
    dialect: str | None = None
    slot: MemoryRange | None = None
    never_erased: tuple[MemoryRange, ...] = ()
    speed: int | None = None
    isolated_bus: bool = False
    skip_unchanged: bool = True
    blank_check: str = "ends"
    mass_erase: bool = False
    timing: RomTiming = field(default_factory=RomTiming)

    def __post_init__(self) -> None:
        """Raises ConfigError that names the key."""
        if self.protocol not in CONTROLLERS:
            raise ConfigError(f"protocol {self.protocol!r} is not one of {', '.join(CONTROLLERS)}")
        if not isinstance(self.family, str) or self.family not in FAMILIES:
            raise ConfigError(f"profile.family {self.family!r} is not one of {', '.join(FAMILIES)}")
        if self.part.rom != CONTROLLERS[self.protocol]:
            has = "no CAN" if self.part.rom is None else self.part.rom
            raise ConfigError(
                f"profile.family {self.family} has {has} in its ROM loader; "
                f"{self.protocol} needs {CONTROLLERS[self.protocol]}"
            )
        if self.dialect is not None and self.dialect not in DIALECTS[self.protocol]:
            known = ", ".join(DIALECTS[self.protocol])
            raise ConfigError(f"profile.dialect {self.dialect!r} is not one of {known}")
        for key in ("isolated_bus", "skip_unchanged", "mass_erase"):
            if not isinstance(getattr(self, key), bool):
                raise ConfigError(f"profile.{key} is {getattr(self, key)!r}, not true or false")
        if self.blank_check not in BLANK_CHECKS:
            raise ConfigError(
                f"profile.blank_check {self.blank_check!r} is not one of {', '.join(BLANK_CHECKS)}"
            )
        self._check_speed()
        self._check_ranges()

    def _check_speed(self) -> None:
        if self.speed is None:
            return
        if self.protocol == STM32_ROM_FD:
            raise ConfigError("profile.speed is given, but AN5405 has no Speed command")
        if isinstance(self.speed, bool) or self.speed not in SPEEDS:
            raise ConfigError(f"profile.speed {self.speed!r} is not one of {', '.join(map(str, SPEEDS))}")

    def _check_ranges(self) -> None:
        if not isinstance(self.never_erased, tuple) or len(self.never_erased) > MOST_RANGES:
            raise ConfigError(f"profile.never_erased is not a list of at most {MOST_RANGES} [start, end]")
        for one in self.never_erased:
            if not isinstance(one, MemoryRange) or not 0 <= one.start < one.end <= 2**32:
                raise ConfigError("profile.never_erased holds what is not [start, end]")
        if self.mass_erase and self.never_erased:
            raise ConfigError("profile.mass_erase is true, but never_erased names what must stay")
        slot = self.area
        try:
            Stm32Layout.of_family(self.part, slot_start=slot.start, slot_end=slot.end)
            sectors = self.part.sectors_covering(slot.start, slot.end)
        except ValueError as error:
            raise ConfigError(f"profile.slot: {error}") from error
        for one in self.never_erased:
            if one.start < slot.end and slot.start < one.end:
                raise ConfigError(
                    f"profile.slot {slot.start:#010x}..{slot.end:#010x} overlaps never_erased "
                    f"{one.start:#010x}..{one.end:#010x}"
                )
        if sectors[-1] > MOST_SECTOR[self.protocol]:
            raise ConfigError(
                f"profile.slot reaches sector {sectors[-1]}; {self.protocol} erases up to "
                f"{MOST_SECTOR[self.protocol]}"
            )

    @property
    def part(self) -> Family:
        """The family's row."""
        return FAMILIES[self.family]

    @property
    def area(self) -> MemoryRange:
        """The slot."""
        if self.slot is None:
            flash = self.part.flash
            return MemoryRange(start=flash.start, end=flash.end)
        if not isinstance(self.slot, MemoryRange):
            raise ConfigError("profile.slot is not [start, end]")
        return self.slot

    @property
    def way_of_erase(self) -> str:
        """The dialect."""
        return self.dialect or DIALECTS[self.protocol][0]

    @property
    def is_fd(self) -> bool:
        """Whether frames are CAN FD's."""
        return self.protocol == STM32_ROM_FD

    @cached_property
    def layout(self) -> Stm32Layout:
        """Where an image runs."""
        return Stm32Layout.of_family(self.part, slot_start=self.area.start, slot_end=self.area.end)

    @property
    def protected(self) -> tuple[MemoryRange, ...]:
        """What is never erased: the family's system memory and option bytes, and the profile's ranges."""
        own = tuple(MemoryRange(start=one.start, end=one.end) for one in self.part.never_erased)
        return (*own, *self.never_erased)

    @property
    def capabilities(self) -> Capabilities:
        """One slot; a loader that checks nothing, alone on its bus."""
        return Capabilities(
            slots=1,
            self_reverting=False,
            anti_rollback=False,
            trust_class=TrustClass.GATEWAY_ONLY,
            isolated_bus=True,
            never_erased=self.protected,
            image_start=self.area.start,
        )

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any], *, protocol: str = STM32_ROM) -> RomProfile:
        """A profile from a TOML table; what it leaves out is as in the default.

        Ranges are `[start, end]`. Raises ConfigError that names the key, for unknown ones too.
        """
        made = {"protocol": protocol, **given}
        if made["protocol"] != protocol:
            raise ConfigError(f"profile.protocol is {made['protocol']!r}, but the file's is {protocol!r}")
        refuse_unknown(made, cls, "profile.")
        if "slot" in made:
            made["slot"] = memory_range("profile.slot", made["slot"])
        if "never_erased" in made:
            ranges = made["never_erased"]
            if not isinstance(ranges, list):
                raise ConfigError("profile.never_erased is not a list of [start, end]")
            made["never_erased"] = tuple(memory_range("profile.never_erased", one) for one in ranges)
        timing = made.get("timing")
        if timing is not None:
            if not isinstance(timing, Mapping):
                raise ConfigError("profile.timing is not a table")
            refuse_unknown(timing, RomTiming, "profile.timing.")
            made["timing"] = RomTiming(**timing)
        return cls(**made)
