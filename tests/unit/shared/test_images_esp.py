"""The ESP judge: each fault of an image, and each way in which it does not fit its part, is named."""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable

import pytest

from shared.images import esp
from shared.images.esp import BadEspImage, EspTarget, judge_esp, read_esp
from sim.mcu.esp_images import build_esp_image
from sim.mcu.images import BadImageRequest

GOOD = build_esp_image(version="1.2.3", nbytes=8192, secure_version=3, min_revision=100, max_revision=399)
TARGET = EspTarget(
    chip_id=0,
    revision=301,
    partition_bytes=8192,
    secure_version=3,
    project_name="quarry",
    flash_bytes=4 * 1024 * 1024,
)


def put(at: int, value: bytes) -> Callable[[bytes], bytes]:
    return lambda image: image[:at] + value + image[at + len(value) :]


def reseal(image: bytes) -> bytes:
    """The same image with a right checksum and hash: what only looks into the content can refuse it."""
    body = bytearray(image[: -esp.HASH_BYTES])
    at, parts = esp.HEADER.size, []
    for _ in range(body[1]):
        _, size = esp.SEGMENT.unpack_from(body, at)
        at += esp.SEGMENT.size
        parts.append(bytes(body[at : at + size]))
        at += size
    body[-1] = esp.xor_checksum(parts)
    return bytes(body) + hashlib.sha256(body).digest()


def signed(image: bytes, *blocks: Callable[[bytes], bytes]) -> bytes:
    """The image with a signature sector of these blocks (their content is not looked at without a key)."""
    content = image + b"\xff" * (-len(image) % 4096)
    return content + b"".join(block(content) for block in blocks).ljust(4096, b"\xff")


def rsa(content: bytes) -> bytes:
    block = struct.pack("<BBxx32s1160x", 0xE7, 2, hashlib.sha256(content).digest())
    return block + struct.pack("<I16x", zlib.crc32(block))


def ecdsa_384(content: bytes) -> bytes:
    block = struct.pack("<BBBx48s1144x", 0xE7, 3, 1, hashlib.sha384(content).digest())
    return block + struct.pack("<I16x", zlib.crc32(block))


def broken(block: Callable[[bytes], bytes], at: int) -> Callable[[bytes], bytes]:
    def make(content: bytes) -> bytes:
        raw = bytearray(block(content))
        raw[at] ^= 1
        return bytes(raw)

    return make


def test_a_good_image_says_what_it_is() -> None:
    image = read_esp(GOOD)
    judge_esp(image, TARGET)
    assert (image.version, image.project_name, image.secure_version) == ("1.2.3", "quarry", 3)
    assert (image.min_revision, image.max_revision, image.chip_id) == (100, 399, 0)
    assert (image.length, image.file_bytes, image.signatures) == (8192, 8192, 0)
    assert image.flash_bytes == 4 * 1024 * 1024
    assert image.sha256 == hashlib.sha256(GOOD[:-32]).hexdigest() == GOOD[-32:].hex()
    assert image.segments[0].offset == 0x20
    assert len(image.app_elf_sha256) == 64


@pytest.mark.parametrize("nbytes", [1024, 1040, 4096, 65536 + 16, 1024 * 1024])
@pytest.mark.parametrize("chip_id", [0, 9, 13])
def test_what_is_built_is_good_and_of_the_size_that_was_asked_for(nbytes: int, chip_id: int) -> None:
    raw = build_esp_image(version="2.0.0-rc1", nbytes=nbytes, chip_id=chip_id)
    assert len(raw) == nbytes
    assert read_esp(raw).chip_id == chip_id
    assert raw == build_esp_image(version="2.0.0-rc1", nbytes=nbytes, chip_id=chip_id)
    assert raw != build_esp_image(version="2.0.0-rc2", nbytes=nbytes, chip_id=chip_id)
    assert len(zlib.compress(raw[512:])) > (len(raw) - 512) * 0.99


@pytest.mark.parametrize(
    ("version", "nbytes"),
    [("", 4096), ("1" * 32, 4096), ("1\n", 4096), ("ж", 4096), ("1", 1008), ("1", 4100)],
)
def test_what_can_not_be_built_is_refused(version: str, nbytes: int) -> None:
    with pytest.raises(BadImageRequest):
        build_esp_image(version=version, nbytes=nbytes)


