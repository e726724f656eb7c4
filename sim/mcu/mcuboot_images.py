"""MCUboot images to flash: a Cortex-M image (sim/mcu/images.py) between header and TLVs, hashed, unsigned."""

from __future__ import annotations

import hashlib
import struct

from shared.images import mcuboot
from sim.mcu.images import BadImageRequest, build_image

HEADER_BYTES = 512  # keeps the vector table where VTOR can point to it


def build_mcuboot_image(
    *, version: str, nbytes: int, slot_base: int, security_counter: int | None = None
) -> bytes:
    """An image that starts at `slot_base`, with `nbytes` bytes of code and data behind its header.

    `version` is major.minor.revision; the same arguments give the same bytes. Raises BadImageRequest.
    """
    try:
        major, minor, revision = (int(part) for part in version.split("."))
        words = struct.pack("<BBHI", major, minor, revision, 0)
    except (ValueError, struct.error) as error:
        raise BadImageRequest(
            f"version {version[:80]!r} is not three small numbers", advice="Give a version such as 1.2.3."
        ) from error
    protected = b""
    if security_counter is not None:
        entry = mcuboot.TLV.pack(mcuboot.SECURITY_COUNTER, mcuboot.SECURITY_COUNTER_BYTES)
        protected = _area(mcuboot.PROTECTED_INFO_MAGIC, entry + struct.pack("<I", security_counter))
    header = struct.pack("<IIHHII", mcuboot.MAGIC, 0, HEADER_BYTES, len(protected), nbytes, 0) + words
    image = (
        header.ljust(HEADER_BYTES, b"\0") + build_image(version, nbytes, slot_base + HEADER_BYTES) + protected
    )
    digest = hashlib.sha256(image).digest()
    return image + _area(mcuboot.INFO_MAGIC, mcuboot.TLV.pack(0x10, len(digest)) + digest)


def _area(magic: int, entries: bytes) -> bytes:
    return mcuboot.TLV_INFO.pack(magic, mcuboot.TLV_INFO.size + len(entries)) + entries
