"""Reads and judges an MCUboot image (STM32 and others), before a byte of it is sent.

Layout, little-endian (mcu-tools/mcuboot, `boot/bootutil/include/bootutil/image.h` and docs/design.md): a
header of 32 bytes, padded to `ih_hdr_size`; the payload; optionally protected TLVs; TLVs. The hash covers all
up to the unprotected TLVs. Who signed is for the bootloader to check, which holds the key; here it is only
seen that a signature of a known kind and length is there.

Stricter than the bootloader on purpose: an image without a hash, an encrypted one (its hash is of the plain
text, which is not here), a security counter outside the protected TLVs (nobody signed it), and bytes behind
the TLVs that are neither erased flash nor a trailer are refused.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

from shared.images.stm32 import BadImageLayout

MAGIC = 0x96F3B83D
HEADER = struct.Struct("<IIHHIIBBHI4x")
TLV_INFO = struct.Struct("<HH")  # magic, length of the area with this
TLV = struct.Struct("<HH")  # type, length without this
INFO_MAGIC, PROTECTED_INFO_MAGIC = 0x6907, 0x6908
MOST_TLVS = 64

F_ENCRYPTED = 0x4 | 0x8
F_NON_BOOTABLE = 0x10

HASHES = {0x10: "sha256", 0x11: "sha384", 0x12: "sha512"}
SIGNATURES = {0x20: "rsa2048", 0x22: "ecdsa", 0x23: "rsa3072", 0x24: "ed25519"}
SIGNATURE_BYTES = {"rsa2048": (256, 256), "ecdsa": (8, 144), "rsa3072": (384, 384), "ed25519": (64, 64)}
SECURITY_COUNTER = 0x50
SECURITY_COUNTER_BYTES = 4

TRAILER_MAGIC_BYTES = 16
TRAILER_MAGIC = bytes.fromhex("77c295f360d2ef7f3552500f2cb67980")
# With a write size above 8 the first two bytes are that size.
TRAILER_MAGIC_ALIGNED = bytes.fromhex("2de15d29410b8d77679c110f1f8a")
TRAILER_WORDS = 4  # swap size, swap info, copy done, image ok
STATUS_STATES = 3
ERASED = 0xFF


class BadMcubootImage(BadImageLayout):
    """MCUboot would not start the image from this slot."""

    advice = "Sign the image with imgtool for this slot (imgtool sign --slot-size ... --header-size ...)."


@dataclass(frozen=True, kw_only=True)
class Tlv:
    """One entry of a TLV area: `length` bytes at `offset` in the image."""

    kind: int
    offset: int
    length: int
    protected: bool


@dataclass(frozen=True, kw_only=True)
class McubootImage:
    """What an image says of itself, its hash being right.

    The payload (for an STM32 a vector table and code) is `payload_bytes` bytes at `header_bytes`; `length`
    counts everything up to the last TLV, `file_bytes` with the erased flash and trailer behind it, if any.
    """

    version: str
    load_address: int
    header_bytes: int
    payload_bytes: int
    flags: int
    tlvs: tuple[Tlv, ...]
    hash_kind: str
    hash: str
    security_counter: int | None
    signatures: tuple[str, ...]
    length: int
    file_bytes: int


@dataclass(frozen=True, kw_only=True)
class McubootSlot:
    """Where the image goes and what the bootloader there asks for.

    `write_bytes` and `max_sectors` size the trailer (BOOT_MAX_ALIGN, BOOT_MAX_IMG_SECTORS);
    `least_security_counter` is what the part has stored; `signature` the kind that the bootloader checks.
    None asks for nothing.
    """

    slot_bytes: int
    write_bytes: int = 8
    max_sectors: int = 128
    overwrite_only: bool = False
    header_bytes: int | None = None
    least_security_counter: int | None = None
    signature: str | None = None

    @property
    def trailer_bytes(self) -> int:
        """Bytes at the slot's end that the bootloader writes itself (bootutil, boot_trailer_sz)."""
        alignment = max(8, self.write_bytes)
        magic = -(-TRAILER_MAGIC_BYTES // alignment) * alignment
        if self.overwrite_only:
            return 2 * alignment + magic
        return self.max_sectors * STATUS_STATES * self.write_bytes + TRAILER_WORDS * alignment + magic


def read_mcuboot(data: bytes) -> McubootImage:
    """The image's own words, once its structure and hash are found right. Raises BadMcubootImage."""
    if len(data) < HEADER.size:
        raise BadMcubootImage(f"{len(data)} bytes end within the header of {HEADER.size}")
    magic, load, header, protected, size, flags, major, minor, revision, build = HEADER.unpack_from(data)
    if magic != MAGIC:
        raise BadMcubootImage(f"offset 0x0: magic {magic:#010x}, an MCUboot image has {MAGIC:#010x}")
    if header < HEADER.size:
        raise BadMcubootImage(f"offset 0x8: header of {header} bytes, it has at least {HEADER.size}")
    if not size or header + size + protected + TLV_INFO.size > len(data):
        raise BadMcubootImage(
            f"offset 0xc: {header} + {size} + {protected} bytes and TLVs don't fit in a file of {len(data)}"
        )
    if flags & F_ENCRYPTED:
        raise BadMcubootImage(
            "offset 0x10: encrypted; its hash is of the plain text and can't be checked here"
        )
    covered = header + size
    tlvs: list[Tlv] = []
    if protected:
        covered = _read_area(data, covered, PROTECTED_INFO_MAGIC, tlvs)
        if covered != header + size + protected:
            raise BadMcubootImage(
                f"offset 0xa: {protected} bytes of protected TLVs announced, "
                f"{covered - header - size} are at {header + size:#x}"
            )
    length = _read_area(data, covered, INFO_MAGIC, tlvs)
    hash_kind, digest = _hash(data, covered, tlvs)
    return McubootImage(
        version=f"{major}.{minor}.{revision}+{build}",
        load_address=load,
        header_bytes=header,
        payload_bytes=size,
        flags=flags,
        tlvs=tuple(tlvs),
        hash_kind=hash_kind,
        hash=digest.hex(),
        security_counter=_security_counter(data, tlvs),
        signatures=_signatures(tlvs),
        length=length,
        file_bytes=_whole(data, length),
    )


def judge_mcuboot(image: McubootImage, slot: McubootSlot) -> None:
    """Raises BadMcubootImage that says why the bootloader would not start the image from `slot`."""
    if image.flags & F_NON_BOOTABLE:
        raise BadMcubootImage("offset 0x10: the image is marked as not bootable")
    if slot.header_bytes is not None and image.header_bytes != slot.header_bytes:
        raise BadMcubootImage(
            f"offset 0x8: header of {image.header_bytes} bytes, the bootloader expects {slot.header_bytes}"
        )
    room = slot.slot_bytes - slot.trailer_bytes
    if image.length > room:
        raise BadMcubootImage(
            f"the image has {image.length} bytes, the slot of {slot.slot_bytes} holds {room} "
            f"beside its trailer of {slot.trailer_bytes}"
        )
    if image.file_bytes > slot.slot_bytes:
        raise BadMcubootImage(f"the file has {image.file_bytes} bytes, the slot {slot.slot_bytes}")
    floor = slot.least_security_counter
    if floor is not None and (image.security_counter is None or image.security_counter < floor):
        raise BadMcubootImage(
            f"security counter {image.security_counter} is below {floor}, which the part holds"
        )
    if slot.signature is not None and slot.signature not in image.signatures:
        found = ", ".join(image.signatures) or "none"
        raise BadMcubootImage(f"signature {found}, the bootloader checks {slot.signature}")


def _read_area(data: bytes, start: int, expected: int, tlvs: list[Tlv]) -> int:
    """Append the entries of the TLV area at `start`; returns where it ends."""
    if start + TLV_INFO.size > len(data):
        raise BadMcubootImage(f"offset {start:#x}: the file ends before its TLVs")
    magic, total = TLV_INFO.unpack_from(data, start)
    if magic != expected:
        raise BadMcubootImage(f"offset {start:#x}: magic {magic:#06x}, this TLV area has {expected:#06x}")
    end: int = start + total
    if total < TLV_INFO.size or end > len(data):
        raise BadMcubootImage(
            f"offset {start + 2:#x}: TLVs of {total} bytes, the file has {len(data) - start}"
        )
    at: int = start + TLV_INFO.size
    while at < end:
        if len(tlvs) == MOST_TLVS:
            raise BadMcubootImage(f"offset {at:#x}: more than {MOST_TLVS} TLVs")
        if at + TLV.size > end:
            raise BadMcubootImage(f"offset {at:#x}: {end - at} bytes left in the area are no TLV")
        kind, length = TLV.unpack_from(data, at)
        at += TLV.size
        if at + length > end:
            raise BadMcubootImage(
                f"offset {at - TLV.size:#x}: TLV {kind:#x} of {length} bytes reaches beyond its area, "
                f"which ends at {end:#x}"
            )
        tlvs.append(Tlv(kind=kind, offset=at, length=length, protected=expected == PROTECTED_INFO_MAGIC))
        at += length
    return end


def _hash(data: bytes, covered: int, tlvs: list[Tlv]) -> tuple[str, bytes]:
    found = [tlv for tlv in tlvs if tlv.kind in HASHES]
    if len(found) != 1 or found[0].protected:
        raise BadMcubootImage(f"offset {covered:#x}: {len(found)} hashes among the TLVs, an image has one")
    (tlv,) = found
    kind = HASHES[tlv.kind]
    digest = hashlib.new(kind, memoryview(data)[:covered]).digest()
    if data[tlv.offset : tlv.offset + tlv.length] != digest:
        raise BadMcubootImage(
            f"offset {tlv.offset:#x}: the {kind} is not that of the {covered} bytes before the TLVs"
        )
    return kind, digest


def _security_counter(data: bytes, tlvs: list[Tlv]) -> int | None:
    found = [tlv for tlv in tlvs if tlv.kind == SECURITY_COUNTER]
    if not found:
        return None
    tlv = found[0]
    if len(found) > 1 or not tlv.protected or tlv.length != SECURITY_COUNTER_BYTES:
        raise BadMcubootImage(
            f"offset {tlv.offset:#x}: a security counter is one protected TLV of "
            f"{SECURITY_COUNTER_BYTES} bytes"
        )
    return int.from_bytes(data[tlv.offset : tlv.offset + tlv.length], "little")


def _signatures(tlvs: list[Tlv]) -> tuple[str, ...]:
    kinds = []
    for tlv in tlvs:
        if tlv.kind not in SIGNATURES:
            continue
        kind = SIGNATURES[tlv.kind]
        least, most = SIGNATURE_BYTES[kind]
        if tlv.protected or not least <= tlv.length <= most:
            raise BadMcubootImage(
                f"offset {tlv.offset:#x}: {tlv.length} bytes are no {kind} signature behind the hash"
            )
        kinds.append(kind)
    return tuple(kinds)


def _whole(data: bytes, length: int) -> int:
    """All bytes of the file: behind the image is nothing, erased flash, or that and a trailer."""
    rest = bytearray(data[length:])
    magic = bytes(rest[-TRAILER_MAGIC_BYTES:])
    if magic == TRAILER_MAGIC or magic[2:] == TRAILER_MAGIC_ALIGNED:
        alignment = 8 if magic == TRAILER_MAGIC else max(8, int.from_bytes(magic[:2], "little"))
        # "Image ok" stands one aligned word before the magic: 1 in a confirmed image, else erased.
        image_ok = len(rest) + TRAILER_MAGIC_BYTES // -alignment * alignment - alignment
        if image_ok >= 0 and rest[image_ok] == 1:
            rest[image_ok] = ERASED
        del rest[-TRAILER_MAGIC_BYTES:]
    stray = len(rest) - len(rest.lstrip(bytes([ERASED])))
    if stray < len(rest):
        raise BadMcubootImage(
            f"offset {length + stray:#x}: behind the TLVs is neither erased flash nor a trailer"
        )
    return len(data)
