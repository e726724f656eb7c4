"""What the bytes of the "stm32-uds" profile say: its identifiers, routines, texts and verdicts.

F1xx identifiers are those of ISO 14229-1 (annex C.1), FFxx routines those of annex F.1; FDxx and 02xx
are the profile's own.
"""

from __future__ import annotations

from datetime import UTC, datetime

from firmware_flashers.base import BadImage, FirmwareImage, FlashError, NotProved, WrongEcu
from firmware_flashers.refusals import BadAnswer

DID_VERSION = 0xF189
DID_HARDWARE = 0xF191
DID_KIND = 0xF197
DID_FINGERPRINT = 0xF15A
DID_IMAGE_SHA256 = 0xFD00
DID_IN_BOOTLOADER = 0xFD01

PRECONDITIONS = 0x0203
ERASE = 0xFF00
CHECK_MEMORY = 0x0202
CHECK_DEPENDENCIES = 0xFF01


def fingerprint(image: FirmwareImage) -> bytes:
    """Who wrote, when and what: at most 32 ASCII bytes."""
    return f"quarry {datetime.now(UTC):%Y%m%d} {image.spec.sha256[:12]}".encode("ascii")


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
    """What the bootloader finds wrong with the firmware that it holds now."""
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
            return BadImage("the bootloader refuses the image's vector table")
        case _:
            return FlashError(f"the bootloader's check gives an unknown status {status.hex() or 'none'}")
