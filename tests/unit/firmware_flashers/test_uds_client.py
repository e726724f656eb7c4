"""The client's clocks and repeats: responsePending, busy, late answers; and what each refusal becomes."""

from __future__ import annotations

import time

import pytest

from firmware_flashers.base import AccessDenied, FlashError, NoAnswer, NotNow
from firmware_flashers.refusals import refusal
from firmware_flashers.uds import EXTENDED_SESSION, PROGRAMMING_SESSION, UdsClient
from firmware_flashers.uds_profile import UdsTiming

PENDING = b"\x7f\x22\x78"
KIND = b"\x62\xf1\x97KIND"


class Waits:
    """A transport that only notes how long it is asked to wait; `answers` come one a call."""

    def __init__(self, *answers: bytes | None) -> None:
        self.answers = list(answers)
        self.waits: list[float] = []
        self.sent: list[bytes] = []
        self.singles: list[bytes] = []

    def send(self, payload: bytes, *, timeout_s: float) -> None:
        self.sent.append(payload)

    def receive(self, timeout_s: float) -> bytes | None:
        self.waits.append(timeout_s)
        return self.answers.pop(0) if self.answers else None

    def send_single(self, payload: bytes) -> None:
        self.singles.append(payload)


TIMING = UdsTiming(p2_s=0.05, p2_star_s=5.0, margin_s=1.0, request_s=10.0, busy_wait_s=0.001)


def test_p2_holds_for_the_first_answer_and_p2_star_after_pending() -> None:
    wire = Waits(PENDING, PENDING, KIND)
    assert UdsClient(wire, TIMING).read(0xF197, "kind") == b"KIND"
    assert wire.waits == pytest.approx([1.05, 6.0, 6.0], abs=0.04)
    assert len(wire.sent) == 1


def test_p2_and_p2_star_are_the_ecus_own_after_a_session_change() -> None:
    wire = Waits(b"\x50\x03\x01\xf4\x00\x64", PENDING, KIND)
    client = UdsClient(wire, TIMING)
    client.change_session(EXTENDED_SESSION)
    client.read(0xF197, "kind")
    # 0x01F4 ms and 0x0064 times 10 ms.
    assert wire.waits[1:] == pytest.approx([1.5, 2.0], abs=0.04)


def test_the_ecus_times_end_with_its_session() -> None:
    wire = Waits(b"\x50\x02\x01\xf4\x00\x64", b"\x51\x01", KIND)
    client = UdsClient(wire, TIMING)
    client.change_session(PROGRAMMING_SESSION)
    client.reset()
    client.read(0xF197, "kind")
    assert wire.waits[2] == pytest.approx(1.05, abs=0.04)


def test_pending_for_ever_ends_at_the_requests_own_bound() -> None:
    class PendsForEver(Waits):
        def receive(self, timeout_s: float) -> bytes | None:
            time.sleep(min(timeout_s, 0.002))
            return PENDING if timeout_s > 0 else None

    wire = PendsForEver()
    timing = UdsTiming(request_s=0.05)
    with pytest.raises(NoAnswer, match="not ready"):
        UdsClient(wire, timing).read(0xF197, "kind")
    assert len(wire.sent) == 1


def test_silence_after_pending_is_repeated_and_then_named() -> None:
    wire = Waits(PENDING, None, PENDING, None, PENDING, None)
    with pytest.raises(NoAnswer, match="fell silent"):
        UdsClient(wire, TIMING).read(0xF197, "kind")
    assert len(wire.sent) == TIMING.silent_tries


def test_busy_is_repeated_until_it_is_over() -> None:
    wire = Waits(*[b"\x7f\x22\x21"] * 5, KIND)
    assert UdsClient(wire, TIMING).read(0xF197, "kind") == b"KIND"
    assert len(wire.sent) == 6


def test_busy_for_ever_is_bounded() -> None:
    wire = Waits(*[b"\x7f\x22\x21"] * 100)
    with pytest.raises(FlashError) as caught:
        UdsClient(wire, TIMING).read(0xF197, "kind")
    assert caught.value.code == "ecu_busy"
    assert caught.value.retryable
    assert len(wire.sent) == TIMING.busy_tries


