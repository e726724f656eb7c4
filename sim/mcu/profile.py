"""Words, times and identity of the "stm32-uds" profile (ISO 14229-1:2020 for services and codes)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Sid(IntEnum):
    SESSION = 0x10
    RESET = 0x11
    READ = 0x22
    SECURITY = 0x27
    WRITE = 0x2E
    ROUTINE = 0x31
    DOWNLOAD = 0x34
    TRANSFER = 0x36
    EXIT = 0x37
    TESTER_PRESENT = 0x3E


class Session(IntEnum):
    DEFAULT = 0x01
    PROGRAMMING = 0x02
    EXTENDED = 0x03


class Routine(IntEnum):
    CHECK_MEMORY = 0x0202
    CHECK_PRECONDITIONS = 0x0203
    ERASE = 0xFF00
    CHECK_DEPENDENCIES = 0xFF01


class Did(IntEnum):
    FINGERPRINT = 0xF15A
    VERSION = 0xF189
    SERIAL = 0xF18C
    HARDWARE = 0xF191
    KIND = 0xF197
    SHA256 = 0xFD00
    IN_BOOTLOADER = 0xFD01


class Nrc(IntEnum):
    """Negative response codes (annex A.1)."""

    SERVICE_NOT_SUPPORTED = 0x11
    SUB_FUNCTION_NOT_SUPPORTED = 0x12
    INCORRECT_LENGTH = 0x13
    BUSY = 0x21
    CONDITIONS_NOT_CORRECT = 0x22
    SEQUENCE_ERROR = 0x24
    OUT_OF_RANGE = 0x31
    ACCESS_DENIED = 0x33
    INVALID_KEY = 0x35
    EXCEEDED_ATTEMPTS = 0x36
    TIME_DELAY = 0x37
    TRANSFER_SUSPENDED = 0x71
    PROGRAMMING_FAILURE = 0x72
    WRONG_COUNTER = 0x73
    RESPONSE_PENDING = 0x78
    SUB_FUNCTION_NOT_IN_SESSION = 0x7E
    SERVICE_NOT_IN_SESSION = 0x7F
    ENGINE_RUNNING = 0x83
    SPEED_TOO_HIGH = 0x88


class Refused(Exception):
    """The request is answered negatively, with this code."""

    def __init__(self, nrc: Nrc) -> None:
        super().__init__(nrc.name)
        self.nrc = nrc


SUPPRESSED_WHEN_FUNCTIONAL = {
    Nrc.SERVICE_NOT_SUPPORTED,
    Nrc.SUB_FUNCTION_NOT_SUPPORTED,
    Nrc.OUT_OF_RANGE,
    Nrc.SUB_FUNCTION_NOT_IN_SESSION,
    Nrc.SERVICE_NOT_IN_SESSION,
}
"""Clause 8.7: nobody says "not me" to a request that went to all."""

SUPPRESS_POSITIVE = 0x80
MOST_BLOCK_BYTES = 4095
MOST_FINGERPRINT_BYTES = 32
P2_TIMES = bytes.fromhex("003201F4")
"""P2 50 ms, P2* 500 times 10 ms, as session answers carry them (clause 10.2)."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds that things take. `security_delay_s` follows the third wrong key; `pending_every_s`
    parts two responsePending answers (P2* is 5 s); a sector takes `erase_s`, a block `program_s`.
    """

    erase_s: float = 0.0
    program_s: float = 0.0
    reset_s: float = 0.02
    s3_s: float = 5.0
    security_delay_s: float = 10.0
    pending_every_s: float = 1.0


@dataclass(frozen=True, kw_only=True)
class EcuIdentity:
    """What the part says of itself."""

    kind: str
    hardware: str
    serial: str = "SIM-0001"
