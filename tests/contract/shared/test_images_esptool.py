"""Our verdict on ESP images beside esptool's: never laxer, and stricter only where a class says why.

esptool's verdict is what `esptool image-info` checks: that the image can be loaded, and that checksum and
appended hash are right (esptool.bin_image.LoadFirmwareImage).
"""

from __future__ import annotations

import hashlib
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from esptool.bin_image import ELFSection, ESP32FirmwareImage, LoadFirmwareImage
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.images import esp
from shared.images.esp import BadEspImage, read_esp
from sim.mcu.esp_images import build_esp_image

GOOD = build_esp_image(version="1.2.3", nbytes=2048, secure_version=3)

# What esptool lets pass and we don't: class -> what our refusal says.
STRICTER = {
    "an image without a hash proves nothing": "hash_appended is 0",
    "an entry outside of all segments can't start": "entry address",
    "lengths that the ESP-IDF bootloader refuses": "is not a multiple of 4 below 16 MiB",
    "addresses beyond 32 bits": "beyond 32-bit addresses",
    "no application descriptor: a bootloader or a foreign image": "application descriptor",
    "texts that can't be shown or compared": "is not printable ASCII",
    "bytes behind the image that nothing covers": "behind the image are no secure boot v2",
    "a flash size that no bootloader knows": "flash size",
    "no segments at all": "0 segments",
}


def ours(image: bytes) -> str | None:
    try:
        read_esp(image)
    except BadEspImage as error:
        return str(error)
    return None


def theirs(image: bytes) -> str | None:
    """None when esptool finds nothing wrong. What it raises is its own and Python's errors, of any kind."""
    try:
        loaded = LoadFirmwareImage("esp32", image)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if loaded.checksum != loaded.calculate_checksum():
        return "checksum"
    if loaded.append_digest and loaded.stored_digest != loaded.calc_digest:
        return "hash"
    return None


def reseal(image: bytes) -> bytes:
    """Checksum and hash made right again, as far as the image can still be walked."""
    body = bytearray(image[: -esp.HASH_BYTES])
    at, parts = esp.HEADER.size, []
    for _ in range(body[1]):
        if at + esp.SEGMENT.size > len(body):
            break
        _, size = esp.SEGMENT.unpack_from(body, at)
        at += esp.SEGMENT.size
        parts.append(bytes(body[at : at + size]))
        at += size
    body[-1] = esp.xor_checksum(parts)
    return bytes(body) + hashlib.sha256(body).digest()


def put(at: int, value: bytes) -> Callable[[bytes], bytes]:
    return lambda image: image[:at] + value + image[at + len(value) :]


def resealed(at: int, value: bytes) -> Callable[[bytes], bytes]:
    return lambda image: reseal(put(at, value)(image))


BOTH_REFUSE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "header cut": lambda image: image[:20],
    "magic": put(0, b"\xea"),
    "more segments than there are": put(1, b"\x04"),
    "17 segments": put(1, b"\x11"),
    "hash flag": put(23, b"\x07"),
    "segment cut": lambda image: image[:1000],
    "segment beyond the file": put(28, struct.pack("<I", 4096)),
    "a byte of data": put(700, b"\x00"),
    "a byte of code": lambda image: put(len(image) - 100, bytes([image[-100] ^ 1]))(image),
    "checksum": lambda image: put(len(image) - 33, bytes([image[-33] ^ 1]))(image),
    "hash": lambda image: image[:-1] + bytes([image[-1] ^ 1]),
    "hash cut": lambda image: image[:-1],
    "hash gone": lambda image: image[:-32],
    "chip id": put(12, b"\x09\x00"),
    "revision": put(17, b"\x01\x00"),
}
ONLY_WE_REFUSE: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "no hash": ("an image without a hash proves nothing", lambda image: put(23, b"\0")(image)[:-32]),
    "entry": ("an entry outside of all segments can't start", resealed(4, b"\0\0\0\0")),
    "descriptor": ("no application descriptor: a bootloader or a foreign image", resealed(0x20, b"\0")),
    "version": ("texts that can't be shown or compared", resealed(0x30, b"\xff" * 32)),
    "project": ("texts that can't be shown or compared", resealed(0x50, b"a\nb")),
    "a byte behind": ("bytes behind the image that nothing covers", lambda image: image + b"\xff"),
    "flash size": ("a flash size that no bootloader knows", resealed(3, b"\xf0")),
}


def test_both_take_a_good_image() -> None:
    assert ours(GOOD) is None
    assert theirs(GOOD) is None


@pytest.mark.parametrize("change", BOTH_REFUSE.values(), ids=BOTH_REFUSE.keys())
def test_both_refuse(change: Callable[[bytes], bytes]) -> None:
    raw = change(GOOD)
    assert theirs(raw) is not None
    assert ours(raw) is not None


