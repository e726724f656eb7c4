"""Words, times and identity of the "stm32-uds" and "esp32-uds" profiles (services and codes: ISO
14229-1:2020).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from shared.errors import ConfigError


class Sid(IntEnum):
    SESSION = 0x10
    RESET = 0x11
    READ_DTCS = 0x19
    READ = 0x22
    READ_MEMORY = 0x23
    SECURITY = 0x27
    COMMUNICATION = 0x28
    AUTHENTICATION = 0x29
    WRITE = 0x2E
    ROUTINE = 0x31
    DOWNLOAD = 0x34
    TRANSFER = 0x36
    EXIT = 0x37
    TESTER_PRESENT = 0x3E
    DTC_SETTING = 0x85


class Session(IntEnum):
    DEFAULT = 0x01
    PROGRAMMING = 0x02
    EXTENDED = 0x03


class Routine(IntEnum):
    CHECK_MEMORY = 0x0202
    CHECK_PRECONDITIONS = 0x0203
    CONFIRM = 0x0210
    ROLL_BACK = 0x0211
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
    RUNNING_SLOT = 0xFD02
    IMAGE_STATE = 0xFD03
    SECURE_VERSION = 0xFD04
    CHIP_ID = 0xFD05
    CHIP_REVISION = 0xFD06
    PASSIVE_SLOT = 0xFD07


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
    CERTIFICATE_TIME = 0x50
    CERTIFICATE_SIGNATURE = 0x51
    CERTIFICATE_CHAIN = 0x52
    CERTIFICATE_TYPE = 0x53
    CERTIFICATE_FORMAT = 0x54
    CERTIFICATE_CONTENT = 0x55
    CERTIFICATE_SCOPE = 0x56
    CERTIFICATE_INVALID = 0x57
    OWNERSHIP = 0x58
    CHALLENGE = 0x59
    ACCESS_RIGHTS = 0x5A
    SESSION_KEY = 0x5B
    CONFIGURATION = 0x5C
    DEAUTHENTICATION = 0x5D
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

    def __init__(self, nrc: int) -> None:
        super().__init__(f"{nrc:#04x}")
        self.nrc = nrc


class Access(Protocol):
    """What lets a tester in: a service with sub-functions, and the state that it leaves."""

    unlocked: bool

    @property
    def sid(self) -> Sid: ...

    @property
    def sub_functions(self) -> frozenset[int]: ...

    def power_on(self) -> None: ...

    def lock(self) -> None: ...

    def serve(self, body: bytes) -> bytes:
        """Answer a request with one of the sub-functions; raises Refused."""
        ...


SUPPRESSED_WHEN_FUNCTIONAL = {
    Nrc.SERVICE_NOT_SUPPORTED,
    Nrc.SUB_FUNCTION_NOT_SUPPORTED,
    Nrc.OUT_OF_RANGE,
    Nrc.SUB_FUNCTION_NOT_IN_SESSION,
    Nrc.SERVICE_NOT_IN_SESSION,
}
"""Clause 8.7: nobody says "not me" to a request that went to all."""

SUPPRESS_POSITIVE = 0x80
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
class Downloads:
    """What a part can do with a download.

    `block_bytes` is its maxNumberOfBlockLength (service and counter counted, clause 14.2). `pipelined`: a
    block is answered before it is programmed, and the next one received meanwhile. `deflate`: format
    0x10 is raw deflate in a window of 4 KiB.
    """

    block_bytes: int = 4095
    pipelined: bool = False
    deflate: bool = False

    def __post_init__(self) -> None:
        if not 6 <= self.block_bytes <= 0xFFFF:
            raise ConfigError(f"block_bytes is {self.block_bytes}, not 6 to 65535")


@dataclass(frozen=True, kw_only=True)
class EcuIdentity:
    """What the part says of itself."""

    kind: str
    hardware: str
    serial: str = "SIM-0001"


def require_length(body: bytes, size: int) -> None:
    """Refuse another length with 0x13."""
    if len(body) != size:
        raise Refused(Nrc.INCORRECT_LENGTH)