def second_header() -> int:
    return read_esp(GOOD).segments[1].offset - esp.SEGMENT.size


FAULTS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda _: b"", "0 bytes end within the header"),
    "cut in the header": (lambda image: image[:23], "23 bytes end"),
    "magic": (put(0, b"\xea"), "offset 0x0: magic 0xea"),
    "no segments": (put(1, b"\0"), "offset 0x1: 0 segments"),
    "17 segments": (put(1, b"\x11"), "offset 0x1: 17 segments"),
    "a segment too many": (put(1, b"\x03"), "segment 2"),
    "flash size": (put(3, b"\x80"), "offset 0x3: flash size 8"),
    "no hash": (put(23, b"\0"), "offset 0x17: hash_appended is 0"),
    "hash flag": (put(23, b"\2"), "offset 0x17: hash_appended is 2"),
    "entry nowhere": (put(4, struct.pack("<I", 0x4007_FFFF)), "offset 0x4: entry address 0x4007ffff"),
    "entry behind": (put(4, struct.pack("<I", 0x4008_0100)), "offset 0x4: entry address 0x40080100"),
    "odd segment": (put(28, struct.pack("<I", 1001)), "offset 0x18: segment 0: length 0x3e9"),
    "huge segment": (put(28, struct.pack("<I", 16 * 1024 * 1024)), "segment 0: length 0x1000000"),
    "long segment": (put(28, struct.pack("<I", 8192)), "segment 0: its 8192 bytes reach"),
    "segment over the top": (put(24, struct.pack("<I", 0xFFFF_FFF0)), "beyond 32-bit addresses"),
    "cut in a segment": (lambda image: image[:4000], "segment 0: its .* bytes reach .* has 0xfa0"),
    "cut in a segment's header": (
        lambda image: image[: second_header() + 4],
        "segment 1: the image ends within its header",
    ),
    "cut in the hash": (lambda image: image[:-1], "checksum and SHA-256 reach 0x2000"),
    "data": (put(600, b"\x00"), "offset 0x1fdf: checksum"),
    "checksum": (
        lambda image: put(len(image) - 33, bytes([image[-33] ^ 1]))(image),
        "offset 0x1fdf: checksum",
    ),
    "hash": (
        lambda image: put(len(image) - 1, bytes([image[-1] ^ 1]))(image),
        "offset 0x1fe0: the appended SHA",
    ),
    "two flips that the checksum does not see": (
        lambda image: put(600, bytes([image[600] ^ 8, image[601] ^ 8]))(image),
        "offset 0x1fe0: the appended SHA",
    ),
    "descriptor": (lambda image: reseal(put(0x20, b"\0")(image)), "offset 0x20: magic"),
    "version without end": (lambda image: reseal(put(0x30, b"9" * 32)(image)), "offset 0x30: version"),
    "version of control characters": (
        lambda image: reseal(put(0x30, b"1\x1b[2J")(image)),
        "offset 0x30: version",
    ),
    "project not ASCII": (lambda image: reseal(put(0x50, b"\xd0\xb6")(image)), "offset 0x50: project_name"),
    "bytes behind": (lambda image: image + b"\xff", "1 bytes behind the image are no secure boot"),
    "a sector behind": (lambda image: image + b"\xff" * 4096, "neither a signature block"),
    "a sector of zeros behind": (lambda image: image + b"\0" * 4096, "neither a signature block"),
    "half a sector behind": (lambda image: signed(image, rsa)[:-2048], "no secure boot v2 signature"),
    "signature of other bytes": (lambda image: signed(image, broken(rsa, 4)), "CRC-32 is wrong"),
    "signature version": (
        lambda image: signed(image, lambda content: b"\xe7\x04" + rsa(content)[2:]),
        "offset 0x2001: signature version 4",
    ),
    "signature of another image": (
        lambda image: signed(image, lambda content: rsa(content + b"x")),
        "offset 0x2004: the signature is of other bytes",
    ),
    "something behind the signature": (
        lambda image: signed(image, rsa)[:-1] + b"\0",
        "offset 0x24c0: neither",
    ),
}


