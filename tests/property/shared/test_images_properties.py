"""Whatever bytes come, the readers of image files end in an image or in a named refusal."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import bincopy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from intelhex import IntelHex

from shared.images import formats
from shared.images.esp import read_esp
from shared.images.formats import BadImageFile, read
from shared.images.mcuboot import read_mcuboot
from shared.images.stm32 import BadImageLayout
from sim.mcu.esp_images import build_esp_image
from sim.mcu.mcuboot_images import build_mcuboot_image

BASE = 0x0800_0000
READERS: dict[str, Callable[[bytes], object]] = {"file": read, "esp": read_esp, "mcuboot": read_mcuboot}


def elf_file() -> bytes:
    """Two segments and two sections; the layout of the headers is that of tests/unit/shared."""
    words = (
        b"\x7fELF\x01\x01\x01"
        + bytes(9)
        + bytes.fromhex("0200280001000000")
        + (BASE | 1).to_bytes(4, "little")
    )
    words += (52).to_bytes(4, "little") + (0xB4).to_bytes(4, "little") + bytes(4)
    words += bytes.fromhex("3400 2000 0200 2800 0200 0000")
    for address, offset in ((BASE, 0x74), (BASE + 0x40, 0x94)):
        fields = (1, offset, 0x2000_0000, address, 32, 32, 5, 4)
        words += b"".join(field.to_bytes(4, "little") for field in fields)
    words += bytes(range(64))
    for offset in (0x74, 0x94):
        section = (0, 1, 2, 0, offset, 32, 0, 0, 4, 0)
        words += b"".join(field.to_bytes(4, "little") for field in section)
    return words


def text_files() -> dict[str, bytes]:
    made = bincopy.BinFile()
    made.add_binary(bytes(range(256)), BASE)
    made.add_binary(b"later", BASE + 0x1_0000)
    made.execution_start_address = BASE | 1
    return {"ihex": str(made.as_ihex()).encode(), "srec": str(made.as_srec()).encode()}


SEEDS = {
    "elf": elf_file(),
    "esp": build_esp_image(version="1", nbytes=1024),
    "mcuboot": build_mcuboot_image(version="1.0.0", nbytes=1024, slot_base=BASE, security_counter=1),
    **text_files(),
}


def test_the_seeds_are_good() -> None:
    assert read(SEEDS["elf"]).data == bytes(range(32)) + b"\xff" * 32 + bytes(range(32, 64))
    assert read(SEEDS["ihex"]).data == read(SEEDS["srec"]).data


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS.keys())
@settings(max_examples=200)
@given(raw=st.binary(max_size=300))
def test_any_bytes(reader: Callable[[bytes], object], raw: bytes) -> None:
    with suppress(BadImageLayout):
        reader(raw)


@pytest.mark.parametrize("seed", SEEDS.values(), ids=SEEDS.keys())
@settings(max_examples=300)
@given(data=st.data())
def test_any_damage(seed: bytes, data: st.DataObject) -> None:
    raw = bytearray(seed)
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(raw)) | st.just(len(raw)))
    for reader in READERS.values():
        with suppress(BadImageLayout):
            reader(bytes(raw[:cut]))


PARTS = st.lists(
    st.tuples(st.integers(0, 0x3_0000), st.binary(min_size=1, max_size=64)),
    min_size=1,
    max_size=8,
)


@settings(max_examples=200)
@given(PARTS, st.booleans(), st.sampled_from([1, 7, 16, 32]))
def test_what_other_writers_write_is_read_as_written(
    parts: list[tuple[int, bytes]], srec: bool, width: int
) -> None:
    """bincopy or intelhex write, in any order of parts; a model in a dict says what must come out."""
    model: dict[int, int] = {}
    written = bincopy.BinFile()
    hexed = IntelHex()
    for offset, chunk in parts:
        if any(BASE + offset + at in model for at in range(len(chunk))):
            continue
        model |= {BASE + offset + at: byte for at, byte in enumerate(chunk)}
        written.add_binary(chunk, BASE + offset)
        hexed.puts(BASE + offset, chunk)
    low, high = min(model), max(model)
    expected = bytes(model.get(at, 0xFF) for at in range(low, high + 1))
    if srec:
        raw = str(written.as_srec(number_of_data_bytes=width)) + "S70500000000FA\n"
    else:
        stream = _Text()
        hexed.write_hex_file(stream, byte_count=width)
        raw = stream.text
    image = read(raw.encode())
    assert (image.base, image.data) == (low, expected)


class _Text:
    """The file object that intelhex writes to."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        self.text += text


@settings(max_examples=200)
@given(PARTS)
def test_bytes_given_twice_are_always_refused(parts: list[tuple[int, bytes]]) -> None:
    taken: set[int] = set()
    twice = False
    records = [":0200000408" + "00F2"]
    for offset, chunk in parts:
        at = offset & 0xFF80
        spot = set(range(at, at + len(chunk)))
        twice = twice or bool(spot & taken)
        taken |= spot
        body = bytes([len(chunk)]) + at.to_bytes(2, "big") + b"\0" + chunk
        records.append(f":{body.hex()}{-sum(body) & 0xFF:02x}")
    raw = "\n".join([*records, ":00000001FF", ""]).encode()
    if twice:
        with pytest.raises(BadImageFile, match="given twice"):
            read(raw)
    else:
        assert len(read(raw).data) == max(taken) - min(taken) + 1
    assert len(raw) < formats.MOST_FILE_BYTES