@pytest.mark.parametrize(
    "late",
    [
        b"\x62\xf1\x91B2",
        b"\x76\x05",
        b"\x7f\x36\x73",
        b"\x7f\x36\x78",
        b"\x7f",
        b"\x7f\x22",
        b"\x7f\x22\x31\x00",
        b"\x62",
        b"\x62\xf1",
        b"\x00",
    ],
    ids=lambda raw: raw.hex(),
)
def test_what_answers_something_else_is_passed_over(late: bytes) -> None:
    wire = Waits(late, KIND)
    assert UdsClient(wire, TIMING).read(0xF197, "kind") == b"KIND"


def test_nothing_but_strange_answers_are_named() -> None:
    wire = Waits(b"\x62\xf1\x91B2", None, b"\x62\xf1\x91B2", None, b"\x62\xf1\x91B2", None)
    with pytest.raises(FlashError) as caught:
        UdsClient(wire, TIMING).read(0xF197, "kind")
    assert caught.value.code == "bad_answer"


def test_a_session_is_kept_only_while_it_is_open() -> None:
    wire = Waits(b"\x50\x03\x00\x32\x01\xf4", b"\x51\x01")
    client = UdsClient(wire, TIMING)
    client.keep_session()
    assert wire.singles == []
    client.change_session(EXTENDED_SESSION)
    client.keep_session()
    assert wire.singles == [b"\x3e\x80"]
    client.reset()
    client.keep_session()
    assert wire.singles == [b"\x3e\x80"]


@pytest.mark.parametrize("nrc", [0x22, *range(0x81, 0x94), 0x94])
def test_conditions_mean_not_now(nrc: int) -> None:
    error = refusal(0x31, nrc, "it", unlocked=True)
    assert isinstance(error, NotNow)
    assert error.retryable


@pytest.mark.parametrize(
    ("nrc", "code", "retryable"),
    [
        (0x10, "general_reject", True),
        (0x11, "service_not_supported", False),
        (0x12, "sub_function_not_supported", False),
        (0x13, "wrong_message_length", False),
        (0x14, "response_too_long", False),
        (0x21, "ecu_busy", True),
        (0x24, "request_sequence_error", True),
        (0x31, "request_out_of_range", False),
        (0x33, "session_lost", True),
        (0x70, "upload_download_not_accepted", True),
        (0x71, "transfer_data_suspended", True),
        (0x72, "general_programming_failure", True),
        (0x73, "wrong_block_sequence_counter", True),
        (0x7E, "session_lost", True),
        (0x7F, "session_lost", True),
        (0x34, "session_lost", True),
        (0xFE, "refused", False),
    ],
)
def test_each_other_code_has_its_name(nrc: int, code: str, retryable: bool) -> None:
    error = refusal(0x36, nrc, "block 7", unlocked=True)
    assert (error.code, error.retryable) == (code, retryable)
    assert f"0x{nrc:02X}" in error.message
    assert "block 7" in error.message


@pytest.mark.parametrize("nrc", [*range(0x50, 0x5E)])
def test_a_refused_certificate_is_final_and_named(nrc: int) -> None:
    error = refusal(0x29, nrc, "the certificate", unlocked=False)
    assert isinstance(error, AccessDenied)
    assert not error.retryable
    assert error.code != AccessDenied.code
    assert "certificate" in error.advice


@pytest.mark.parametrize("nrc", [0x33, 0x34, 0x35, 0x36, 0x37])
def test_denied_access_is_final(nrc: int) -> None:
    error = refusal(0x27, nrc, "the key", unlocked=False)
    assert isinstance(error, AccessDenied)
    assert not error.retryable


def test_every_code_becomes_an_error_with_advice() -> None:
    for nrc in range(256):
        for unlocked in (True, False):
            error = refusal(0x34, nrc, "it", unlocked=unlocked)
            assert isinstance(error, FlashError)
            assert error.advice
