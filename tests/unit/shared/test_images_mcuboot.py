"""The MCUboot judge: each fault of an image, and each way in which it does not fit its slot, is named."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable

import pytest

from shared.images import mcuboot
from shared.images.mcuboot import BadMcubootImage, McubootSlot, judge_mcuboot, read_mcuboot
from shared.images.stm32 import Stm32Layout, judge
from sim.mcu.images import BadImageRequest
from sim.mcu.mcuboot_images import HEADER_BYTES, build_mcuboot_image

BASE = 0x0801_0000
CODE = 2048
GOOD = build_mcuboot_image(version="1.2.3", nbytes=CODE, slot_base=BASE, security_counter=7)
PROTECTED = HEADER_BYTES + CODE
AREA = PROTECTED + 12  # 4 info, 4 + 4 security counter
SLOT = McubootSlot(slot_bytes=64 * 1024, least_security_counter=7, header_bytes=HEADER_BYTES)


def put(at: int, value: bytes) -> Callable[[bytes], bytes]:
    return lambda image: image[:at] + value + image[at + len(value) :]


def assembled(
    protected: bytes | None,
    tlvs: bytes | None = None,
    *,
    flags: int = 0,
    announced: int | None = None,
    padding: bytes = b"",
) -> bytes:
    """An image with these TLVs; None for `tlvs` is just the right hash."""
    area = b"" if protected is None else mcuboot.TLV_INFO.pack(0x6908, 4 + len(protected)) + protected
    size = len(area) if announced is None else announced
    head = bytearray(GOOD[:HEADER_BYTES])
    struct.pack_into("<H", head, 10, size)
    struct.pack_into("<I", head, 16, flags)
    image = bytes(head) + GOOD[HEADER_BYTES:PROTECTED] + area
    entries = tlv(0x10, hashlib.sha256(image).digest()) if tlvs is None else tlvs
    return image + mcuboot.TLV_INFO.pack(0x6907, 4 + len(entries)) + entries + padding


def tlv(kind: int, payload: bytes) -> bytes:
    return mcuboot.TLV.pack(kind, len(payload)) + payload


def hashed(*more: bytes) -> bytes:
    """The hash of an image without protected TLVs, and more entries."""
    head = bytearray(GOOD[:HEADER_BYTES])
    struct.pack_into("<H", head, 10, 0)
    return tlv(0x10, hashlib.sha256(bytes(head) + GOOD[HEADER_BYTES:PROTECTED]).digest()) + b"".join(more)


def test_a_good_image_says_what_it_is() -> None:
    image = read_mcuboot(GOOD)
    judge_mcuboot(image, SLOT)
    assert (image.version, image.security_counter, image.signatures) == ("1.2.3+0", 7, ())
    assert (image.header_bytes, image.payload_bytes, image.length) == (HEADER_BYTES, CODE, len(GOOD))
    assert image.hash_kind == "sha256"
    assert image.hash == hashlib.sha256(GOOD[:AREA]).hexdigest()
    assert [(entry.kind, entry.protected) for entry in image.tlvs] == [(0x50, True), (0x10, False)]
    code = GOOD[image.header_bytes : image.header_bytes + image.payload_bytes]
    start = BASE + image.header_bytes
    judge(
        code, Stm32Layout(slot_start=start, slot_end=start + CODE, ram_start=0x2000_0000, ram_end=0x2002_0000)
    )


def test_an_image_without_a_counter_is_good_where_none_is_asked_for() -> None:
    image = read_mcuboot(build_mcuboot_image(version="1.2.3", nbytes=CODE, slot_base=BASE))
    assert image.security_counter is None
    judge_mcuboot(image, McubootSlot(slot_bytes=64 * 1024))


@pytest.mark.parametrize("version", ["", "1.2", "1.2.x", "256.0.0", "1.2.70000", "-1.0.0"])
def test_what_can_not_be_built_is_refused(version: str) -> None:
    with pytest.raises(BadImageRequest):
        build_mcuboot_image(version=version, nbytes=CODE, slot_base=BASE)


FAULTS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda _: b"", "0 bytes end within the header"),
    "cut in the header": (lambda image: image[:31], "31 bytes end"),
    "magic": (put(0, b"\x3e"), "offset 0x0: magic 0x96f3b83e"),
    "old magic": (put(0, struct.pack("<I", 0x96F3B83C)), "offset 0x0: magic"),
    "short header": (put(8, b"\x1f\0"), "offset 0x8: header of 31 bytes"),
    "no payload": (put(12, b"\0\0\0\0"), "offset 0xc"),
    "payload beyond the file": (put(12, struct.pack("<I", len(GOOD))), "offset 0xc"),
    "payload of 4 GiB": (put(12, b"\xff\xff\xff\xff"), "offset 0xc"),
    "encrypted": (put(16, b"\x04"), "offset 0x10: encrypted"),
    "payload too short": (put(12, struct.pack("<I", CODE - 4)), "offset 0x9fc: magic"),
    "protected magic": (put(PROTECTED, b"\x07"), "offset 0xa00: magic 0x6907, this TLV area has 0x6908"),
    "protected size": (
        lambda _: assembled(tlv(0x50, b"\7\0\0\0"), announced=16),
        "offset 0xa: 16 bytes of protected",
    ),
    "protected not announced": (
        lambda _: assembled(tlv(0x50, b"\7\0\0\0"), announced=0),
        "offset 0xa00: magic 0x6908",
    ),
    "area of 3 bytes": (put(AREA + 2, b"\x03\0"), "offset 0xa0e: TLVs of 3 bytes"),
    "area beyond the file": (put(AREA + 2, b"\xff\xff"), "offset 0xa0e: TLVs of 65535 bytes"),
    "area cut": (lambda image: image[:-1], "offset 0xa0e: TLVs of 40 bytes"),
    "file ends before the area": (lambda image: image[: AREA + 2], "offset 0xa0c: the file ends|offset 0xc"),
    "entry beyond its area": (put(AREA + 6, b"\x21\0"), "TLV 0x10 of 33 bytes reaches beyond its area"),
    "protected entry into the next area": (
        put(PROTECTED + 6, b"\x05\0"),
        "TLV 0x50 of 5 bytes reaches beyond",
    ),
    "half an entry": (lambda _: assembled(None, hashed(b"\x01\0")), "2 bytes left in the area are no TLV"),
    "endless entries": (lambda _: assembled(None, hashed(tlv(0xA0, b"") * 64)), "more than 64 TLVs"),
    "code": (put(600, b"\x99"), "the sha256 is not that of the 2572 bytes"),
    "version": (put(20, b"\x02"), "the sha256 is not that"),
    "counter raised": (put(PROTECTED + 8, b"\xff"), "the sha256 is not that"),
    "hash": (lambda image: image[:-1] + bytes([image[-1] ^ 1]), "the sha256 is not that"),
    "no hash": (lambda _: assembled(None, tlv(0xA0, b"x")), "0 hashes among the TLVs"),
    "no TLVs": (lambda _: assembled(None, b""), "0 hashes"),
    "two hashes": (lambda _: assembled(None, hashed(hashed())), "2 hashes"),
    "short hash": (
        lambda _: assembled(None, hashed()[:2] + b"\x1f\0" + hashed()[4:-1]),
        "the sha256 is not that",
    ),
    "hash only among the protected": (lambda _: assembled(tlv(0x10, bytes(32)), b""), "1 hashes"),
    "counter that nobody signed": (
        lambda _: assembled(None, hashed(tlv(0x50, b"\xff\0\0\0"))),
        "one protected TLV",
    ),
    "counter of 8 bytes": (lambda _: assembled(tlv(0x50, bytes(8))), "one protected TLV of 4"),
    "two counters": (lambda _: assembled(tlv(0x50, bytes(4)) * 2), "one protected TLV"),
    "short RSA": (
        lambda _: assembled(None, hashed(tlv(0x20, bytes(255)))),
        "255 bytes are no rsa2048 signature",
    ),
    "short Ed25519": (
        lambda _: assembled(None, hashed(tlv(0x24, bytes(63)))),
        "63 bytes are no ed25519 signature",
    ),
    "protected signature": (
        lambda _: assembled(tlv(0x24, bytes(64))),
        "64 bytes are no ed25519 signature behind",
    ),
    "bytes behind": (lambda image: image + b"\0", "offset 0xa34: behind the TLVs is neither"),
    "bytes after padding": (lambda image: image + b"\xff" * 60 + b"\0" * 4, "offset 0xa70: behind the TLVs"),
    "torn trailer": (
        lambda image: image + b"\xff" * 32 + mcuboot.TRAILER_MAGIC[1:],
        "behind the TLVs is neither",
    ),
}


@pytest.mark.parametrize(("change", "said"), FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_is_named(change: Callable[[bytes], bytes], said: str) -> None:
    with pytest.raises(BadMcubootImage, match=said) as caught:
        read_mcuboot(change(GOOD))
    assert caught.value.code == "bad_image"


@pytest.mark.parametrize(
    ("kind", "length", "name"),
    [(0x20, 256, "rsa2048"), (0x22, 71, "ecdsa"), (0x23, 384, "rsa3072"), (0x24, 64, "ed25519")],
)
def test_the_kind_of_signature_is_named(kind: int, length: int, name: str) -> None:
    image = read_mcuboot(assembled(None, hashed(tlv(0x01, bytes(32)), tlv(kind, bytes(length)))))
    assert image.signatures == (name,)
    judge_mcuboot(image, McubootSlot(slot_bytes=64 * 1024, signature=name))
    with pytest.raises(BadMcubootImage, match=f"signature {name}, the bootloader checks other"):
        judge_mcuboot(image, McubootSlot(slot_bytes=64 * 1024, signature="other"))


def test_an_unsigned_image_is_refused_where_a_signature_is_checked() -> None:
    with pytest.raises(BadMcubootImage, match="signature none, the bootloader checks ecdsa"):
        judge_mcuboot(read_mcuboot(GOOD), McubootSlot(slot_bytes=64 * 1024, signature="ecdsa"))


def test_a_lower_security_counter_is_refused() -> None:
    with pytest.raises(BadMcubootImage, match="security counter 7 is below 8"):
        judge_mcuboot(read_mcuboot(GOOD), McubootSlot(slot_bytes=64 * 1024, least_security_counter=8))
    bare = read_mcuboot(build_mcuboot_image(version="1.2.3", nbytes=CODE, slot_base=BASE))
    with pytest.raises(BadMcubootImage, match="security counter None is below 0"):
        judge_mcuboot(bare, McubootSlot(slot_bytes=64 * 1024, least_security_counter=0))


def test_another_header_than_the_code_was_linked_behind_is_refused() -> None:
    with pytest.raises(BadMcubootImage, match="header of 512 bytes, the bootloader expects 1024"):
        judge_mcuboot(read_mcuboot(GOOD), McubootSlot(slot_bytes=64 * 1024, header_bytes=1024))


def test_what_is_marked_as_not_bootable_is_refused() -> None:
    image = read_mcuboot(assembled(tlv(0x50, b"\7\0\0\0"), flags=mcuboot.F_NON_BOOTABLE))
    with pytest.raises(BadMcubootImage, match="not bootable"):
        judge_mcuboot(image, SLOT)


@pytest.mark.parametrize(
    ("write", "sectors", "overwrite", "trailer"),
    [
        (8, 128, False, 3120),
        (4, 128, False, 1584),
        (32, 16, False, 1696),
        (8, 128, True, 32),
        (16, 64, False, 3152),
    ],
)
def test_the_trailer_keeps_its_room(write: int, sectors: int, overwrite: bool, trailer: int) -> None:
    """Sizes as imgtool reckons them (Image._trailer_size); tests/contract compares more of them."""
    image = read_mcuboot(GOOD)
    slot = McubootSlot(
        slot_bytes=len(GOOD) + trailer, write_bytes=write, max_sectors=sectors, overwrite_only=overwrite
    )
    assert slot.trailer_bytes == trailer
    judge_mcuboot(image, slot)
    tight = McubootSlot(
        slot_bytes=len(GOOD) + trailer - 1, write_bytes=write, max_sectors=sectors, overwrite_only=overwrite
    )
    with pytest.raises(BadMcubootImage, match=f"beside its trailer of {trailer}"):
        judge_mcuboot(image, tight)


@pytest.mark.parametrize("confirmed", [False, True])
@pytest.mark.parametrize("alignment", [8, 16, 32])
def test_a_padded_image_is_taken(alignment: int, confirmed: bool) -> None:
    magic = mcuboot.TRAILER_MAGIC
    if alignment > 8:
        magic = alignment.to_bytes(2, "little") + mcuboot.TRAILER_MAGIC_ALIGNED
    slot = bytearray(b"\xff" * 65536)
    slot[: len(GOOD)] = GOOD
    slot[-16:] = magic
    if confirmed:
        slot[-max(alignment, 16) - alignment] = 1
    image = read_mcuboot(bytes(slot))
    assert (image.length, image.file_bytes) == (len(GOOD), 65536)
    judge_mcuboot(image, SLOT)
    with pytest.raises(BadMcubootImage, match="the file has 65536 bytes, the slot 65535"):
        judge_mcuboot(image, McubootSlot(slot_bytes=65535))
