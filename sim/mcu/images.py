"""Cortex-M images to flash: real vector table, real Thumb code, and bytes that don't compress.

Layout: 16 system vectors and 48 interrupt vectors (ARMv7-M ARM, B1.5.3), then the code, then at
`VERSION_OFFSET` the mark and the version, then filler made from version and size alone.
"""

from __future__ import annotations

import hashlib
import struct

from shared.errors import OtaError
from sim.mcu.memory import DEFAULT_MAP, Area

VECTORS = 64
CODE_OFFSET = VECTORS * 4
VERSION_OFFSET = 0x180
VERSION_MARK = b"QUARRYFW"
MOST_VERSION_BYTES = 64
FILLER_OFFSET = VERSION_OFFSET + len(VERSION_MARK) + MOST_VERSION_BYTES
LEAST_BYTES = 1024

# Counts in RAM for ever, as the pulse of a living application, and stops in any fault.
_RESET = struct.pack(
    "<8HI",
    0x4803,  # ldr  r0, [pc, #12]   ; the counter's address, below
    0x2100,  # movs r1, #0
    0x6001,  # str  r1, [r0]
    0x6801,  # ldr  r1, [r0]        ; loop:
    0x3101,  # adds r1, #1
    0x6001,  # str  r1, [r0]
    0xE7FB,  # b    loop
    0xBF00,  # nop
    DEFAULT_MAP.ram.start,
)
_FAULT = struct.pack("<H", 0xE7FE)  # b .


class BadImageRequest(OtaError):
    """No image can be built like that."""

    code = "bad_image_request"
    advice = "Give a version of 1 to 64 ASCII characters and at least 1024 bytes, a multiple of 4."


def build_image(version: str, nbytes: int, slot_base: int) -> bytes:
    """An image of `nbytes` bytes that starts at `slot_base`; the same arguments give the same bytes.

    Raises BadImageRequest.
    """
    mark = version.encode("ascii", "replace")
    if mark.decode("ascii") != version or not 1 <= len(mark) <= MOST_VERSION_BYTES:
        raise BadImageRequest(f"version {version[:80]!r} is not 1 to {MOST_VERSION_BYTES} ASCII characters")
    if nbytes < LEAST_BYTES or nbytes % 4:
        raise BadImageRequest(f"{nbytes} bytes: an image has at least {LEAST_BYTES}, a multiple of 4")
    # VTOR takes addresses aligned to the table's size (ARMv7-M ARM, B3.2.5).
    if slot_base % 512 or not 0 <= slot_base < 2**32:
        raise BadImageRequest(f"base {slot_base:#x} is no place for a vector table: align it to 512")
    reset = (slot_base + CODE_OFFSET) | 1
    fault = (slot_base + CODE_OFFSET + len(_RESET)) | 1
    vectors = [DEFAULT_MAP.ram.end, reset] + [fault] * (VECTORS - 2)
    # Reserved by the architecture.
    for number in (7, 8, 9, 10, 13):
        vectors[number] = 0
    head = struct.pack(f"<{VECTORS}I", *vectors) + _RESET + _FAULT
    head = head.ljust(VERSION_OFFSET, b"\xff") + VERSION_MARK + mark.ljust(MOST_VERSION_BYTES, b"\0")
    filler = hashlib.shake_256(b"%s/%d" % (mark, nbytes)).digest(nbytes - len(head))
    return head + filler


def vectors_fit(head: bytes, *, slot: Area, ram: Area, length: int) -> bool:
    """Whether an image of `length` bytes at the slot's start could be started.

    Its first eight bytes are `head`: initial stack pointer in (RAM start, RAM end], eight-byte aligned
    (AAPCS), and a reset vector that is odd (Thumb) and lies inside the image, behind the vectors.
    """
    if len(head) < 8 or length < 8:
        return False
    stack, reset = struct.unpack_from("<II", head)
    if not ram.start < stack <= ram.end or stack % 8:
        return False
    return bool(reset & 1) and slot.start + 8 <= reset & ~1 < slot.start + min(length, slot.size)
