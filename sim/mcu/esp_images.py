"""ESP-IDF application images to flash: valid header, descriptor, checksum, hash; bytes that don't compress.

Two segments, as a small application has them: constants mapped from flash, which begin with the application
descriptor, and code that is loaded into RAM (layout: shared/images/esp.py).
"""

from __future__ import annotations

import hashlib
import struct

from shared.images import esp
from sim.mcu.images import BadImageRequest

CODE_BYTES = 256
LEAST_BYTES = 1024
MOST_TEXT_BYTES = 31
WP_PIN_DISABLED = 0xEE
# (mapped constants, code in RAM) of each chip: esptool, `targets`.
_PLACES = {
    0: (0x3F40_0000, 0x4008_0000),
    2: (0x3F00_0000, 0x4002_8000),
    5: (0x3C00_0000, 0x4038_0000),
    9: (0x3C00_0000, 0x4037_8000),
    13: (0x4200_0000, 0x4080_0000),
}


def build_esp_image(
    *,
    version: str,
    nbytes: int,
    chip_id: int = 0,
    secure_version: int = 0,
    project_name: str = "quarry",
    min_revision: int = 0,
    max_revision: int = 399,
) -> bytes:
    """An application of `nbytes` bytes, its SHA-256 included; the same arguments give the same bytes.

    Raises BadImageRequest.
    """
    for text in (version, project_name):
        if not text.isascii() or not text.isprintable() or not 1 <= len(text) <= MOST_TEXT_BYTES:
            raise BadImageRequest(
                f"{text[:80]!r} is not 1 to {MOST_TEXT_BYTES} printable ASCII characters",
                advice="Give version and project name of 1 to 31 ASCII characters.",
            )
    if nbytes < LEAST_BYTES or nbytes % esp.CHECKSUM_ALIGNMENT:
        raise BadImageRequest(
            f"{nbytes} bytes: an image has at least {LEAST_BYTES}, a multiple of {esp.CHECKSUM_ALIGNMENT}",
            advice="Give at least 1024 bytes, a multiple of 16.",
        )
    constants_at, code_at = _PLACES.get(chip_id, _PLACES[0])
    seed = f"{project_name}/{version}/{chip_id}/{secure_version}/{nbytes}".encode()
    header = struct.pack(
        "<BBBBIB3xHBHH4xB",
        esp.MAGIC,
        2,
        2,  # DIO
        0x20,  # 4 MiB at 40 MHz
        code_at,
        WP_PIN_DISABLED,
        chip_id,
        0,
        min_revision,
        max_revision,
        1,
    )
    descriptor = esp.APP_DESCRIPTOR.pack(
        esp.APP_DESCRIPTOR_MAGIC,
        secure_version,
        version.encode(),
        project_name.encode(),
        b"12:00:00",
        b"Nov 25 2026",
        b"v5.3.1",
        hashlib.sha256(seed).digest(),
    )
    body = nbytes - esp.HASH_BYTES
    room = body - 1 - len(header) - 2 * esp.SEGMENT.size - CODE_BYTES
    filler = hashlib.shake_256(seed).digest(room // 4 * 4 + CODE_BYTES)
    code, filler = filler[:CODE_BYTES], filler[CODE_BYTES:]
    constants = descriptor.ljust(esp.APP_DESCRIPTOR_BYTES, b"\0")
    constants += filler[len(constants) :]
    # Constants are mapped in place, so that their address and their offset agree in the lower 16 bits.
    image = header + esp.SEGMENT.pack(constants_at + esp.APP_DESCRIPTOR_OFFSET, len(constants)) + constants
    image += esp.SEGMENT.pack(code_at, CODE_BYTES) + code
    image = image.ljust(body - 1, b"\0") + bytes([esp.xor_checksum([constants, code])])
    return image + hashlib.sha256(image).digest()
