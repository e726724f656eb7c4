"""Reads and judges an ESP-IDF application image, before a byte of it is sent.

Layout, little-endian (esp-idf `esp_app_format.h` and `esp_image_format.c`, esptool `bin_image.py`): a header
of 24 bytes; segments of `load address u32, length u32, data`; zeros, so that the checksum is the last byte of
a multiple of 16 (XOR of all segment data, seeded with 0xEF); SHA-256 of all before it. A secure boot v2
signature may follow: 0xFF up to a multiple of 4096, then one sector of one to three blocks (espsecure). Who
signed is for the part to check; here the sector must be well formed and about this very image.

Stricter than the bootloader on purpose: without an appended hash, with bytes behind the image, or without the
application descriptor an image is refused, since nothing could be said of what then runs.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from dataclasses import dataclass
from functools import reduce
from operator import xor

from shared.images.stm32 import BadImageLayout

MAGIC = 0xE9
HEADER = struct.Struct("<BBBBI4xHBHH4xB")  # 4x: write-protect pin and drive strengths; 4x: reserved
SEGMENT = struct.Struct("<II")
MOST_SEGMENTS = 16
MOST_FLASH_SIZE = 7  # 128 MiB
MOST_SEGMENT_BYTES = 16 * 1024 * 1024
CHECKSUM_SEED = 0xEF
CHECKSUM_ALIGNMENT = 16
HASH_BYTES = 32

# esp_app_desc_t: at the start of the first segment's data.
APP_DESCRIPTOR = struct.Struct("<II8x32s32s16s16s32s32s")
APP_DESCRIPTOR_OFFSET = HEADER.size + SEGMENT.size
APP_DESCRIPTOR_BYTES = 256
APP_DESCRIPTOR_MAGIC = 0xABCD5432

SIGNATURE_SECTOR = 4096
SIGNATURE_BLOCK = 1216
SIGNATURE_CRC_AT = 1196
SIGNATURE_MAGIC = 0xE7
SIGNATURE_RSA, SIGNATURE_ECDSA = 0x02, 0x03
SIGNATURE_SHA_384 = 1
MOST_SIGNATURES = 3

# esp-idf esp_app_format.h, esp_chip_id_t.
CHIPS = {
    0: "ESP32",
    2: "ESP32-S2",
    5: "ESP32-C3",
    9: "ESP32-S3",
    12: "ESP32-C2",
    13: "ESP32-C6",
    16: "ESP32-H2",
    18: "ESP32-P4",
    20: "ESP32-C61",
    23: "ESP32-C5",
    25: "ESP32-H21",
    28: "ESP32-H4",
    31: "ESP32-E22",
    32: "ESP32-S31",
}
_NO_HIGHEST_REVISION = (0, 0xFFFF)


class BadEspImage(BadImageLayout):
    """The image can't be started by the ESP32 that it is for."""

    advice = "Build the application for this chip, revision and partition (idf.py build; the .bin file)."


@dataclass(frozen=True, kw_only=True)
class EspSegment:
    """`size` bytes of data at `offset` in the image, loaded or mapped to `address`."""

    offset: int
    address: int
    size: int


@dataclass(frozen=True, kw_only=True)
class EspImage:
    """What an image says of itself, its checksum and hash being right.

    Revisions are major * 100 + minor; `max_revision` None is "any". `length` counts everything up to and
    with the appended hash, `sha256`; `signatures` is the number of secure boot v2 blocks behind it;
    `file_bytes` is all of it, which the partition must hold; `flash_bytes` the flash chip that it names.
    """

    chip_id: int
    min_revision: int
    max_revision: int | None
    entry: int
    segments: tuple[EspSegment, ...]
    secure_version: int
    version: str
    project_name: str
    idf_version: str
    app_elf_sha256: str
    length: int
    sha256: str
    signatures: int
    file_bytes: int
    flash_bytes: int


@dataclass(frozen=True, kw_only=True)
class EspTarget:
    """The part and the place: `revision` as above, `secure_version` what its eFuses hold.

    Without a `project_name` any is good, without `flash_bytes` any flash chip.
    """

    chip_id: int
    revision: int
    partition_bytes: int
    secure_version: int
    project_name: str | None = None
    flash_bytes: int | None = None


