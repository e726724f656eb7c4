"""The simulated ESP32 is strict: its identifiers, what it lets be programmed, and how it comes back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sim.mcu.esp_boot import Chip
from sim.mcu.faults import Faults
from sim.mcu.flash import PowerCut

NEW, PENDING, VALID = 0, 1, 2
OTA_1, DOC_1 = "00110000", "00214000"

STATES: dict[str, Callable[[Any], object]] = {
    "default": lambda esp: None,
    "extended": lambda esp: esp.ask("1003"),
    "extended, unlocked": lambda esp: esp.unlock(),
    "programming": lambda esp: (esp.ask("1003"), esp.ask("1002")),
    "unlocked": lambda esp: esp.unlock("02"),
    "prepared": lambda esp: esp.prepare(),
}

CASES = [
    ("kind", "default", "22f197", "62f197" + b"brake-controller".hex()),
    ("hardware", "default", "22f191", "62f191" + b"rev-b".hex()),
    ("serial", "default", "22f18c", "62f18c" + b"E-5".hex()),
    ("version", "default", "22f189", "62f189" + b"1.0.0".hex()),
    ("the application runs", "programming", "22fd01", "62fd0100"),
    ("slot", "default", "22fd02", "62fd0200"),
    ("state", "default", "22fd03", "62fd0302"),
    ("secure version", "default", "22fd04", "62fd0400000002"),
    ("chip", "default", "22fd05", "62fd050009"),
    ("revision", "default", "22fd06", "62fd060066"),
    ("passive slot", "default", "22fd07", f"62fd07{OTA_1}00100000{DOC_1}00004000"),
    ("nothing more", "default", "22fd08", "7f2231"),
    ("no programming from the default session", "default", "1002", "7f107e"),
    ("programming at once", "extended", "1002", "5002003201f4"),
    ("access: not in the default session", "default", "2701", "7f277f"),
    ("erase: passive document", "prepared", f"3101ff0044{DOC_1}00004000", "7101ff0000"),
    ("erase: a sector of the passive slot", "prepared", f"3101ff0044{OTA_1}00001000", "7101ff0000"),
    ("erase: half a sector", "prepared", f"3101ff0044{OTA_1}00000800", "7f3131"),
    ("erase: part of the document", "prepared", f"3101ff0044{DOC_1}00001000", "7f3131"),
    ("erase: the running slot", "prepared", "3101ff00440001000000001000", "7f3131"),
    ("erase: the running document", "prepared", "3101ff00440021000000004000", "7f3131"),
    ("erase: both documents", "prepared", "3101ff00440021000000008000", "7f3131"),
    ("erase: otadata", "prepared", "3101ff00440000e00000001000", "7f3131"),
    ("erase: state", "prepared", "3101ff00440000900000001000", "7f3131"),
    ("erase: bootloader", "prepared", "3101ff00440000000000001000", "7f3131"),
    ("erase: extended session", "extended, unlocked", f"3101ff0044{OTA_1}00001000", "7f3131"),
    ("erase: without fingerprint", "unlocked", f"3101ff0044{OTA_1}00001000", "7f3122"),
    ("download: the running slot", "prepared", "3400440001000000001000", "7f3431"),
    ("download: otadata", "prepared", "3400440000e00000000020", "7f3431"),
    ("download: passive slot", "prepared", f"340044{OTA_1}00001000", "74200fff"),
    ("memory: passive slot", "prepared", f"2344{OTA_1}00000004", "63ffffffff"),
    ("memory: the running slot", "prepared", "23440001000000000004", "7f2331"),
    ("memory: otadata", "prepared", "23440000e00000000004", "7f2331"),
    ("check: the running slot", "prepared", "31010202440001000000000008" + "00" * 32, "7f3131"),
    ("dependencies: nothing there", "prepared", "3101ff01", "7101ff0101"),
    ("dependencies: extended session", "extended, unlocked", "3101ff01", "7f3131"),
    ("confirm: again", "extended, unlocked", "31010210", "7101021000"),
    ("confirm: locked", "extended", "31010210", "7f3133"),
    ("confirm: programming session", "unlocked", "31010210", "7f3131"),
    ("confirm: default session", "default", "31010210", "7f317f"),
    ("confirm: too long", "extended, unlocked", "3101021000", "7f3113"),
    ("roll back: nothing to go back to", "extended, unlocked", "31010211", "7f3122"),
    ("roll back: locked", "extended", "31010211", "7f3133"),
    ("preconditions", "extended", "31010203", "7101020300"),
]


@pytest.fixture
def esp(make_esp: Any, esp_firmware: Any) -> Any:
    return make_esp(
        holds=esp_firmware("1.0.0", chip_id=9, secure_version=2), chip=Chip(chip_id=9, revision=102)
    )


@pytest.mark.parametrize(("where", "request_", "answer"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_each_rule(esp: Any, where: str, request_: str, answer: str) -> None:
    STATES[where](esp)
    assert esp.ask(request_) == answer


def test_an_update_is_pending_until_it_is_confirmed(esp: Any, esp_firmware: Any) -> None:
    assert esp.state == ("1.0.0", 0, VALID, 2)
    esp.update(esp_firmware("1.1.0", chip_id=9, secure_version=5))
    assert esp.resets == 1
    assert esp.state == ("1.1.0", 1, PENDING, 2)
    assert esp.confirm() == "7101021000"
    assert esp.state == ("1.1.0", 1, VALID, 5)
    assert esp.confirm() == "7101021000", "confirming is repeatable"
    esp.power_on()
    assert esp.state == ("1.1.0", 1, VALID, 5)
    assert esp.ask("22fd07") == "62fd070001000000100000" + "0021000000004000"
    assert esp.roll_back() == "7f3122", "the old one is below the eFuse"
    esp.update(esp_firmware("1.2.0", chip_id=9, secure_version=5))
    assert esp.state == ("1.2.0", 0, PENDING, 5)
    assert esp.roll_back() == "7101021100"
    assert esp.state == ("1.1.0", 1, VALID, 5)


def test_an_update_that_is_not_confirmed_is_left_at_the_next_boot(esp: Any, esp_firmware: Any) -> None:
    esp.update(esp_firmware("1.1.0", chip_id=9, secure_version=5))
    esp.power_on()
    assert esp.state == ("1.0.0", 0, VALID, 2)
    esp.power_on()
    assert esp.state == ("1.0.0", 0, VALID, 2), "and stays left"


def test_a_bad_application_is_left_at_once(make_esp: Any, esp_firmware: Any) -> None:
    esp = make_esp(holds=esp_firmware("1.0.0"), faults=Faults(bad_app=True))
    assert esp.state == ("1.0.0", 0, VALID, 0)
    esp.update(esp_firmware("1.1.0"))
    assert esp.state == ("1.0.0", 0, VALID, 0)
    assert esp.confirm() == "7101021000"
    assert esp.state == ("1.0.0", 0, VALID, 0)


def test_rolling_back_by_request(esp: Any, esp_firmware: Any) -> None:
    esp.update(esp_firmware("1.1.0", chip_id=9, secure_version=2))
    assert esp.roll_back() == "7101021100"
    assert esp.resets == 2
    assert esp.state == ("1.0.0", 0, VALID, 2)
    assert esp.roll_back() == "7f3122", "what was left is no way back"


def test_a_vehicle_in_use_is_not_reset(make_esp: Any, esp_firmware: Any) -> None:
    esp = make_esp(holds=esp_firmware("1.0.0"), faults=Faults(moving=True))
    assert esp.stage(esp_firmware("1.1.0")) == "7101ff0100", "it may be staged on the way"
    assert esp.ask("1101") == "7f1122"
    esp.power_on()
    assert esp.confirm() == "7101021000"
    esp.part.uds._faults.give(Faults(engine_running=True))
    assert esp.roll_back() == "7f3122"
    assert esp.state == ("1.1.0", 1, VALID, 0)
    esp.part.uds._faults.give(Faults())
    assert esp.roll_back() == "7101021100"
    assert esp.state == ("1.0.0", 0, VALID, 0)


def test_the_way_back_is_not_overwritten_before_the_new_one_is_confirmed(esp: Any, esp_firmware: Any) -> None:
    esp.update(esp_firmware("1.1.0", chip_id=9, secure_version=2))
    esp.prepare()
    assert esp.erase(0x21_0000, 0x4000) == "7f3122"
    assert esp.erase(0x1_0000, 0x1000) == "7f3122"
    assert esp.ask("3400440001000000001000") == "7f3422"
    assert esp.ask("3101ff01") == "7f3122"
    assert esp.ask("23440001000000000001") == "63e9", "but it may be read"
    assert esp.confirm() == "7101021000"
    esp.update(esp_firmware("1.2.0", chip_id=9, secure_version=2))
    assert esp.state == ("1.2.0", 0, PENDING, 2)


VERDICTS: dict[str, tuple[dict[str, Any], int]] = {
    "good": ({}, 0x00),
    "of another chip": ({"chip_id": 0}, 0x05),
    "for later revisions": ({"min_revision": 103}, 0x05),
    "for earlier revisions": ({"max_revision": 101}, 0x05),
    "for this very revision": ({"min_revision": 102, "max_revision": 102}, 0x00),
    "secure version too low": ({"secure_version": 1}, 0x06),
}


@pytest.mark.parametrize("case", VERDICTS)
def test_what_may_boot(esp: Any, esp_firmware: Any, case: str) -> None:
    words, verdict = VERDICTS[case]
    new = esp_firmware("1.1.0", **{"chip_id": 9, "secure_version": 2, **words})
    assert esp.stage(new) == f"7101ff01{verdict:02x}"
    esp.power_on()
    assert esp.state[0] == ("1.1.0" if verdict == 0 else "1.0.0")


def broken(image: bytes, case: str) -> bytes:
    raw = bytearray(image)
    match case:
        case "magic":
            raw[0] = 0xE8
        case "checksum":
            raw[-33] ^= 1
        case "appended hash":
            raw[-1] ^= 1
        case "no appended hash":
            raw[23] = 0
        case "a byte of a segment":
            raw[2000] ^= 1
    return bytes(raw)


@pytest.mark.parametrize(
    "case", ["magic", "checksum", "appended hash", "no appended hash", "a byte of a segment"]
)
def test_a_broken_image_is_refused_though_it_is_signed(
    esp: Any, signer: Any, esp_firmware: Any, case: str
) -> None:
    image = broken(esp_firmware("1.1.0", chip_id=9, secure_version=2).image, case)
    assert esp.stage(signer.sign("1.1.0", image=image)) == "7101ff0105"
    esp.power_on()
    assert esp.state == ("1.0.0", 0, VALID, 2)


def test_what_the_document_does_not_say_is_refused(esp: Any, signer: Any, esp_firmware: Any) -> None:
    from dataclasses import replace

    good = esp_firmware("1.1.0", chip_id=9, secure_version=2)
    other = esp_firmware("1.1.1", chip_id=9, secure_version=2)
    assert esp.stage(replace(good, image=other.image)) == "7101ff0104"
    assert esp.stage(signer.sign("1.1.0", image=good.image, kind="engine")) == "7101ff0103"
    forged = replace(good, document=good.document.replace(b'"1.1.0"', b'"1.1.9"'))
    assert esp.stage(forged) == "7101ff0102"
    assert esp.stage(replace(good, document=b"{}")) == "7101ff0101"
    assert esp.stage(good) == "7101ff0100"


def test_staging_again_after_it_was_chosen_never_boots_what_is_torn(esp: Any, esp_firmware: Any) -> None:
    new = esp_firmware("1.1.0", chip_id=9, secure_version=2)
    assert esp.stage(new) == "7101ff0100"
    assert esp.erase(0x21_4000, 0x4000) == "7101ff0000"
    esp.power_on()
    assert esp.state == ("1.0.0", 0, VALID, 2)
    esp.update(new)
    assert esp.state == ("1.1.0", 1, PENDING, 2)


def test_without_an_image_that_verifies_nobody_answers(make_esp: Any, esp_firmware: Any) -> None:
    from dataclasses import replace

    old = esp_firmware("1.0.0")
    esp = make_esp(holds=replace(old, image=old.image[:-1] + bytes([old.image[-1] ^ 1])))
    assert esp.part.uds.running is None
    assert [esp.ask(one) for one in ("22f189", "1003", "3e00", "1101")] == [""] * 4


def test_an_image_below_the_efuse_never_boots_even_alone(esp: Any, esp_firmware: Any) -> None:
    """As after a restored flash: the eFuse is not in it."""
    esp.flash.raise_counter(3)
    esp.power_on()
    assert esp.part.uds.running is None


def test_the_counter_never_falls_and_outlives_the_part(esp: Any) -> None:
    assert esp.flash.counter == 2
    esp.flash.raise_counter(1)
    assert esp.flash.counter == 2
    esp.flash.raise_counter(2**32 - 1)
    esp.flash.close()
    with esp.flash:
        assert esp.flash.counter == 2**32 - 1


@pytest.mark.parametrize("cut_at", range(1, 40))
def test_a_power_cut_while_it_confirms_leaves_the_old_or_the_new_one(
    esp: Any, esp_firmware: Any, cut_at: int
) -> None:
    esp.update(esp_firmware("1.1.0", chip_id=9, secure_version=5))
    esp.unlock()
    if cut_at == 39:
        esp.flash.cut_at_erase = 1
    else:
        esp.flash.cut_at_byte = cut_at
    try:
        answer = esp.ask("31010210")
    except PowerCut:
        answer = ""
    esp.flash.cut_at_byte = esp.flash.cut_at_erase = None
    esp.power_on()
    if answer:
        assert cut_at in range(33, 39), "the entry has 32 bytes"
        assert esp.state == ("1.1.0", 1, VALID, 5)
    else:
        assert esp.state == ("1.0.0", 0, VALID, 2)
