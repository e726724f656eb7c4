"""What an ECU with two slots may say of them, and what is not believed."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from firmware_flashers.base import FlashError, NotNow
from firmware_flashers.uds import UdsClient
from firmware_flashers.uds_profile import PROFILES, UdsTiming
from firmware_flashers.uds_slots import Slots
from firmware_flashers.uds_words import ImageState

GOOD = (0x11_0000, 0x10_0000, 0x21_4000, 0x4000)


class Says:
    """A transport of an ECU that answers every request by `answer`."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self._next: bytes | None = None

    def send(self, payload: bytes, *, timeout_s: float) -> None:
        self._next = self.answer(payload)

    def receive(self, timeout_s: float) -> bytes | None:
        answer, self._next = self._next, None
        return answer

    def send_single(self, payload: bytes) -> None: ...


def slots_that_say(value: bytes) -> Slots:
    client = UdsClient(Says(lambda asked: b"\x62" + asked[1:] + value), UdsTiming())
    return Slots(client, PROFILES["esp32-uds"])


def test_the_passive_slot_and_its_document() -> None:
    place = slots_that_say(struct.pack(">IIII", *GOOD)).place()
    assert (place.slot.start, place.slot.end) == (0x11_0000, 0x21_0000)
    assert place.document is not None
    assert (place.document.start, place.document.end) == (0x21_4000, 0x21_8000)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        struct.pack(">IIII", *GOOD)[:-1],
        struct.pack(">IIII", *GOOD) + b"\x00",
        struct.pack(">IIII", 0x8000, 0x10_0000, 0x21_4000, 0x4000),
        struct.pack(">IIII", 0x11_0001, 0x10_0000, 0x21_4000, 0x4000),
        struct.pack(">IIII", 0x11_0000, 0x10_0001, 0x21_4000, 0x4000),
        struct.pack(">IIII", 0x11_0000, 0, 0x21_4000, 0x4000),
        struct.pack(">IIII", 0x11_0000, 0xFFFF_F000, 0x21_4000, 0x4000),
        struct.pack(">IIII", 0x11_0000, 0x10_0000, 0x20_F000, 0x4000),
        struct.pack(">IIII", 0x11_0000, 0x10_0000, 0xE000, 0x2000),
    ],
    ids=["none", "short", "long", "bootloader", "odd", "part", "empty", "huge", "overlap", "otadata"],
)
def test_a_place_that_can_not_be_is_not_believed(raw: bytes) -> None:
    with pytest.raises(FlashError) as caught:
        slots_that_say(raw).place()
    assert caught.value.code == "bad_answer"


@pytest.mark.parametrize("raw", [b"", b"\x02", b"\xff", b"\x00\x00"])
def test_a_running_slot_is_0_or_1(raw: bytes) -> None:
    with pytest.raises(FlashError):
        slots_that_say(raw).running()


@pytest.mark.parametrize("raw", [b"", b"\x05", b"\x80", b"\x02\x00"])
def test_an_unknown_state_is_not_believed(raw: bytes) -> None:
    with pytest.raises(FlashError):
        slots_that_say(raw).state()
    assert slots_that_say(b"\xff").state() is ImageState.UNDEFINED


def test_numbers_of_another_length_are_not_believed() -> None:
    slots = slots_that_say(b"\x00\x00\x00")
    with pytest.raises(FlashError, match="has 3 bytes"):
        slots.target(slots_that_say(struct.pack(">IIII", *GOOD)).place())


def test_no_way_back_is_named() -> None:
    client = UdsClient(Says(lambda asked: bytes([0x7F, asked[0], 0x22])), UdsTiming())
    with pytest.raises(NotNow) as caught:
        Slots(client, PROFILES["esp32-uds"]).roll_back()
    assert caught.value.code == "nothing_to_return_to"


def test_a_confirmation_with_another_status_is_none() -> None:
    client = UdsClient(Says(lambda asked: b"\x71" + asked[1:] + b"\x01"), UdsTiming())
    with pytest.raises(FlashError) as caught:
        Slots(client, PROFILES["esp32-uds"]).confirm()
    assert caught.value.code == "not_proved"
