"""What the bytes of our UDS profiles say: their identifiers, routines, states, texts and verdicts.

F1xx identifiers are those of ISO 14229-1 (annex C.1), FFxx routines those of annex F.1; FDxx and 02xx
are the profiles' own. Which of them an ECU has, its profile says (see uds_profile).
"""

from __future__ import annotations

from datetime import datetime
from enum import IntEnum

from firmware_flashers.base import BadImage, FlashError, NotProved, WrongEcu
from firmware_flashers.refusals import BadAnswer
from shared.since_310 import UTC

DID_VERSION = 0xF189
DID_HARDWARE = 0xF191
DID_KIND = 0xF197
DID_FINGERPRINT = 0xF15A
DID_IMAGE_SHA256 = 0xFD00
DID_IN_BOOTLOADER = 0xFD01
DID_RUNNING_SLOT = 0xFD02
DID_RUNNING_STATE = 0xFD03
DID_SECURE_VERSION = 0xFD04
DID_CHIP_ID = 0xFD05
DID_CHIP_REVISION = 0xFD06
DID_PASSIVE_SLOT = 0xFD07

PRECONDITIONS = 0x0203
ERASE = 0xFF00
CHECK_MEMORY = 0x0202
CHECK_DEPENDENCIES = 0xFF01
CONFIRM = 0x0210
ROLLBACK = 0x0211

MOST_FINGERPRINT_BYTES = 32


class ImageState(IntEnum):
    """Where the running image is on its way (ESP-IDF, esp_ota_img_states; one byte of DID FD03)."""

    NEW = 0x00
    PENDING_VERIFY = 0x01
    VALID = 0x02
    INVALID = 0x03
    ABORTED = 0x04
    UNDEFINED = 0xFF


def fingerprint(what: str) -> bytes:
    """Who wrote, when and what: at most 32 ASCII bytes."""
    return f"quarry {datetime.now(UTC):%Y%m%d} {what}".encode("ascii")[:MOST_FINGERPRINT_BYTES]


def text(raw: bytes, what: str) -> str:
    """ASCII of an identifier; ECUs fill fixed lengths with zeros or blanks."""
    try:
        found = raw.rstrip(b"\x00 ").decode("ascii")
    except UnicodeDecodeError as error:
        raise BadAnswer(f"the ECU's {what} is no ASCII text: {raw[:32].hex()}") from error
    if not found.isprintable():
        raise BadAnswer(f"the ECU's {what} is no printable text: {raw[:32].hex()}")
    return found


def not_bootable(status: bytes) -> FlashError:
    """What the ECU finds wrong with the firmware that it holds now."""
    match status:
        case b"\x01":
            return NotProved("the bootloader finds no document")
        case b"\x02":
            return BadImage(
                "the bootloader refuses the document's signature",
                code="signature_refused",
                advice="Sign the firmware with a key that this ECU was provisioned with.",
            )
        case b"\x03":
            return WrongEcu("the bootloader says that the firmware is for another kind or hardware")
        case b"\x04":
            return NotProved("the bootloader finds another length or hash than the document says")
        case b"\x05":
            return BadImage("the bootloader finds that the image can't start on this part")
        case b"\x06":
            return BadImage(
                "the ECU refuses the image: its secure version is below the ECU's anti-rollback counter",
                code="secure_version_too_low",
                advice="Build the image with a secure version that is not below the ECU's.",
            )
        case _:
            return FlashError(f"the bootloader's check gives an unknown status {status.hex() or 'none'}")
