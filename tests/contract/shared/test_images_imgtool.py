"""Our verdict on MCUboot images beside imgtool's: never laxer, and stricter only where a class says why.

imgtool's verdict is `imgtool verify` (imgtool.image.Image.verify): the hash, and with a key the signature.
"""

from __future__ import annotations

import hashlib
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from imgtool import keys
from imgtool.image import Image, VerifyResult
from imgtool.version import decode_version

from shared.images import mcuboot
from shared.images.mcuboot import BadMcubootImage, McubootSlot, judge_mcuboot, read_mcuboot
from sim.mcu.mcuboot_images import HEADER_BYTES, build_mcuboot_image

CODE = 1024
GOOD = build_mcuboot_image(version="1.2.3", nbytes=CODE, slot_base=0x0801_0000, security_counter=7)
PROTECTED = HEADER_BYTES + CODE
AREA = PROTECTED + 12

# What imgtool lets pass and we don't: class -> what our refusal says.
STRICTER = {
    "sizes that no image has": ("offset 0x8: header of", "offset 0xc:"),
    "an encrypted image's hash is of the plain text": ("encrypted",),
    "protected TLVs that the header does not announce": ("protected TLVs announced", "this TLV area has"),
    "entries beyond their area": ("reaches beyond its area", "bytes left in the area", "TLVs of"),
    "more than one hash, or one of a type with a stray second byte": ("hashes among the TLVs",),
    "a security counter that is no protected word": ("one protected TLV",),
    "a signature of another length than its kind has": ("signature behind the hash",),
    "bytes behind the image that nothing covers": ("behind the TLVs is neither",),
    "endless TLVs": ("more than 64 TLVs",),
}


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def ours(image: bytes) -> str | None:
    try:
        read_mcuboot(image)
    except BadMcubootImage as error:
        return str(error)
    return None


def theirs(image: bytes, folder: Path, key: Any = None) -> str | None:
    """None when imgtool finds nothing wrong. What it raises on nonsense are Python's errors, of any kind."""
    path = folder / "image.bin"
    path.write_bytes(image)
    try:
        result, *_ = Image.verify(str(path), key)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None if result is VerifyResult.OK else str(result)


def tlv(kind: int, payload: bytes) -> bytes:
    return mcuboot.TLV.pack(kind, len(payload)) + payload


def rehash(image: bytes) -> bytes:
    """The hash made right again where it is expected; the rest of the image stays as it is."""
    return image[: AREA + 8] + hashlib.sha256(image[:AREA]).digest() + image[AREA + 40 :]


def put(at: int, value: bytes) -> Callable[[bytes], bytes]:
    return lambda image: image[:at] + value + image[at + len(value) :]


def rehashed(at: int, value: bytes) -> Callable[[bytes], bytes]:
    return lambda image: rehash(put(at, value)(image))


def with_tlv(entry: bytes) -> Callable[[bytes], bytes]:
    """One more entry in the unprotected area."""

    def change(image: bytes) -> bytes:
        total = struct.pack("<H", 4 + 36 + len(entry))
        return image[: AREA + 2] + total + image[AREA + 4 :] + entry

    return change


BOTH_REFUSE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "header cut": lambda image: image[:31],
    "magic": put(0, b"\0"),
    "payload size": put(12, struct.pack("<I", CODE + 4)),
    "payload beyond the file": put(12, b"\xff\xff\xff\x7f"),
    "code": put(700, b"\x00\x99"),
    "version": put(20, b"\x09"),
    "flags": put(16, b"\x20"),
    "security counter": put(PROTECTED + 8, b"\xff"),
    "protected magic": put(PROTECTED, b"\x09"),
    "area magic": put(AREA, b"\x08"),
    "area beyond the file": put(AREA + 2, b"\xff\0"),
    "area cut": lambda image: image[:-1],
    "hash": lambda image: image[:-1] + bytes([image[-1] ^ 1]),
    "hash of another kind": put(AREA + 4, b"\x11"),
    "no hash": put(AREA + 4, b"\x01"),
    "no TLVs": lambda image: image[: AREA + 2] + b"\4\0",
    "cut before the TLVs": lambda image: image[:PROTECTED],
}
ONLY_WE_REFUSE: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "short header": (
        "sizes that no image has",
        rehashed(8, struct.pack("<HHI", 16, 12, CODE + HEADER_BYTES - 16)),
    ),
    "no payload": ("sizes that no image has", rehashed(8, struct.pack("<HHI", HEADER_BYTES + CODE, 12, 0))),
    "encrypted": ("an encrypted image's hash is of the plain text", rehashed(16, b"\x04")),
    "protected size zero": ("protected TLVs that the header does not announce", rehashed(10, b"\0\0")),
    "protected size other": ("protected TLVs that the header does not announce", rehashed(10, b"\x08\0")),
    "protected entry beyond": ("entries beyond their area", rehashed(PROTECTED + 6, b"\x40\0")),
    "a second hash": (
        "more than one hash, or one of a type with a stray second byte",
        with_tlv(tlv(0x12, b"")),
    ),
    "type's second byte": (
        "more than one hash, or one of a type with a stray second byte",
        put(AREA + 5, b"\x01"),
    ),
    "counter unprotected": ("a security counter that is no protected word", with_tlv(tlv(0x50, bytes(4)))),
    "signature cut": ("a signature of another length than its kind has", with_tlv(tlv(0x24, bytes(63)))),
    "bytes behind": ("bytes behind the image that nothing covers", lambda image: image + b"\0"),
    "endless TLVs": ("endless TLVs", with_tlv(tlv(0xA0, b"") * 64)),
}


