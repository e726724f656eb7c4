"""ReadDTCInformation (0x19) of the simulated ECUs: what is stored, and strictness about requests."""

from __future__ import annotations

from typing import Any

import pytest

from sim.mcu.trouble_codes import TroubleCodes

TROUBLE = TroubleCodes(
    always={0xC10000: 0x2F, 0x0A0B0C: 0x04},
    of_version={"1.0.0": {0x000123: 0x08}},
    after_s=2.0,
    kept_bits=0x2F,
)


@pytest.mark.parametrize(
    ("request_hex", "answer"),
    [
        ("190208", "59022f" + "c100002f"),
        ("190204", "59022f" + "0a0b0c04" + "c100002f"),
        ("190280", "59022f"),
        ("198208", "59022f" + "c100002f"),
        ("19", "7f1913"),
        ("1902", "7f1913"),
        ("19020800", "7f1913"),
        ("190108", "7f1912"),
        ("190a", "7f1912"),
    ],
)
def test_codes_are_told_by_their_status(make_ecu: Any, signer: Any, request_hex: str, answer: str) -> None:
    ecu = make_ecu(holds=signer.sign(), trouble=TROUBLE)
    # suppressPosRspMsgIndicationBit: nothing positive is said.
    assert ecu.ask(request_hex) == ("" if request_hex.startswith("1982") else answer)


def test_an_image_that_is_bad_shows_it_some_time_after_its_start(make_ecu: Any, signer: Any) -> None:
    ecu = make_ecu(holds=signer.sign(), trouble=TROUBLE)
    assert "000123" not in ecu.ask("190208")
    ecu.now += 2.0
    assert "00012308" in ecu.ask("190208")
    ecu.program(signer.sign("1.1.0"))
    ecu.now += 2.0
    assert ecu.ask("190208") == "59022f" + "c100002f"


def test_an_esp32_tells_those_of_what_runs(make_esp: Any, esp_firmware: Any) -> None:
    trouble = TroubleCodes(of_version={"1.1.0": {0x000123: 0x08}})
    esp = make_esp(holds=esp_firmware("1.0.0"), trouble=trouble)
    assert esp.ask("190208") == "5902ff"
    esp.update(esp_firmware("1.1.0"))
    assert esp.ask("190208") == "5902ff" + "00012308"


@pytest.mark.parametrize("request_hex", ["190208", "190108", "19"])
def test_a_bootloader_has_no_such_service(make_ecu: Any, request_hex: str) -> None:
    assert make_ecu(trouble=TROUBLE).ask(request_hex) == "7f1911"
