"""Trouble codes as ECUs answer them, right and wrong; and who can be asked at all."""

from __future__ import annotations

import pytest

from firmware_flashers.base import FlashError, ReadsFaults, TroubleCode
from firmware_flashers.refusals import BadAnswer
from firmware_flashers.stm32_rom_flash import RomFlasher
from firmware_flashers.trouble_codes import FaultsUnknown, read_codes
from firmware_flashers.uds import UdsClient
from firmware_flashers.uds_flash import UdsFlasher
from firmware_flashers.uds_profile import UdsTiming

CODE = TroubleCode(code=0xC10000, status=0x2F)


@pytest.mark.parametrize(
    ("record", "mask", "codes"),
    [
        ("ff", 0x08, ()),
        ("ffc100002f", 0x08, (CODE,)),
        ("ffc100002f00012309", 0x08, (CODE, TroubleCode(code=0x000123, status=0x09))),
        ("ffc100002f00012301", 0x08, (CODE,)),
        ("2fc100002f", 0x29, (CODE,)),
    ],
)
def test_what_an_ecu_stores(record: str, mask: int, codes: tuple[TroubleCode, ...]) -> None:
    assert read_codes(bytes.fromhex(record), mask, "the ECU") == codes


@pytest.mark.parametrize("record", ["", "ffc10000", "ffc100002f00", "ffc1"])
def test_what_is_no_whole_record_is_no_answer(record: str) -> None:
    with pytest.raises(BadAnswer):
        read_codes(bytes.fromhex(record), 0x08, "the ECU")


@pytest.mark.parametrize(("kept", "mask"), [("00", 0x08), ("2f", 0x80), ("27", 0x0F)])
def test_silence_about_bits_that_are_not_kept_is_no_health(kept: str, mask: int) -> None:
    with pytest.raises(FaultsUnknown, match="does not keep"):
        read_codes(bytes.fromhex(kept), mask, "the ECU")


class Answers:
    """A transport that gives these answers."""

    def __init__(self, *answers: str) -> None:
        self.answers = [bytes.fromhex(one) for one in answers]
        self.sent: list[str] = []

    def send(self, payload: bytes, *, timeout_s: float) -> None:
        self.sent.append(payload.hex())

    def receive(self, timeout_s: float) -> bytes | None:
        return self.answers.pop(0) if self.answers else None

    def send_single(self, payload: bytes) -> None:
        raise AssertionError(payload)


def test_the_client_asks_by_status_mask() -> None:
    wire = Answers("7f1978", "5902ffc100002f")
    assert UdsClient(wire, UdsTiming()).read_dtcs(0x08).hex() == "ffc100002f"
    assert wire.sent == ["190208"]


@pytest.mark.parametrize(
    ("answer", "code", "retryable"),
    [
        ("7f1911", "service_not_supported", False),
        ("7f1912", "sub_function_not_supported", False),
        ("7f1922", "conditions_not_correct", True),
        ("590affc100002f", "bad_answer", True),
    ],
)
def test_a_refusal_is_named(answer: str, code: str, retryable: bool) -> None:
    timing = UdsTiming(silent_tries=1)
    with pytest.raises(FlashError) as refused:
        UdsClient(Answers(answer), timing).read_dtcs(0x08)
    assert (refused.value.code, refused.value.retryable) == (code, retryable)


def test_who_can_be_asked() -> None:
    assert issubclass(UdsFlasher, ReadsFaults)
    assert not issubclass(RomFlasher, ReadsFaults)