def read_esp(data: bytes) -> EspImage:
    """The image's own words, once its structure, checksum and hash are found right. Raises BadEspImage."""
    if len(data) < HEADER.size:
        raise BadEspImage(f"{len(data)} bytes end within the header of {HEADER.size}")
    magic, count, _mode, speed_and_size, entry, chip_id, old, least, highest, hashed = HEADER.unpack_from(
        data
    )
    if magic != MAGIC:
        raise BadEspImage(f"offset 0x0: magic {magic:#04x}, an ESP image has {MAGIC:#04x}")
    if not 1 <= count <= MOST_SEGMENTS:
        raise BadEspImage(f"offset 0x1: {count} segments, an image has 1 to {MOST_SEGMENTS}")
    if speed_and_size >> 4 > MOST_FLASH_SIZE:
        raise BadEspImage(f"offset 0x3: flash size {speed_and_size >> 4}, known are 0 to {MOST_FLASH_SIZE}")
    if hashed != 1:
        raise BadEspImage(f"offset 0x17: hash_appended is {hashed}; only images with a SHA-256 are taken")
    segments = _segments(data, count)
    if not any(part.address <= entry < part.address + part.size for part in segments if part.address):
        raise BadEspImage(f"offset 0x4: entry address {entry:#010x} is in no segment that is loaded")
    body = _checksummed(data, segments)
    sha256 = hashlib.sha256(data[:body]).digest()
    if data[body : body + HASH_BYTES] != sha256:
        raise BadEspImage(f"offset {body:#x}: the appended SHA-256 is not that of the {body} bytes before it")
    length = body + HASH_BYTES
    secure_version, version, project, _time, _date, idf, elf = _app_descriptor(data, segments[0])
    # Before ESP-IDF 4.4 a whole number: the major one on ESP32, the minor one on later chips.
    least = max(least, old * 100 if chip_id == 0 else old)
    return EspImage(
        chip_id=chip_id,
        min_revision=least,
        max_revision=None if highest in _NO_HIGHEST_REVISION else highest,
        entry=entry,
        segments=segments,
        secure_version=secure_version,
        version=_text(version, "version", APP_DESCRIPTOR_OFFSET + 16),
        project_name=_text(project, "project_name", APP_DESCRIPTOR_OFFSET + 48),
        idf_version=_text(idf, "idf_ver", APP_DESCRIPTOR_OFFSET + 112),
        app_elf_sha256=elf.hex(),
        length=length,
        sha256=sha256.hex(),
        signatures=_signatures(data, length),
        file_bytes=len(data),
        flash_bytes=1024 * 1024 << (speed_and_size >> 4),
    )


def judge_esp(image: EspImage, target: EspTarget) -> None:
    """Raises BadEspImage that says why `target` could not start the image from its partition."""
    if image.chip_id != target.chip_id:
        raise BadEspImage(
            f"offset 0xc: built for {_chip(image.chip_id)}, the part is {_chip(target.chip_id)}"
        )
    if target.revision < image.min_revision:
        raise BadEspImage(
            f"offset 0xf: needs chip revision {_revision(image.min_revision)} or later, "
            f"the part is {_revision(target.revision)}"
        )
    if image.max_revision is not None and target.revision > image.max_revision:
        raise BadEspImage(
            f"offset 0x11: good up to chip revision {_revision(image.max_revision)}, "
            f"the part is {_revision(target.revision)}"
        )
    if image.file_bytes > target.partition_bytes:
        raise BadEspImage(
            f"the image has {image.file_bytes} bytes, the partition holds {target.partition_bytes}"
        )
    if target.flash_bytes is not None and image.flash_bytes > target.flash_bytes:
        raise BadEspImage(
            f"offset 0x3: built for a flash of {image.flash_bytes} bytes, the part has {target.flash_bytes}"
        )
    if image.secure_version < target.secure_version:
        raise BadEspImage(
            f"offset {APP_DESCRIPTOR_OFFSET + 4:#x}: secure version {image.secure_version} is below "
            f"{target.secure_version}, which the part's eFuses hold"
        )
    if target.project_name is not None and image.project_name != target.project_name:
        raise BadEspImage(
            f"offset {APP_DESCRIPTOR_OFFSET + 48:#x}: project {image.project_name!r}, "
            f"expected {target.project_name!r}"
        )


