"""otadata entry by entry: the bytes of ESP-IDF, and which slot they choose."""

from __future__ import annotations

import pytest

from sim.mcu.otadata import Entry, ImageState, OtaData, seq_crc

NEW, PENDING, VALID = ImageState.NEW, ImageState.PENDING_VERIFY, ImageState.VALID
INVALID, ABORTED, UNDEFINED = ImageState.INVALID, ImageState.ABORTED, ImageState.UNDEFINED


# As esp-idf's otatool.py and real parts have them.
@pytest.mark.parametrize(("seq", "crc"), [(1, 0x4743989A), (2, 0x55F63774), (3, 0xED4A5011)])
def test_the_crc_is_that_of_esp_idf(seq: int, crc: int) -> None:
    assert seq_crc(seq) == crc


def test_an_entry_has_32_bytes() -> None:
    raw = "01000000" + "ff" * 20 + "02000000" + "9a984347"
    assert Entry(seq=1, state=VALID).encode().hex() == raw
    assert Entry.decode(bytes.fromhex(raw) + b"\xff" * 100) == Entry(seq=1, state=VALID)


@pytest.mark.parametrize(
    "raw",
    [
        "ff" * 32,
        "00" * 32,
        "02000000" + "ff" * 20 + "02000000" + "9a984347",
        "01000000" + "ff" * 20 + "02000000" + "9a984346",
        "ffffffff" + "ff" * 20 + "02000000" + "ffffffff",
    ],
    ids=["erased", "zeros", "the CRC of another number", "a bit", "no number, whatever its CRC"],
)
def test_what_is_no_entry(raw: str) -> None:
    assert Entry.decode(bytes.fromhex(raw)) is None


def test_the_crc_covers_the_number_alone() -> None:
    """So a torn state reads as another state, not as nothing."""
    assert Entry.decode(bytes.fromhex("01000000" + "00" * 20 + "07000000" + "9a984347")) == Entry(
        seq=1, state=7
    )


def data(first: tuple[int, int] | None, second: tuple[int, int] | None) -> OtaData:
    def entry(words: tuple[int, int] | None) -> Entry | None:
        return None if words is None else Entry(seq=words[0], state=words[1])

    return OtaData(entries=(entry(first), entry(second)))


ACTIVE = [
    # first entry, second entry, the sector that decides
    (None, None, None),
    ((1, VALID), None, 0),
    (None, (1, VALID), 1),
    ((1, VALID), (2, NEW), 1),
    ((3, UNDEFINED), (2, VALID), 0),
    ((1, VALID), (2, PENDING), 1),
    ((1, VALID), (2, INVALID), 0),
    ((1, VALID), (2, ABORTED), 0),
    ((3, ABORTED), (2, VALID), 1),
    ((3, ABORTED), (2, INVALID), None),
    ((2, VALID), (2, VALID), 0),
]


@pytest.mark.parametrize(("first", "second", "sector"), ACTIVE)
def test_the_later_entry_that_counts_decides(
    first: tuple[int, int] | None, second: tuple[int, int] | None, sector: int | None
) -> None:
    assert data(first, second).active(lambda _: True) == sector


def test_a_slot_that_is_too_old_is_passed_over() -> None:
    both = data((1, VALID), (2, NEW))
    assert both.active(lambda slot: slot == 0) == 0
    assert both.active(lambda _: False) is None


def test_a_boot_aborts_what_was_not_confirmed() -> None:
    assert data((1, VALID), (2, PENDING)).unconfirmed() == {1: Entry(seq=2, state=ABORTED)}
    assert data((1, PENDING), (2, PENDING)).unconfirmed() == {
        0: Entry(seq=1, state=ABORTED),
        1: Entry(seq=2, state=ABORTED),
    }
    assert data((1, NEW), None).unconfirmed() == {}


CHOICES = [
    # entries, slot to boot, slot to keep, sector written, its number
    (None, None, 1, 0, 0, 2),
    (None, None, 0, 1, 0, 1),
    ((1, VALID), None, 1, 0, 1, 2),
    ((1, VALID), (2, ABORTED), 1, 0, 1, 2),
    ((1, VALID), (2, NEW), 1, 0, 1, 2),
    ((3, VALID), (2, VALID), 1, 0, 1, 4),
    ((1, VALID), (2, VALID), 0, 1, 0, 3),
    (None, (2, VALID), 0, 1, 0, 3),
    ((9, VALID), (2, VALID), 1, 0, 1, 10),
]


@pytest.mark.parametrize(("first", "second", "slot", "keep", "sector", "seq"), CHOICES)
def test_choosing_a_slot_keeps_the_entry_of_the_running_one(
    first: tuple[int, int] | None, second: tuple[int, int] | None, slot: int, keep: int, sector: int, seq: int
) -> None:
    both = data(first, second)
    assert both.choosing(slot, keep_slot=keep, state=NEW) == (sector, Entry(seq=seq, state=NEW))
    entries = list(both.entries)
    entries[sector] = Entry(seq=seq, state=NEW)
    after = OtaData(entries=(entries[0], entries[1]))
    active = after.active(lambda _: True)
    assert active == sector
    assert after.state_of(slot) == NEW
    assert after.state_of(keep) == both.state_of(keep)
