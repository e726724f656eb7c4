"""Firmware files of every format become the same bytes at the same place; each fault is named."""

from __future__ import annotations

import struct
from collections.abc import Callable

import bincopy
import pytest

from shared.images import formats
from shared.images.formats import BadImageFile, FlatImage, read

BASE = 0x0801_0000
DATA = bytes(range(256)) * 3 + b"tail"
SEGMENT = struct.Struct("<8I")
SECTION = struct.Struct("<10I")
PT_LOAD, PT_NOTE = 1, 4
PROGBITS, NOBITS, ALLOC = 1, 8, 2


def ihex_record(kind: int, offset: int, payload: bytes) -> str:
    body = bytes([len(payload)]) + offset.to_bytes(2, "big") + bytes([kind]) + payload
    return f":{body.hex().upper()}{-sum(body) & 0xFF:02X}"


def srec_record(kind: int, address: int, width: int, payload: bytes = b"") -> str:
    body = bytes([width + len(payload) + 1]) + address.to_bytes(width, "big") + payload
    return f"S{kind}{body.hex().upper()}{~sum(body) & 0xFF:02X}"


def text(*records: str) -> bytes:
    return "\n".join((*records, "")).encode()


END = ihex_record(1, 0, b"")
FOUR = ihex_record(0, 0x0000, b"abcd")
LINEAR = ihex_record(4, 0, b"\x08\x01")


def elf(
    segments: list[tuple[int, int, bytes]],
    *,
    sections: list[tuple[int, int, int, int]] | None = None,
    entry: int = BASE | 1,
    machine: int = 40,
    kind: int = 2,
    ident: bytes = b"\x7fELF\x01\x01\x01",
    phnum: int | None = None,
    shnum: int | None = None,
) -> bytes:
    """ELF32 of (type, load address, bytes) segments and (type, flags, offset, size) sections."""
    start = 52 + SEGMENT.size * len(segments)
    headers, blob = b"", b""
    for ptype, address, data in segments:
        headers += SEGMENT.pack(ptype, start + len(blob), 0x2000_0000, address, len(data), len(data), 5, 4)
        blob += data
    shoff = start + len(blob) if sections is not None else 0
    table = b"".join(SECTION.pack(0, t, f, 0, o, n, 0, 0, 4, 0) for t, f, o, n in sections or [])
    head = ident.ljust(16, b"\0") + struct.pack(
        "<HHIIIIIHHHHHH",
        kind,
        machine,
        1,
        entry,
        52,
        shoff,
        0,
        52,
        SEGMENT.size,
        len(segments) if phnum is None else phnum,
        SECTION.size,
        len(sections or []) if shnum is None else shnum,
        0,
    )
    return head + headers + blob + table


def as_ihex() -> bytes:
    made = bincopy.BinFile()
    made.add_binary(DATA, BASE)
    made.execution_start_address = BASE | 1
    return str(made.as_ihex()).encode()


def as_srec(bits: int = 32) -> Callable[[], bytes]:
    def make() -> bytes:
        made = bincopy.BinFile()
        made.add_binary(DATA, BASE % 2**bits)
        made.execution_start_address = (BASE | 1) % 2**bits
        return str(made.as_srec(address_length_bits=bits)).encode()

    return make


@pytest.mark.parametrize(
    ("make", "form", "base"),
    [
        (as_ihex, "ihex", BASE),
        (as_srec(), "srec", BASE),
        (as_srec(24), "srec", BASE % 2**24),
        (lambda: elf([(PT_LOAD, BASE, DATA)]), "elf", BASE),
    ],
    ids=["ihex", "srec S3", "srec S2", "elf"],
)
def test_every_format_with_addresses_gives_the_same(make: Callable[[], bytes], form: str, base: int) -> None:
    raw = make()
    image = read(raw)
    assert (image.base, image.data, image.entry, image.format) == (base, DATA, base | 1, form)
    assert image.end == base + len(DATA)
    assert read(raw.replace(b"\n", b"\r\n") if form != "elf" else raw) == image
    assert read(raw, base=base) == image
    with pytest.raises(BadImageFile, match="not at 0x08000000"):
        read(raw, base=0x0800_0000)


def test_a_raw_binary_needs_its_base() -> None:
    assert read(DATA, base=BASE) == FlatImage(base=BASE, data=DATA, entry=None, format="binary")
    with pytest.raises(BadImageFile, match="needs a base address"):
        read(DATA)
    with pytest.raises(BadImageFile, match="not a 32-bit address"):
        read(DATA, base=2**32)
    with pytest.raises(BadImageFile, match="beyond 32-bit"):
        read(DATA, base=2**32 - 16)