def test_both_take_a_good_image(folder: Path) -> None:
    assert ours(GOOD) is None
    assert theirs(GOOD, folder) is None


@pytest.mark.parametrize("change", BOTH_REFUSE.values(), ids=BOTH_REFUSE.keys())
def test_both_refuse(folder: Path, change: Callable[[bytes], bytes]) -> None:
    raw = change(GOOD)
    assert theirs(raw, folder) is not None
    assert ours(raw) is not None


@pytest.mark.parametrize(("why", "change"), ONLY_WE_REFUSE.values(), ids=ONLY_WE_REFUSE.keys())
def test_only_we_refuse_and_a_class_says_why(
    folder: Path, why: str, change: Callable[[bytes], bytes]
) -> None:
    raw = change(GOOD)
    assert theirs(raw, folder) is None
    assert any(said in str(ours(raw)) for said in STRICTER[why]), ours(raw)


def compare(raw: bytes, folder: Path) -> None:
    mine, other = ours(raw), theirs(raw, folder)
    if mine is None:
        assert other is None, f"what we take, imgtool takes: {other}"
    elif other is None:
        assert any(word in mine for words in STRICTER.values() for word in words), f"no class: {mine}"


FLIP = st.tuples(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
HEADERS = st.one_of(st.integers(0, 31), st.integers(PROTECTED, len(GOOD) - 1))


@settings(max_examples=300)
@given(st.lists(FLIP, min_size=1, max_size=4))
def test_any_flipped_bytes(folder: Path, flips: list[tuple[int, int]]) -> None:
    raw = bytearray(GOOD)
    for at, mask in flips:
        raw[at] ^= mask
    compare(bytes(raw), folder)


@settings(max_examples=300)
@given(st.lists(st.tuples(HEADERS, st.integers(1, 255)), min_size=1, max_size=3))
def test_any_flipped_bytes_of_the_headers_under_a_right_hash(
    folder: Path, flips: list[tuple[int, int]]
) -> None:
    raw = bytearray(GOOD)
    for at, mask in flips:
        raw[at] ^= mask
    compare(rehash(bytes(raw)), folder)


@settings(max_examples=100)
@given(st.integers(0, len(GOOD)), st.binary(max_size=64))
def test_any_cut_and_any_tail(folder: Path, length: int, tail: bytes) -> None:
    compare(GOOD[:length] + tail, folder)


KINDS: dict[str, tuple[Callable[[], Any], str]] = {
    "ecdsa": (keys.ECDSA256P1.generate, "sha256"),
    "ed25519": (keys.Ed25519.generate, "sha256"),
    "rsa2048": (lambda: keys.RSA.generate(2048), "sha256"),
    "rsa3072": (lambda: keys.RSA.generate(3072), "sha256"),
}


def made(folder: Path, key: Any, **options: Any) -> bytes:
    """An image that imgtool itself makes and signs."""
    plain, signed = folder / "plain.bin", folder / "signed.bin"
    plain.write_bytes(bytes(range(256)) * 4)
    image = Image(
        **{"version": decode_version("4.5.6+78"), "header_size": 512, "pad_header": True, "slot_size": 32768}
        | options
    )
    image.load(str(plain))
    image.create(key, "hash", None)
    image.save(str(signed))
    return signed.read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_what_imgtool_signs_is_read_as_it_was_signed(folder: Path, kind: str) -> None:
    generate, hash_kind = KINDS[kind]
    key = generate()
    raw = made(folder, key, security_counter=9)
    image = read_mcuboot(raw)
    assert theirs(raw, folder, key) is None
    assert (image.version, image.security_counter, image.signatures) == ("4.5.6+78", 9, (kind,))
    assert (image.header_bytes, image.payload_bytes, image.hash_kind) == (512, 1024, hash_kind)
    judge_mcuboot(image, McubootSlot(slot_bytes=32768, signature=kind, least_security_counter=9))
    changed = bytearray(raw)
    changed[600] ^= 1
    assert theirs(bytes(changed), folder, key) is not None
    assert ours(bytes(changed)) is not None


def test_a_signature_by_another_key_is_for_the_bootloader_to_refuse(folder: Path) -> None:
    """The one thing that imgtool with a key sees and we, without one, don't claim to."""
    raw = made(folder, keys.Ed25519.generate())
    assert theirs(raw, folder, keys.Ed25519.generate()) is not None
    assert ours(raw) is None


@pytest.mark.parametrize(
    "options", [{"confirm": True}, {"test": True}, {}], ids=["confirmed", "test", "plain"]
)
@pytest.mark.parametrize("align", [4, 8, 16, 32])
def test_what_imgtool_pads_fits_its_slot_to_the_byte(
    folder: Path, options: dict[str, bool], align: int
) -> None:
    padded = made(folder, None, pad=True, align=align, max_sectors=32, **options)
    image = read_mcuboot(padded)
    assert image.file_bytes == 32768
    slot = McubootSlot(slot_bytes=32768, write_bytes=align, max_sectors=32)
    judge_mcuboot(image, slot)
    trailer = Image(align=align, max_sectors=32)._trailer_size(align, 32, False, None, False, 0)
    assert slot.trailer_bytes == trailer