@pytest.mark.parametrize(("why", "change"), ONLY_WE_REFUSE.values(), ids=ONLY_WE_REFUSE.keys())
def test_only_we_refuse_and_a_class_says_why(why: str, change: Callable[[bytes], bytes]) -> None:
    raw = change(GOOD)
    assert theirs(raw) is None
    assert STRICTER[why] in str(ours(raw))


def compare(raw: bytes) -> None:
    mine, other = ours(raw), theirs(raw)
    if mine is None:
        assert other is None, "what we take, esptool takes"
    elif other is None:
        assert any(said in mine for said in STRICTER.values()), f"stricter without a class: {mine}"


FLIPS = st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(1, 255)), min_size=1, max_size=4)


@settings(max_examples=300)
@given(FLIPS)
def test_any_flipped_bytes(flips: list[tuple[int, int]]) -> None:
    raw = bytearray(GOOD)
    for at, mask in flips:
        raw[at] ^= mask
    compare(bytes(raw))


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, 0x120), st.integers(1, 255)), min_size=1, max_size=4))
def test_any_flipped_bytes_of_the_headers_under_a_right_checksum_and_hash(
    flips: list[tuple[int, int]],
) -> None:
    raw = bytearray(GOOD)
    for at, mask in flips:
        raw[at] ^= mask
    compare(reseal(bytes(raw)))


@settings(max_examples=100)
@given(st.integers(0, len(GOOD) + 64), st.binary(max_size=64))
def test_any_cut_and_any_tail(length: int, tail: bytes) -> None:
    compare(GOOD[:length] + tail)


@settings(max_examples=50)
@given(
    st.lists(st.integers(1, 200), min_size=1, max_size=15),
    st.integers(0, 2**32 - 1),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=31),
)
def test_images_that_esptool_makes_are_read_as_they_were_made(
    sizes: list[int], secure: int, version: str
) -> None:
    """esptool lays out and seals the image (ESP32FirmwareImage.save), we read it."""
    made = ESP32FirmwareImage()
    made.flash_size_freq = 0x20
    made.min_rev_full, made.max_rev_full = 100, 399
    made.entrypoint = 0x4008_0000
    descriptor = esp.APP_DESCRIPTOR.pack(
        esp.APP_DESCRIPTOR_MAGIC, secure, version.encode(), b"quarry", b"", b"", b"v5", bytes(32)
    ).ljust(256, b"\0")
    made.segments = [ELFSection(b".flash.appdesc", 0x3F40_0020, descriptor, 0)]
    made.segments += [
        ELFSection(b".iram", 0x4008_0000 + 0x1000 * number, bytes(range(size)) * 3, 0)
        for number, size in enumerate(sizes)
    ]
    raw = made.save(None)
    assert raw is not None
    image = read_esp(raw)
    assert (image.version, image.secure_version, image.entry) == (version, secure, 0x4008_0000)
    assert (image.min_revision, image.max_revision) == (100, 399)
    assert image.length == len(raw)
    loaded = LoadFirmwareImage("esp32", raw)
    assert [(part.address, part.size) for part in image.segments] == [
        (part.addr, len(part.data)) for part in loaded.segments
    ]


def test_what_espsecure_signs_is_taken(tmp_path: Path) -> None:
    """espsecure's own secure boot v2 signature, and one byte of it changed."""
    key, plain, signed = tmp_path / "key.pem", tmp_path / "app.bin", tmp_path / "signed.bin"
    plain.write_bytes(GOOD)
    espsecure = [sys.executable, "-P", "-W", "ignore", "-m", "espsecure"]
    for command in (
        ["generate-signing-key", "--version", "2", "--scheme", "ecdsa256", str(key)],
        ["sign-data", "--version", "2", "--keyfile", str(key), "--output", str(signed), str(plain)],
    ):
        subprocess.run([*espsecure, *command], check=True, capture_output=True, timeout=60)
    raw = signed.read_bytes()
    assert read_esp(raw).signatures == 1
    assert theirs(raw) is None
    changed = bytearray(raw)
    changed[4096 + 40] ^= 1
    assert "CRC-32" in str(ours(bytes(changed)))


def test_image_info_agrees(tmp_path: Path) -> None:
    """The command itself, once: what it prints of a good image is what we read."""
    path = tmp_path / "app.bin"
    path.write_bytes(GOOD)
    command = [sys.executable, "-P", "-W", "ignore", "-m", "esptool", "image-info", str(path)]
    said = subprocess.run(command, check=True, capture_output=True, timeout=60, text=True).stdout
    image = read_esp(GOOD)
    assert f"Validation hash: {image.sha256} (valid)" in said
    assert "(valid)" in said.split("Checksum:")[1].splitlines()[0]
    assert image.version in said
    assert image.app_elf_sha256 in said