@pytest.mark.parametrize(("change", "said"), FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_is_named(change: Callable[[bytes], bytes], said: str) -> None:
    with pytest.raises(BadEspImage, match=said) as caught:
        read_esp(change(GOOD))
    assert caught.value.code == "bad_image"


def test_a_first_segment_without_room_for_a_descriptor_is_refused() -> None:
    header = GOOD[:1] + b"\x01" + GOOD[2:4] + struct.pack("<I", 0x4008_0000) + GOOD[8:24]
    image = header + esp.SEGMENT.pack(0x4008_0000, 64) + bytes(64)
    image = image.ljust(111, b"\0") + bytes([esp.xor_checksum([bytes(64)])])
    with pytest.raises(BadEspImage, match="64 bytes, no application descriptor"):
        read_esp(image + hashlib.sha256(image).digest())


@pytest.mark.parametrize(
    ("blocks", "count"), [((rsa,), 1), ((rsa, ecdsa_384), 2), ((ecdsa_384, rsa, rsa), 3)], ids=["1", "2", "3"]
)
def test_a_signature_sector_is_taken_and_counted(
    blocks: tuple[Callable[[bytes], bytes], ...], count: int
) -> None:
    for nbytes in (8192, 8192 + 16):
        raw = signed(build_esp_image(version="1", nbytes=nbytes), *blocks)
        image = read_esp(raw)
        assert (image.signatures, image.length, image.file_bytes) == (count, nbytes, len(raw))
        with pytest.raises(BadEspImage, match="the partition holds"):
            judge_esp(image, EspTarget(chip_id=0, revision=0, partition_bytes=len(raw) - 1, secure_version=0))


def test_between_image_and_signature_is_only_erased_flash() -> None:
    raw = bytearray(signed(build_esp_image(version="1", nbytes=8192 + 16), rsa))
    raw[8192 + 16] = 0
    with pytest.raises(BadEspImage, match="between the image and its signature"):
        read_esp(bytes(raw))


@pytest.mark.parametrize(
    ("image", "target", "said"),
    [
        ({"chip_id": 9}, {}, r"built for ESP32-S3 \(9\), the part is ESP32 \(0\)"),
        ({}, {"chip_id": 77}, r"the part is an unknown chip \(77\)"),
        ({"min_revision": 302}, {}, "needs chip revision v3.2 or later, the part is v3.1"),
        ({"max_revision": 300}, {}, "good up to chip revision v3.0, the part is v3.1"),
        ({"nbytes": 8208}, {}, "8208 bytes, the partition holds 8192"),
        ({"secure_version": 2}, {}, "offset 0x24: secure version 2 is below 3"),
        ({"project_name": "other"}, {}, "offset 0x50: project 'other', expected 'quarry'"),
        ({}, {"flash_bytes": 2 * 1024 * 1024}, "built for a flash of 4194304 bytes, the part has 2097152"),
    ],
)
def test_an_image_for_another_part_is_refused(
    image: dict[str, int | str], target: dict[str, int], said: str
) -> None:
    asked = {"version": "1", "nbytes": 8192, "secure_version": 3, **image}
    made = read_esp(build_esp_image(**asked))  # type: ignore[arg-type]
    wanted = {
        "chip_id": 0,
        "revision": 301,
        "partition_bytes": 8192,
        "secure_version": 3,
        "project_name": "quarry",
        "flash_bytes": 4 * 1024 * 1024,
    } | target
    with pytest.raises(BadEspImage, match=said):
        judge_esp(made, EspTarget(**wanted))  # type: ignore[arg-type]


@pytest.mark.parametrize("highest", [0, 0xFFFF])
def test_no_highest_revision_means_any(highest: int) -> None:
    """esp-idf, bootloader_common_check_chip_validity: 0 and 65535 are "not set"."""
    image = read_esp(build_esp_image(version="1", nbytes=8192, max_revision=highest))
    assert image.max_revision is None
    judge_esp(image, EspTarget(chip_id=0, revision=999, partition_bytes=8192, secure_version=0))


@pytest.mark.parametrize(("chip_id", "least"), [(0, 300), (5, 3)])
def test_the_old_revision_field_counts_where_it_is_higher(chip_id: int, least: int) -> None:
    raw = reseal(put(14, b"\x03")(build_esp_image(version="1", nbytes=8192, chip_id=chip_id)))
    assert read_esp(raw).min_revision == least