def xor_checksum(parts: list[bytes]) -> int:
    """The image's checksum byte over the data of its segments."""
    value = CHECKSUM_SEED
    for part in parts:
        # Eight bytes at a time: XOR does not care, and an image has megabytes.
        padded = part.ljust((len(part) + 7) // 8 * 8, b"\0")
        folded = reduce(xor, memoryview(padded).cast("Q"), 0)
        value ^= reduce(xor, folded.to_bytes(8, "little"), 0)
    return value


def _segments(data: bytes, count: int) -> tuple[EspSegment, ...]:
    found: list[EspSegment] = []
    at = HEADER.size
    for number in range(count):
        where = f"offset {at:#x}: segment {number}"
        if at + SEGMENT.size > len(data):
            raise BadEspImage(f"{where}: the image ends within its header, at {len(data):#x}")
        address, size = SEGMENT.unpack_from(data, at)
        if size % 4 or size >= MOST_SEGMENT_BYTES:
            raise BadEspImage(f"{where}: length {size:#x} is not a multiple of 4 below 16 MiB")
        if address + size > 2**32:
            raise BadEspImage(f"{where}: {address:#010x} + {size:#x} is beyond 32-bit addresses")
        at += SEGMENT.size
        if at + size > len(data):
            raise BadEspImage(f"{where}: its {size} bytes reach {at + size:#x}, the image has {len(data):#x}")
        found.append(EspSegment(offset=at, address=address, size=size))
        at += size
    return tuple(found)


def _checksummed(data: bytes, segments: tuple[EspSegment, ...]) -> int:
    """Offset behind the checksum byte."""
    end = segments[-1].offset + segments[-1].size
    body = end + CHECKSUM_ALIGNMENT - end % CHECKSUM_ALIGNMENT
    if body + HASH_BYTES > len(data):
        raise BadEspImage(
            f"offset {end:#x}: checksum and SHA-256 reach {body + HASH_BYTES:#x}, "
            f"the image has {len(data):#x}"
        )
    expected = xor_checksum([data[part.offset : part.offset + part.size] for part in segments])
    if data[body - 1] != expected:
        raise BadEspImage(
            f"offset {body - 1:#x}: checksum {data[body - 1]:#04x}, the segments give {expected:#04x}"
        )
    return body


def _app_descriptor(data: bytes, first: EspSegment) -> tuple[int, bytes, bytes, bytes, bytes, bytes, bytes]:
    at = APP_DESCRIPTOR_OFFSET
    if first.size < APP_DESCRIPTOR_BYTES:
        raise BadEspImage(
            f"offset {at:#x}: the first segment has {first.size} bytes, no application descriptor"
        )
    magic, *rest = APP_DESCRIPTOR.unpack_from(data, at)
    if magic != APP_DESCRIPTOR_MAGIC:
        raise BadEspImage(
            f"offset {at:#x}: magic {magic:#010x}, an application descriptor has {APP_DESCRIPTOR_MAGIC:#010x}"
        )
    return tuple(rest)


def _text(field: bytes, name: str, at: int) -> str:
    value, _, _ = field.partition(b"\0")
    if len(value) == len(field) or not value.isascii() or not value.decode("ascii").isprintable():
        raise BadEspImage(f"offset {at:#x}: {name} {value!r} is not printable ASCII ended by a zero byte")
    return value.decode("ascii")


def _signatures(data: bytes, length: int) -> int:
    """How many secure boot v2 blocks follow an image of `length` bytes."""
    if len(data) == length:
        return 0
    start = (length + SIGNATURE_SECTOR - 1) // SIGNATURE_SECTOR * SIGNATURE_SECTOR
    if len(data) != start + SIGNATURE_SECTOR:
        raise BadEspImage(
            f"offset {length:#x}: {len(data) - length} bytes behind the image are no secure boot v2 "
            f"signature, which would end at {start + SIGNATURE_SECTOR:#x}"
        )
    if data[length:start].strip(b"\xff"):
        raise BadEspImage(f"offset {length:#x}: bytes other than 0xff between the image and its signature")
    content = memoryview(data)[:start]
    found = 0
    while found < MOST_SIGNATURES:
        at = start + found * SIGNATURE_BLOCK
        block = data[at : at + SIGNATURE_BLOCK]
        if block[0] != SIGNATURE_MAGIC:
            break
        _judge_signature(block, at, content)
        found += 1
    rest = start + found * SIGNATURE_BLOCK
    if not found or data[rest:].strip(b"\xff"):
        raise BadEspImage(f"offset {rest:#x}: neither a signature block nor the empty rest of its sector")
    return found


def _judge_signature(block: bytes, at: int, content: memoryview) -> None:
    if block[1] not in (SIGNATURE_RSA, SIGNATURE_ECDSA):
        raise BadEspImage(
            f"offset {at + 1:#x}: signature version {block[1]}, known are 2 (RSA) and 3 (ECDSA)"
        )
    (crc,) = struct.unpack_from("<I", block, SIGNATURE_CRC_AT)
    if crc != zlib.crc32(block[:SIGNATURE_CRC_AT]):
        raise BadEspImage(f"offset {at + SIGNATURE_CRC_AT:#x}: the signature block's CRC-32 is wrong")
    if block[1] == SIGNATURE_ECDSA and block[2] == SIGNATURE_SHA_384:
        digest = hashlib.sha384(content).digest()
    else:
        digest = hashlib.sha256(content).digest()
    if block[4 : 4 + len(digest)] != digest:
        raise BadEspImage(f"offset {at + 4:#x}: the signature is of other bytes than these")


def _chip(chip_id: int) -> str:
    return f"{CHIPS.get(chip_id, 'an unknown chip')} ({chip_id})"


def _revision(revision: int) -> str:
    return f"v{revision // 100}.{revision % 100}"
