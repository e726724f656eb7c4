"""A UDS bootloader's profile: its memory, its times and what it guarantees. Values only, all checked.

A profile holds no secret and no address of one truck; identifiers and key files are settings of a
component (see registry.EcuSettings).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from itertools import accumulate, pairwise
from typing import Any

from firmware_flashers.base import Capabilities, MemoryRange, TrustClass
from firmware_flashers.security import ALGORITHMS
from shared.errors import ConfigError
from shared.images.stm32 import Stm32Layout

KIB = 1024


def _refuse_unknown(given: Mapping[str, Any], known: type, where: str) -> None:
    names = {one.name for one in fields(known)}
    for key in given:
        if key not in names:
            raise ConfigError(f"{where}{key} is not a known key; known are {', '.join(sorted(names))}")


@dataclass(frozen=True, kw_only=True)
class UdsTiming:
    """Times in seconds, counts of tries.

    `p2_s` and `p2_star_s` hold until the ECU names its own in the answer to a session change
    (ISO 14229-2 7.2). `margin_s` is added to both for what the tester does not see: frames that wait
    in the driver (585 of them at 125 kbit/s take 0.75 s), other traffic, a slow host.
    """

    p2_s: float = 0.05
    p2_star_s: float = 5.0
    margin_s: float = 1.0
    flow_control_s: float = 1.0  # N_Bs, ISO 15765-2 9.8
    consecutive_s: float = 1.0  # N_Cr
    request_s: float = 10.0  # one request with its repeats and all its responsePending
    session_s: float = 15.0  # a session change, a reset into the bootloader included
    erase_s: float = 30.0  # one sector
    block_s: float = 60.0  # one TransferData with its repeats
    check_s: float = 30.0  # one check by the ECU over its own content
    boot_s: float = 15.0  # from reset until the application answers
    reset_pause_s: float = 0.1  # an ECU may still answer until it resets
    tester_present_s: float = 2.0  # S3 client, ISO 14229-2 7.3
    busy_wait_s: float = 0.2
    silent_tries: int = 3  # a repeatable request without an answer
    busy_tries: int = 10  # NRC 0x21
    download_tries: int = 2  # a region, from its erase on

    def __post_init__(self) -> None:
        """Raises ConfigError that names the key."""
        for one in fields(self):
            value = getattr(self, one.name)
            kinds = (int,) if one.type == "int" else (int, float)
            if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value <= 3600:
                raise ConfigError(f"profile.timing.{one.name} is {value!r}, not a number in (0, 3600]")


_BOOTLOADER = MemoryRange(start=0x0800_0000, end=0x0800_8000)
_DOCUMENT = MemoryRange(start=0x0800_8000, end=0x0800_C000)
_SLOT = MemoryRange(start=0x0801_0000, end=0x0808_0000)
_RAM = MemoryRange(start=0x2000_0000, end=0x2002_0000)


@dataclass(frozen=True, kw_only=True)
class MemoryMap:
    """Flash as the bootloader sees it. Ranges end one past their last byte.

    `sectors` are the sizes of the erasable sectors from `flash_start` on. `document` is where the
    signed document lies that the bootloader checks before every boot, `slot` the application.
    """

    flash_start: int = 0x0800_0000
    sectors: tuple[int, ...] = (*[16 * KIB] * 4, 64 * KIB, *[128 * KIB] * 3)
    bootloader: MemoryRange = _BOOTLOADER
    document: MemoryRange = _DOCUMENT
    slot: MemoryRange = _SLOT
    ram: MemoryRange = _RAM
    word_bytes: int = 4

    def __post_init__(self) -> None:
        """Raises ConfigError that names the key."""
        if self.word_bytes not in {1, 2, 4, 8, 16, 32}:
            raise ConfigError(f"profile.memory.word_bytes is {self.word_bytes!r}, not one of 1 to 32")
        if not self.sectors or any(not isinstance(s, int) or s <= 0 for s in self.sectors):
            raise ConfigError("profile.memory.sectors is not a list of sizes in bytes")
        if not isinstance(self.flash_start, int) or not 0 <= self.flash_start < 2**32:
            raise ConfigError(f"profile.memory.flash_start is {self.flash_start!r}, not an address")
        for name in ("bootloader", "document", "slot", "ram"):
            if not isinstance(getattr(self, name), MemoryRange):
                raise ConfigError(f"profile.memory.{name} is not [start, end]")
        edges = set(accumulate((self.flash_start, *self.sectors)))
        for name in ("bootloader", "document", "slot"):
            one: MemoryRange = getattr(self, name)
            if one.start >= one.end or not {one.start, one.end} <= edges:
                raise ConfigError(
                    f"profile.memory.{name} {one.start:#010x}..{one.end:#010x} is not made of whole sectors"
                )
        if not 0 <= self.ram.start < self.ram.end <= 2**32:
            raise ConfigError("profile.memory.ram is not a range")
        for first, second in (("bootloader", "document"), ("bootloader", "slot"), ("document", "slot")):
            a, b = getattr(self, first), getattr(self, second)
            if a.start < b.end and b.start < a.end:
                raise ConfigError(f"profile.memory.{second} overlaps profile.memory.{first}")

    def sectors_of(self, area: MemoryRange, length: int) -> list[MemoryRange]:
        """The sectors that the first `length` bytes of `area` lie in, in ascending order."""
        edges = list(accumulate((self.flash_start, *self.sectors)))
        whole = [MemoryRange(start=a, end=b) for a, b in pairwise(edges)]
        end = min(area.start + length, area.end)
        return [one for one in whole if one.start >= area.start and one.start < end]

    @property
    def layout(self) -> Stm32Layout:
        """What the image judge needs."""
        return Stm32Layout(
            slot_start=self.slot.start,
            slot_end=self.slot.end,
            ram_start=self.ram.start,
            ram_end=self.ram.end,
        )


@dataclass(frozen=True, kw_only=True)
class UdsProfile:
    """One family of bootloaders that speak "stm32-uds".

    `padding` fills the tester's frames; `security_level` is the odd sub-function of requestSeed,
    `security` the name of the key algorithm (see security.ALGORITHMS).
    """

    padding: int = 0xCC
    security_level: int = 0x01
    security: str = "hmac-sha256"
    timing: UdsTiming = field(default_factory=UdsTiming)
    memory: MemoryMap = field(default_factory=MemoryMap)

    def __post_init__(self) -> None:
        """Raises ConfigError that names the key."""
        if not isinstance(self.padding, int) or not 0 <= self.padding <= 0xFF:
            raise ConfigError(f"profile.padding is {self.padding!r}, not a byte")
        # ISO 14229-1 10.4.2.2: requestSeed is odd, sendKey the next even one.
        level = self.security_level
        if not isinstance(level, int) or not 1 <= level <= 0x41 or level % 2 == 0:
            raise ConfigError(f"profile.security_level is {level!r}, not an odd number from 1 to 65")
        if self.security not in ALGORITHMS:
            raise ConfigError(f"profile.security is {self.security!r}, not of {', '.join(ALGORITHMS)}")

    @property
    def capabilities(self) -> Capabilities:
        """One slot, guarded by a bootloader that checks a signature before every boot."""
        return Capabilities(
            slots=1,
            self_reverting=False,
            anti_rollback=False,
            trust_class=TrustClass.VERIFIES,
            isolated_bus=False,
            never_erased=(self.memory.bootloader,),
        )

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any]) -> UdsProfile:
        """A profile from a TOML table; what it leaves out is as in the default.

        Ranges are `[start, end]`. Raises ConfigError that names the key, for unknown ones too.
        """
        _refuse_unknown(given, cls, "profile.")
        made = dict(given)
        for name, kind in (("timing", UdsTiming), ("memory", MemoryMap)):
            if name not in made:
                continue
            table = made[name]
            if not isinstance(table, Mapping):
                raise ConfigError(f"profile.{name} is not a table")
            _refuse_unknown(table, kind, f"profile.{name}.")
            made[name] = kind(**{key: _value(f"profile.{name}.{key}", value) for key, value in table.items()})
        return cls(**made)


def _value(key: str, value: Any) -> Any:
    if not isinstance(value, list):
        return value
    if not all(isinstance(one, int) and not isinstance(one, bool) for one in value):
        raise ConfigError(f"{key} is not a list of whole numbers")
    if key.endswith(".sectors"):
        return tuple(value)
    if len(value) != 2:
        raise ConfigError(f"{key} is not [start, end]")
    return MemoryRange(start=value[0], end=value[1])
