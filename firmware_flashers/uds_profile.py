"""An ECU family that is flashed over UDS: its memory, its times, its services. Values only, all checked.

A profile holds no secret and no address of one truck; identifiers, key files and helper programs are
settings of a component (see registry.EcuSettings). `PROFILES` are the families that come with the
program; a TOML table changes what it names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

from firmware_flashers import security, uds_words
from firmware_flashers.base import Capabilities, MemoryRange, TrustClass
from firmware_flashers.can_link import MOST_11_BITS, MOST_29_BITS
from firmware_flashers.profile_values import check_timing, memory_range, refuse_unknown
from firmware_flashers.uds_memory import KIB, MemoryMap
from shared.errors import ConfigError

MOST_BLOCK_BYTES = 4095  # a message's 12-bit length, ISO 15765-2 9.6.3
LEAST_BLOCK_BYTES = 8
MOST_QUIET_NODES = 32
DEFLATE = "deflate"
COMPRESSIONS = ("none", DEFLATE)
ROUTINE, READ = "routine", "read"
PROOFS = (ROUTINE, READ)
STM32, ESP, MCUBOOT, RAW = "stm32", "esp", "mcuboot", "raw"
IMAGES = (STM32, ESP, MCUBOOT, RAW)
_HEX = re.compile(r"(?:[0-9a-f]{2})*")


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
    erase_s: float = 30.0  # one erase request
    block_s: float = 60.0  # one TransferData with its repeats
    check_s: float = 30.0  # one check by the ECU over its own content
    boot_s: float = 15.0  # from reset until the application answers
    reset_pause_s: float = 0.1  # an ECU may still answer until it resets
    tester_present_s: float = 2.0  # S3 client, ISO 14229-2 7.3
    security_delay_s: float = 15.0  # NRC 0x37 before a key was sent: an ECU that lets nobody try yet
    busy_wait_s: float = 0.2
    silent_tries: int = 3  # a repeatable request without an answer
    busy_tries: int = 10  # NRC 0x21
    download_tries: int = 2  # a stretch of sectors, from its erase on

    def __post_init__(self) -> None:
        """Raises ConfigError that names the key."""
        check_timing(self)


@dataclass(frozen=True, kw_only=True)
class Identifiers:
    """Data identifiers (services 0x22 and 0x2E). None: this ECU has none, and nothing is asked.

    Without `kind` or `hardware` an ECU can't say that it is another one: the configured words stand.
    """

    kind: int | None = uds_words.DID_KIND
    hardware: int | None = uds_words.DID_HARDWARE
    version: int | None = uds_words.DID_VERSION
    image_sha256: int | None = uds_words.DID_IMAGE_SHA256
    in_bootloader: int | None = uds_words.DID_IN_BOOTLOADER
    fingerprint: int | None = uds_words.DID_FINGERPRINT

    def __post_init__(self) -> None:
        """Raises ConfigError that names the key."""
        _check_16_bits(self, "dids")


@dataclass(frozen=True, kw_only=True)
class Routines:
    """Routine identifiers (service 0x31). None: this ECU has none, and the step is left out.

    `erase` takes `44 address length`, `check_memory` the same and a SHA-256. `erase_answers` are the
    status records (hex) that mean "erased".
    """

    preconditions: int | None = uds_words.PRECONDITIONS
    erase: int | None = uds_words.ERASE
    check_memory: int | None = uds_words.CHECK_MEMORY
    check_dependencies: int | None = uds_words.CHECK_DEPENDENCIES
    erase_answers: tuple[str, ...] = ("", "00")

    def __post_init__(self) -> None:
        """Raises ConfigError that names the key."""
        _check_16_bits(self, "routines")
        for one in self.erase_answers:
            if not isinstance(one, str) or not _HEX.fullmatch(one):
                raise ConfigError(f"profile.routines.erase_answers: {one!r} is not lower-case hex digits")


@dataclass(frozen=True, kw_only=True)
class QuietNode:
    """Another ECU of the bus, which keeps quiet while this one is flashed: its physical identifiers.

    Never the sender of a signal that an interlock listens to.
    """

    tx_id: int
    rx_id: int

    def __post_init__(self) -> None:
        """Raises ConfigError that names the key."""
        for key in ("tx_id", "rx_id"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST_29_BITS:
                raise ConfigError(f"profile.quiet_nodes: {key} {value!r} is no CAN identifier")
        if (self.tx_id > MOST_11_BITS) != (self.rx_id > MOST_11_BITS) or self.tx_id == self.rx_id:
            raise ConfigError(
                f"profile.quiet_nodes: tx_id {self.tx_id:#x} and rx_id {self.rx_id:#x} are no pair"
            )


@dataclass(frozen=True, kw_only=True)
class UdsProfile:
    """One family of ECUs. The default is "stm32-uds".

    - `padding` fills the tester's frames; `security_level` is the odd sub-function of requestSeed,
      `security` the name of a key algorithm, or "command", "certificate", "none" (see security).
    - `image` says how an image is judged: "stm32", "esp", or "raw" (its size alone).
    - `slots` is 2 where the ECU names a passive slot itself (DID FD07), and boots it on trial.
    - `compression` "deflate": dataFormatIdentifier 0x10, raw deflate in a window of 4 KiB.
    - `proof` of what was written: the ECU's own "routine", or "read" back by address.
    - `erase_request_bytes`: the most that one erase covers, if a sector is not larger.
    - `erased_run_bytes`: a stretch of 0xFF of this length is not sent but left erased; 0: all is sent.
    - `quiet_nodes` send nothing while the ECU is flashed, and with `dtc_off` note no trouble codes.
    """

    padding: int = 0xCC
    security_level: int = 0x01
    security: str = "hmac-sha256"
    image: str = STM32
    slots: int = 1
    compression: str = "none"
    proof: str = ROUTINE
    block_bytes: int = MOST_BLOCK_BYTES
    erase_request_bytes: int = 64 * KIB
    erased_run_bytes: int = KIB
    quiet_nodes: tuple[QuietNode, ...] = ()
    dtc_off: bool = True
    timing: UdsTiming = field(default_factory=UdsTiming)
    memory: MemoryMap = field(default_factory=MemoryMap)
    dids: Identifiers = field(default_factory=Identifiers)
    routines: Routines = field(default_factory=Routines)

    def __post_init__(self) -> None:
        """Raises ConfigError that names the key."""
        if not isinstance(self.padding, int) or not 0 <= self.padding <= 0xFF:
            raise ConfigError(f"profile.padding is {self.padding!r}, not a byte")
        # ISO 14229-1 table 42: requestSeed is odd, sendKey the next even one; 0x43..0x5E are reserved.
        level = self.security_level
        if not isinstance(level, int) or level not in {*range(1, 0x42, 2), *range(0x5F, 0x7E, 2)}:
            raise ConfigError(f"profile.security_level is {level!r}, not an odd number of requestSeed")
        for key, words in (
            ("security", security.securities()),
            ("image", IMAGES),
            ("compression", COMPRESSIONS),
            ("proof", PROOFS),
            ("slots", (1, 2)),
        ):
            if getattr(self, key) not in words:
                known = ", ".join(map(str, words))
                raise ConfigError(f"profile.{key} is {getattr(self, key)!r}, not one of {known}")
        if not isinstance(self.dtc_off, bool):
            raise ConfigError(f"profile.dtc_off is {self.dtc_off!r}, not true or false")
        for key, least, most in (
            ("block_bytes", LEAST_BLOCK_BYTES, MOST_BLOCK_BYTES),
            ("erase_request_bytes", 1, 2**31),
            ("erased_run_bytes", 0, 2**31),
        ):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise ConfigError(f"profile.{key} is {value!r}, not a whole number from {least} to {most}")
        self._check_nodes()
        self._check_together()

    def _check_nodes(self) -> None:
        if len(self.quiet_nodes) > MOST_QUIET_NODES:
            raise ConfigError(f"profile.quiet_nodes names more than {MOST_QUIET_NODES} nodes")
        ids = [one for node in self.quiet_nodes for one in (node.tx_id, node.rx_id)]
        if len(set(ids)) != len(ids):
            raise ConfigError("profile.quiet_nodes names an identifier twice")

    def _check_together(self) -> None:
        """Raise ConfigError for values that are right alone and wrong together."""
        if self.erased_run_bytes and self.routines.erase is None:
            raise ConfigError("profile.erased_run_bytes must be 0 where nothing erases: all must be sent")
        if self.proof == ROUTINE and self.routines.check_memory is None:
            raise ConfigError('profile.proof is "routine", but profile.routines.check_memory is none')
        if self.slots == 2 and self.memory.document is not None:
            raise ConfigError("profile.memory.document is given, but with two slots the ECU says where it is")
        if self.has_document and self.routines.check_dependencies is None:
            raise ConfigError(
                "profile.routines.check_dependencies is none, but the ECU has a document to check"
            )

    @property
    def has_document(self) -> bool:
        """Whether the ECU keeps the signed document and boots nothing without it."""
        return self.memory.document is not None or self.slots == 2

    @property
    def skips_sectors(self) -> bool:
        """Whether sectors that hold the right content already can be told by the ECU, and left alone."""
        return self.has_document and self.slots == 1 and self.routines.check_memory is not None

    @property
    def capabilities(self) -> Capabilities:
        """What flashing this family guarantees."""
        two = self.slots == 2
        return Capabilities(
            slots=self.slots,
            self_reverting=two,
            anti_rollback=two,
            trust_class=TrustClass.VERIFIES if self.has_document else TrustClass.GATEWAY_ONLY,
            isolated_bus=False,
            never_erased=() if self.memory.bootloader is None else (self.memory.bootloader,),
            image_start=None if two else self.memory.slot.start,
        )

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any], *, base: UdsProfile | None = None) -> UdsProfile:
        """A profile from a TOML table; what it leaves out is as in `base`.

        Ranges are `[start, end]`; `false` stands for an identifier, a routine or a range that the ECU has
        not. Raises ConfigError that names the key, for unknown ones too.
        """
        from_base = cls() if base is None else base
        refuse_unknown(given, cls, "profile.")
        made: dict[str, Any] = {one.name: getattr(from_base, one.name) for one in fields(cls)} | dict(given)
        for name in ("timing", "memory", "dids", "routines"):
            if name in given:
                made[name] = _table(name, given[name], getattr(from_base, name))
        if "quiet_nodes" in given:
            made["quiet_nodes"] = _nodes(given["quiet_nodes"])
        return cls(**made)


def _check_16_bits(values: Any, table: str) -> None:
    for one in fields(values):
        value = getattr(values, one.name)
        if value is None or one.name == "erase_answers":
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 0xFFFF:
            raise ConfigError(f"profile.{table}.{one.name} is {value!r}, not a 16-bit number")


def _table(name: str, given: Any, base: Any) -> Any:
    """A dataclass of values like `base`, with what the table changes."""
    if not isinstance(given, Mapping):
        raise ConfigError(f"profile.{name} is not a table")
    kind = type(base)
    refuse_unknown(given, kind, f"profile.{name}.")
    made = {one.name: getattr(base, one.name) for one in fields(kind)}
    for key, value in given.items():
        made[key] = _value(f"profile.{name}.{key}", value, nullable=name in {"dids", "routines", "memory"})
    return kind(**made)


def _value(key: str, value: Any, *, nullable: bool) -> Any:
    if value is False and nullable:
        return None
    if not isinstance(value, list):
        return value
    if key.endswith((".erase_answers", ".sectors")):
        return tuple(value)
    return memory_range(key, value)


def _nodes(given: Any) -> tuple[QuietNode, ...]:
    if not isinstance(given, list) or not all(isinstance(one, Mapping) for one in given):
        raise ConfigError("profile.quiet_nodes is not a list of {tx_id, rx_id}")
    for one in given:
        if set(one) != {"tx_id", "rx_id"}:
            raise ConfigError(f"profile.quiet_nodes: {dict(one)} is not {{tx_id, rx_id}}")
    return tuple(QuietNode(**one) for one in given)


_ESP_FLASH = MemoryMap(
    flash_start=0,
    sectors=(4 * KIB,) * 1024,
    bootloader=MemoryRange(start=0, end=0x1_0000),
    document=None,
    slot=MemoryRange(start=0x1_0000, end=0x40_0000),
)

PROFILES: Mapping[str, UdsProfile] = MappingProxyType(
    {
        "stm32-uds": UdsProfile(),
        "esp32-uds": UdsProfile(image=ESP, slots=2, memory=_ESP_FLASH),
        # A bootloader that knows nothing of our documents and identifiers; a profile file says the rest.
        "uds": UdsProfile(
            image=RAW,
            proof=READ,
            memory=MemoryMap(document=None),
            dids=Identifiers(
                kind=None,
                hardware=None,
                version=None,
                image_sha256=None,
                in_bootloader=None,
                fingerprint=None,
            ),
            routines=Routines(preconditions=None, check_memory=None, check_dependencies=None),
        ),
    }
)
"""The families that come with the program, by the word of the flasher."""
