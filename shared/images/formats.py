"""Reads a firmware file, whatever its format, into one run of bytes at one address.

Intel HEX (Intel, "Hexadecimal Object File Format Specification", 1988), Motorola S-record, ELF (by its load
addresses, LMA, as `objcopy` does) and raw binary; the content tells which. bincopy reads the records,
pyelftools the ELF. What those libraries let pass is refused here: a file that was cut off, bytes that are
given twice, parts too far apart, and anything that would cost more memory than the bounds below.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import bincopy
from elftools.common.utils import struct_parse
from elftools.elf.constants import SH_FLAGS
from elftools.elf.elffile import ELFFile

from shared.images.stm32 import BadImageLayout

Format = Literal["ihex", "srec", "elf", "binary"]

MOST_FILE_BYTES = 64 * 1024 * 1024
MOST_IMAGE_BYTES = 16 * 1024 * 1024
MOST_GAP_BYTES = 1024 * 1024  # farther apart are option bytes or RAM, which are no part of an image
MOST_PARTS = 4096
MOST_ELF_HEADERS = 1024
MOST_LINE_BYTES = 600  # the longest record has 255 bytes, 2 characters each
ERASED = b"\xff"
HIGHEST = 2**32

_ELF_MAGIC = b"\x7fELF"
_IHEX_LINE = re.compile(rb":[0-9A-Fa-f]{10,}")
_SREC_LINE = re.compile(rb"S[0-9][0-9A-Fa-f]{8,}")
_IHEX_DATA, _IHEX_END, _IHEX_SEGMENT, _IHEX_START_SEGMENT, _IHEX_LINEAR, _IHEX_START_LINEAR = range(6)
_IHEX_LENGTHS = {
    _IHEX_END: 0,
    _IHEX_SEGMENT: 2,
    _IHEX_START_SEGMENT: 4,
    _IHEX_LINEAR: 2,
    _IHEX_START_LINEAR: 4,
}


class BadImageFile(BadImageLayout):
    """The file is not readable as one image."""

    advice = "Give the .hex, .srec, .elf or .bin that the linker made, for a .bin with its base address."


@dataclass(frozen=True, kw_only=True)
class FlatImage:
    """`data` goes to address `base`; `entry` is what the file names as its start, if it does."""

    base: int
    data: bytes
    entry: int | None
    format: Format

    @property
    def end(self) -> int:
        """The address behind the last byte."""
        return self.base + len(self.data)


def read(data: bytes, *, base: int | None = None) -> FlatImage:
    """The file's bytes, sorted, gaps filled with 0xFF. Raises BadImageFile that says what is wrong and where.

    `base` is where a raw binary goes; a format with addresses of its own must then begin there.
    """
    if not data:
        raise BadImageFile("the file is empty")
    if len(data) > MOST_FILE_BYTES:
        raise BadImageFile(f"the file has {len(data)} bytes, at most {MOST_FILE_BYTES} are read")
    first = data[: 2 * MOST_LINE_BYTES].lstrip().split(b"\n", 1)[0].rstrip()
    if data.startswith(_ELF_MAGIC):
        image = _read_elf(data)
    elif _IHEX_LINE.fullmatch(first):
        image = _read_ihex(data)
    elif _SREC_LINE.fullmatch(first):
        image = _read_srec(data)
    elif base is None:
        raise BadImageFile("neither ELF, Intel HEX nor S-record; a raw binary needs a base address")
    else:
        return _read_binary(data, base)
    if base is not None and image.base != base:
        raise BadImageFile(f"the file begins at {image.base:#010x}, not at {base:#010x}")
    return image


class _Parts:
    """Gathers what goes where, in whatever order a file gives it."""

    def __init__(self) -> None:
        self._parts: list[tuple[int, bytearray, str]] = []
        self._bytes = 0

    def add(self, address: int, data: bytes, where: str) -> None:
        if not data:
            return
        if address + len(data) > HIGHEST:
            raise BadImageFile(f"{where}: {address:#x} + {len(data)} bytes is beyond 32-bit addresses")
        self._bytes += len(data)
        if self._bytes > MOST_IMAGE_BYTES:
            raise BadImageFile(f"{where}: more than {MOST_IMAGE_BYTES} bytes")
        if self._parts and self._parts[-1][0] + len(self._parts[-1][1]) == address:
            self._parts[-1][1].extend(data)
            return
        if len(self._parts) == MOST_PARTS:
            raise BadImageFile(f"{where}: more than {MOST_PARTS} separate parts")
        self._parts.append((address, bytearray(data), where))

    def flat(self, entry: int | None, form: Format) -> FlatImage:
        if not self._parts:
            raise BadImageFile("the file has no data")
        self._parts.sort(key=lambda part: part[0])
        base = self._parts[0][0]
        whole = bytearray()
        for address, data, where in self._parts:
            gap = address - base - len(whole)
            if gap < 0:
                raise BadImageFile(f"{where}: the bytes at {address:#010x} are given twice")
            if gap > MOST_GAP_BYTES:
                raise BadImageFile(
                    f"{where}: {gap} bytes between {base + len(whole):#010x} and {address:#010x}, "
                    f"at most {MOST_GAP_BYTES} are filled"
                )
            if len(whole) + gap + len(data) > MOST_IMAGE_BYTES:
                raise BadImageFile(
                    f"{where}: the image from {base:#010x} on is over {MOST_IMAGE_BYTES} bytes"
                )
            whole += ERASED * gap
            whole += data
        return FlatImage(base=base, data=bytes(whole), entry=entry, format=form)


def _lines(data: bytes, shape: re.Pattern[bytes]) -> Iterator[tuple[str, str]]:
    """Each record of the file and where it stands; blank lines are passed over."""
    for number, line in enumerate(io.BytesIO(data), start=1):
        where = f"line {number}"
        if len(line) > MOST_LINE_BYTES:
            raise BadImageFile(f"{where}: {len(line)} characters are no record")
        record = line.strip()
        if not record:
            continue
        if not shape.fullmatch(record):
            raise BadImageFile(f"{where}: {record[:40]!r} is no record")
        yield record.decode("ascii"), where


def _read_ihex(data: bytes) -> FlatImage:
    parts = _Parts()
    entry: int | None = None
    upper = 0
    ended = False
    for record, where in _lines(data, _IHEX_LINE):
        if ended:
            raise BadImageFile(f"{where}: a record behind the end-of-file record")
        try:
            kind, offset, size, payload = bincopy.unpack_ihex(record)
        except (bincopy.Error, ValueError) as error:
            raise BadImageFile(f"{where}: {error}") from error
        if kind in _IHEX_LENGTHS and size != _IHEX_LENGTHS[kind]:
            raise BadImageFile(
                f"{where}: a record of type {kind} has {_IHEX_LENGTHS[kind]} bytes, not {size}"
            )
        value = int.from_bytes(payload[:4], "big")
        if kind == _IHEX_DATA:
            if offset + size > 0x1_0000:
                raise BadImageFile(f"{where}: {size} bytes at {upper + offset:#010x} cross a 64 KiB border")
            parts.add(upper + offset, payload, where)
        elif kind == _IHEX_END:
            ended = True
        elif kind == _IHEX_SEGMENT:
            upper = value << 4
        elif kind == _IHEX_LINEAR:
            upper = value << 16
        elif kind == _IHEX_START_LINEAR:
            entry = value
        elif kind != _IHEX_START_SEGMENT:  # CS:IP of an 8086: nothing that a Cortex-M starts at
            raise BadImageFile(f"{where}: unknown record type {kind}")
    if not ended:
        raise BadImageFile("the end-of-file record is missing: the file was cut off")
    return parts.flat(entry, "ihex")


def _read_srec(data: bytes) -> FlatImage:
    parts = _Parts()
    entry: int | None = None
    count = 0
    ended = False
    for record, where in _lines(data, _SREC_LINE):
        if ended:
            raise BadImageFile(f"{where}: a record behind the last one, S7, S8 or S9")
        try:
            kind, address, _size, payload = bincopy.unpack_srec(record)
        except (bincopy.Error, ValueError) as error:
            raise BadImageFile(f"{where}: {error}") from error
        match kind:
            case "0":
                pass
            case "1" | "2" | "3":
                parts.add(address, payload, where)
                count += 1
            case "5" | "6":
                if address != count:
                    raise BadImageFile(f"{where}: {address} data records announced, {count} are there")
            case _:
                ended = True
                entry = address or None  # zero is what tools write for "none"
    if not ended:
        raise BadImageFile("the last record, S7, S8 or S9, is missing: the file was cut off")
    return parts.flat(entry, "srec")


def _read_elf(data: bytes) -> FlatImage:
    parts = _Parts()
    try:
        elf = ELFFile(io.BytesIO(data))
        _judge_elf(elf)
        entry = int(elf["e_entry"])
        for address, offset, size, where in _elf_parts(elf):
            parts.add(address, _taken(data, offset, size, where), where)
    except BadImageFile:
        raise
    # The library parses as it goes and lets every kind of error of its own and of Python's through.
    except Exception as error:
        raise BadImageFile(f"the ELF file is damaged: {type(error).__name__}: {error}") from error
    return parts.flat(entry, "elf")


def _taken(data: bytes, offset: int, size: int, where: str) -> bytes:
    if offset + size > len(data):
        raise BadImageFile(f"{where}: its bytes end at {offset + size:#x}, the file at {len(data):#x}")
    return data[offset : offset + size]


def _judge_elf(elf: ELFFile) -> None:
    if elf.elfclass != 32 or not elf.little_endian:
        raise BadImageFile(f"offset 0x4: {elf.elfclass}-bit ELF; a microcontroller's is 32-bit little-endian")
    if elf["e_machine"] != "EM_ARM":
        raise BadImageFile(f"offset 0x12: made for {elf['e_machine']}, not for an ARM core")
    if elf["e_type"] != "ET_EXEC":
        raise BadImageFile(f"offset 0x10: {elf['e_type']} is not linked to addresses; give the linked ELF")
    for what, count in (("program", elf.num_segments()), ("section", elf.num_sections())):
        if count > MOST_ELF_HEADERS:
            raise BadImageFile(f"{count} {what} headers, at most {MOST_ELF_HEADERS} are read")


def _elf_parts(elf: ELFFile) -> Iterator[tuple[int, int, int, str]]:
    """(load address, offset, size, where) of what is loaded: sections; where there are none, whole segments.

    By sections, as objcopy does, since a linker may put the ELF header itself into the first segment.
    """
    sections = [
        (int(header["sh_offset"]), int(header["sh_size"]))
        for header in _elf_headers(elf, "sh", elf.num_sections())
        if header["sh_flags"] & SH_FLAGS.SHF_ALLOC and header["sh_type"] != "SHT_NOBITS" and header["sh_size"]
    ]
    for number, header in enumerate(_elf_headers(elf, "ph", elf.num_segments())):
        if header["p_type"] != "PT_LOAD":
            continue
        start, size, address = (int(header[key]) for key in ("p_offset", "p_filesz", "p_paddr"))
        where = f"segment {number}, at {address:#010x}"
        if size > int(header["p_memsz"]):
            raise BadImageFile(f"{where}: {size:#x} bytes in the file, but {header['p_memsz']:#x} in memory")
        if not sections:
            yield address, start, size, where
            continue
        for offset, length in sections:
            if start <= offset < start + size:
                if offset + length > start + size:
                    raise BadImageFile(f"{where}: a section at {offset:#x} reaches beyond it")
                yield address + offset - start, offset, length, where


def _elf_headers(elf: ELFFile, table: Literal["sh", "ph"], count: int) -> Iterator[Mapping[str, Any]]:
    """The bare headers: the library's own objects read names and strings, whose lengths a file may choose."""
    shape = elf.structs.Elf_Shdr if table == "sh" else elf.structs.Elf_Phdr
    for number in range(count):
        yield struct_parse(shape, elf.stream, elf[f"e_{table}off"] + number * elf[f"e_{table}entsize"])


def _read_binary(data: bytes, base: int) -> FlatImage:
    if not 0 <= base < HIGHEST:
        raise BadImageFile(f"base address {base:#x} is not a 32-bit address")
    parts = _Parts()
    parts.add(base, data, "the binary")
    return parts.flat(None, "binary")