@pytest.mark.parametrize("raw", [b":not a record\n", b"S3", b":", b"\n:zz", b"\x7fEL"])
def test_what_only_looks_like_a_format_is_a_binary(raw: bytes) -> None:
    assert read(raw, base=BASE).format == "binary"


def test_parts_are_sorted_and_gaps_filled() -> None:
    raw = text(
        LINEAR,
        ihex_record(0, 0x20, b"later"),
        ihex_record(0, 0x10, b"early"),
        ihex_record(3, 0, b"\0\0\0\0"),
        END,
    )
    assert read(raw) == FlatImage(
        base=BASE + 0x10, data=b"early" + b"\xff" * 11 + b"later", entry=None, format="ihex"
    )
    segmented = text(ihex_record(2, 0, b"\x10\x00"), FOUR, END)
    assert read(segmented).base == 0x1_0000


def test_an_elf_is_taken_by_load_address_and_without_its_own_header() -> None:
    """The linker put the headers into the first segment; what objcopy takes are the sections."""
    code, data = b"code" * 8, b"data" * 4
    start = 52 + 2 * SEGMENT.size
    raw = elf(
        [(PT_LOAD, BASE, code), (PT_LOAD, BASE + 0x40, data), (PT_NOTE, 0, b"note")],
        sections=[
            (PROGBITS, ALLOC, start + SEGMENT.size, len(code)),
            (PROGBITS, ALLOC, start + SEGMENT.size + len(code), len(data)),
            (PROGBITS, 0, 0, 52),
            (NOBITS, ALLOC, start, 0x4000),
        ],
    )
    assert read(raw).data == code + b"\xff" * 32 + data
    wide = bytearray(raw)
    struct.pack_into("<6I", wide, 52, PT_LOAD, 0, 0, BASE - start - SEGMENT.size, start + 128, start + 128)
    assert read(bytes(wide)).base == BASE
    twin = bincopy.BinFile()
    twin.add_elf(raw)
    assert [(part.minimum_address, bytes(part.data)) for part in twin.segments] == [
        (BASE, code),
        (BASE + 0x40, data),
    ]


FAULTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "ihex: no end": (text(FOUR), "cut off"),
    "ihex: only an end": (text(END), "no data"),
    "ihex: behind the end": (text(FOUR, END, FOUR), "line 3: a record behind"),
    "ihex: checksum": (text(FOUR, FOUR[:-1] + "0", END), "line 2: expected crc"),
    "ihex: length": (text(FOUR, ":0500000061626364F6", END), "line 2: .*wrong size"),
    "ihex: odd digits": (text(FOUR, FOUR + "0", END), "line 2"),
    "ihex: no digits": (text(FOUR, ":zz", END), "line 2: .* is no record"),
    "ihex: spaces within": (text(FOUR, ":04 000000 61626364 72", END), "line 2: .* is no record"),
    "ihex: another file's line": (text(FOUR, srec_record(1, 0, 2, b"x"), END), "line 2: .* is no record"),
    "ihex: twice": (
        text(FOUR, ihex_record(0, 2, b"xy"), END),
        "line 2: the bytes at 0x00000002 are given twice",
    ),
    "ihex: twice the same": (text(FOUR, FOUR, END), "given twice"),
    "ihex: unknown type": (text(FOUR, ihex_record(6, 0, b""), END), "line 2: unknown record type 6"),
    "ihex: short address": (
        text(ihex_record(4, 0, b"\x08"), FOUR, END),
        "line 1: a record of type 4 has 2 bytes",
    ),
    "ihex: end with bytes": (text(FOUR, ihex_record(1, 0, b"x")), "line 2: a record of type 1 has 0 bytes"),
    "ihex: over 64 KiB": (text(ihex_record(0, 0xFFFE, b"abcd"), END), "line 1: .*cross a 64 KiB border"),
    "ihex: wide gap": (
        text(LINEAR, FOUR, ihex_record(4, 0, b"\x1f\xff"), FOUR, END),
        "line 4: .* bytes between 0x08010004 and 0x1fff0000",
    ),
    "ihex: a line without end": (text(FOUR) + b":" + b"0" * 2000, "line 2: 2001 characters"),
    "srec: no end": (text(srec_record(1, 0, 2, b"abcd")), "cut off"),
    "srec: count": (
        text(srec_record(1, 0, 2, b"abcd"), srec_record(5, 2, 2), srec_record(9, 0, 2)),
        "line 2: 2 data",
    ),
    "srec: behind the end": (
        text(srec_record(1, 0, 2, b"ab"), srec_record(9, 0, 2), srec_record(1, 2, 2, b"cd")),
        "line 3: a record behind",
    ),
    "srec: checksum": (
        text(srec_record(1, 0, 2, b"ab")[:-2] + "00", srec_record(9, 0, 2)),
        "line 1: expected crc",
    ),
    "srec: S4": (
        text(srec_record(1, 0, 2, b"ab"), srec_record(4, 0, 2), srec_record(9, 0, 2)),
        "line 2: expected record",
    ),
    "srec: beyond 32 bits": (
        text(srec_record(3, 0xFFFF_FFFE, 4, b"abcd"), srec_record(7, 0, 4)),
        "line 1: 0xfffffffe . 4 bytes is beyond",
    ),
    "srec: nothing": (text(srec_record(0, 0, 2, b"head"), srec_record(9, 0, 2)), "no data"),
    "elf: 64-bit": (elf([(PT_LOAD, BASE, DATA)], ident=b"\x7fELF\x02\x01\x01"), "64-bit ELF|damaged"),
    "elf: big-endian": (elf([(PT_LOAD, BASE, DATA)], ident=b"\x7fELF\x01\x02\x01"), "32-bit little-endian"),
    "elf: Xtensa": (elf([(PT_LOAD, BASE, DATA)], machine=94), "made for EM_XTENSA"),
    "elf: object file": (elf([(PT_LOAD, BASE, DATA)], kind=1), "ET_REL is not linked"),
    "elf: no segments": (elf([]), "no data"),
    "elf: only notes": (elf([(PT_NOTE, BASE, DATA)]), "no data"),
    "elf: cut off": (elf([(PT_LOAD, BASE, DATA)])[:-1], "its bytes end at 0x358, the file at 0x357"),
    "elf: cut in its header": (elf([(PT_LOAD, BASE, DATA)])[:40], "damaged"),
    "elf: cut in its table": (elf([(PT_LOAD, BASE, DATA)])[:60], "damaged"),
    "elf: endless segments": (elf([(PT_LOAD, BASE, DATA)], phnum=0xFFFE), "65534 program headers"),
    "elf: endless sections": (
        elf([(PT_LOAD, BASE, DATA)], sections=[], shnum=0xFFFE),
        "65534 section headers",
    ),
    "elf: overlap": (elf([(PT_LOAD, BASE, DATA), (PT_LOAD, BASE + 4, DATA)]), "given twice"),
    "elf: far apart": (
        elf([(PT_LOAD, BASE, DATA), (PT_LOAD, 0x2000_0000, DATA)]),
        "at most 1048576 are filled",
    ),
    "elf: beyond 32 bits": (elf([(PT_LOAD, 2**32 - 4, DATA)]), "beyond 32-bit"),
}


@pytest.mark.parametrize(("raw", "said"), FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_is_named(raw: bytes, said: str) -> None:
    with pytest.raises(BadImageFile, match=said) as caught:
        read(raw)
    assert caught.value.code == "bad_image"


def test_a_segment_larger_in_the_file_than_in_memory_is_refused() -> None:
    raw = bytearray(elf([(PT_LOAD, BASE, DATA)]))
    struct.pack_into("<I", raw, 52 + 20, 4)
    with pytest.raises(BadImageFile, match="but 0x4 in memory"):
        read(bytes(raw))


def test_a_section_across_a_segments_end_is_refused() -> None:
    raw = elf([(PT_LOAD, BASE, DATA)], sections=[(PROGBITS, ALLOC, 84, len(DATA) + 4)])
    with pytest.raises(BadImageFile, match="reaches beyond it"):
        read(raw)


def test_bounds_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    scattered = text(*(ihex_record(0, 2 * number, b"x") for number in range(10)), END)
    monkeypatch.setattr(formats, "MOST_PARTS", 9)
    with pytest.raises(BadImageFile, match="line 10: more than 9 separate parts"):
        read(scattered)
    monkeypatch.setattr(formats, "MOST_IMAGE_BYTES", 8)
    with pytest.raises(BadImageFile, match="line 3: more than 8 bytes"):
        read(text(*(ihex_record(0, 4 * number, b"abcd") for number in range(4)), END))
    with pytest.raises(BadImageFile, match="is over 8 bytes"):
        read(text(ihex_record(0, 0, b"a"), ihex_record(0, 32, b"b"), END))
    monkeypatch.setattr(formats, "MOST_FILE_BYTES", 4)
    with pytest.raises(BadImageFile, match="at most 4 are read"):
        read(DATA, base=0)
