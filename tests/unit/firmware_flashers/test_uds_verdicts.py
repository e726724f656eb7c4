"""What is refused, by whom and when: named, and untouched as long as nothing was erased."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from firmware_flashers.base import (
    AccessDenied,
    BadImage,
    BusDown,
    FlashError,
    NoAnswer,
    NotNow,
    NotProved,
    WrongEcu,
)
from firmware_flashers.isotp import NotSent

DOCUMENT_AREA, SLOT = 0x0800_8000, 0x0801_0000


def always(bench: Any, prefix: str, answer: Callable[[bytes], list[bytes]]) -> None:
    def script(_: Any, request: bytes) -> list[bytes] | None:
        return answer(request) if request.startswith(bytes.fromhex(prefix)) else None

    bench.ecu.script = script


def flash(bench: Any) -> None:
    bench.stage()
    bench.download.activate()
    assert bench.download.verify(bench.new).version == "1.1.0"


@pytest.mark.parametrize("prefix", ["1003", "1002", "3101FF00", "34", "36", "37", "31010202", "3101FF01"])
def test_a_refusal_of_each_service_ends_named(bench: Any, prefix: str) -> None:
    always(bench, prefix, lambda request: [bench.negative(request, 0x10)])
    with pytest.raises(FlashError) as caught:
        bench.stage()
    assert caught.value.code == "general_reject"
    erased = bool(bench.ecu.erased)
    # Whoever is told "untouched" may rely on it.
    assert bench.download.touched or not erased


@pytest.mark.parametrize("nrc", [0x22, 0x81, 0x83, 0x88, 0x8F, 0x92, 0x93])
@pytest.mark.parametrize("prefix", ["31010203", "1002"])
def test_a_vehicle_that_may_not_be_flashed_keeps_its_application(bench: Any, prefix: str, nrc: int) -> None:
    always(bench, prefix, lambda request: [bench.negative(request, nrc)])
    with pytest.raises(NotNow) as caught:
        bench.stage()
    assert caught.value.retryable
    assert not bench.download.touched
    assert not bench.ecu.erased
    assert not bench.ecu.in_bootloader
    assert not bench.ecu.asked("11")  # it is not reset while it may be moving
    assert bench.ecu.session == 1


def test_a_status_of_preconditions_that_is_not_zero_is_not_now(bench: Any) -> None:
    always(bench, "31010203", lambda _: [b"\x71\x01\x02\x03\x02"])
    with pytest.raises(NotNow):
        bench.stage()


@pytest.mark.parametrize("nrc", [0x33, 0x35, 0x36, 0x37])
@pytest.mark.parametrize("prefix", ["2701", "2702"])
def test_denied_access_is_never_tried_again_and_the_application_returns(
    bench: Any, prefix: str, nrc: int
) -> None:
    always(bench, prefix, lambda request: [bench.negative(request, nrc)])
    with pytest.raises(AccessDenied) as caught:
        bench.stage()
    assert not caught.value.retryable
    assert len(bench.ecu.asked(prefix)) == 1 or (prefix, nrc) == ("2701", 0x37)
    assert len(bench.ecu.asked("2702")) <= 1
    assert not bench.download.touched
    assert not bench.ecu.in_bootloader


def test_a_delay_before_the_first_try_is_waited_out_in_the_session(bench: Any) -> None:
    """It may begin anew with every reset, and so with every entry: coming back later would never help."""
    refused: list[int] = []

    def script(_: Any, request: bytes) -> list[bytes] | None:
        if request == b"\x27\x01" and not refused:
            refused.append(1)
            return [bench.negative(request, 0x37)]
        return None

    bench.ecu.script = script
    flash(bench)
    assert len(bench.ecu.asked("1002")) == 1
    assert len(bench.ecu.asked("2702")) == 1


@pytest.mark.parametrize("lost", [1, 2])
def test_an_ecu_that_misses_the_reset_is_not_left_in_its_bootloader(bench: Any, lost: int) -> None:
    resets: list[int] = []

    def script(_: Any, request: bytes) -> list[bytes] | None:
        if request[0] == 0x27:
            return [bench.negative(request, 0x37)]
        if request[0] == 0x11 and len(resets) < lost:
            resets.append(1)
            return []
        return None

    bench.ecu.script = script
    with pytest.raises(AccessDenied):
        bench.stage()
    assert not bench.ecu.in_bootloader


@pytest.mark.parametrize("seed", [b"", bytes(4), b"\x01" * 15, b"\x01" * 17])
def test_a_seed_of_wrong_length_sends_no_key(bench: Any, seed: bytes) -> None:
    always(bench, "2701", lambda _: [b"\x67\x01" + seed])
    with pytest.raises(AccessDenied):
        bench.stage()
    assert not bench.ecu.asked("2702")


def test_a_zero_seed_needs_no_key(bench: Any) -> None:
    def script(ecu: Any, request: bytes) -> list[bytes] | None:
        if request == b"\x27\x01":
            ecu.unlocked = True
        return None

    bench.ecu.script = script
    flash(bench)
    assert not bench.ecu.asked("2702")


def test_a_session_that_is_lost_after_the_unlocking_is_no_wrong_key(bench: Any) -> None:
    always(bench, "36", lambda _: [b"\x7f\x36\x33"])
    with pytest.raises(FlashError) as caught:
        bench.stage()
    assert caught.value.code == "session_lost"
    assert caught.value.retryable


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"kind": "engine-controller"}, WrongEcu),
        ({"hardware": "B9"}, WrongEcu),
        ({"nbytes": 448 * 1024 + 1}, BadImage),
        ({"head": b"\x00" * 8}, BadImage),
        ({"head": b"\x00\x00\x02\x20\x01\x01\x01\x09"}, BadImage),
    ],
    ids=["kind", "hardware", "too-long", "empty-vectors", "reset-outside"],
)
def test_an_image_that_is_not_for_it_is_refused_before_a_frame(bench: Any, change: Any, error: Any) -> None:
    with pytest.raises(error) as caught:
        bench.stage(bench.make_image(**change))
    assert not caught.value.retryable
    assert not bench.download.touched
    assert not bench.ecu.log


def test_bytes_that_are_not_the_documents_are_refused_before_a_frame(bench: Any) -> None:
    from dataclasses import replace

    changed = bytes([bench.new.data[-1] ^ 1])
    for image in (
        replace(bench.new, data=bench.new.data[:-1] + changed),
        replace(bench.new, data=bench.new.data[:-1]),
        replace(bench.new, document=bench.old.document),
        replace(bench.new, document=b"{}"),
        replace(bench.new, document=b""),
    ):
        with pytest.raises(BadImage):
            bench.stage(image)
    assert not bench.ecu.log


@pytest.mark.parametrize(
    ("did", "value"), [("22F197", b"pump-controller"), ("22F191", b"B3"), ("22F197", b"")]
)
def test_another_ecu_is_never_erased(bench: Any, did: str, value: bytes) -> None:
    always(bench, did, lambda request: [b"\x62" + request[1:] + value])
    with pytest.raises(WrongEcu):
        bench.stage()
    assert not bench.download.touched
    assert not bench.ecu.asked("10")


@pytest.mark.parametrize(
    ("did", "value"),
    [
        ("22F197", b"\xff\xfe"),
        ("22F191", b"B2\n"),
        ("22FD01", b"\x02"),
        ("22FD01", b""),
        ("22FD00", bytes(31)),
    ],
)
def test_an_identity_that_can_not_be_read_is_named(bench: Any, did: str, value: bytes) -> None:
    always(bench, did, lambda request: [b"\x62" + request[1:] + value])
    with pytest.raises(FlashError) as caught:
        bench.download.identify()
    assert caught.value.code == "bad_answer"


@pytest.mark.parametrize("answer", ["", "00", "20", "200F", "20000102", "10FF", "2000FFFF00", "100203"])
def test_a_block_length_that_can_not_be_read_is_named(bench: Any, answer: str) -> None:
    always(bench, "34", lambda _: [b"\x74" + bytes.fromhex(answer)])
    if answer == "10FF":
        # One byte of length, 255 bytes a block: unusual and right.
        always(bench, "34", lambda request: [bench.ecu.model(request)[0][:1] + b"\x10\xff"])
        flash(bench)
        return
    with pytest.raises(FlashError) as caught:
        bench.stage()
    assert caught.value.code == "bad_answer"


def test_a_block_length_of_two_is_too_small(bench: Any) -> None:
    always(bench, "34", lambda _: [b"\x74\x20\x00\x02"])
    with pytest.raises(FlashError, match="too small"):
        bench.stage()


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (1, "not_proved"),
        (2, "signature_refused"),
        (3, "wrong_ecu"),
        (4, "not_proved"),
        (5, "bad_image"),
        (9, "flash_failed"),
    ],
)
def test_what_the_bootloader_finds_is_named(bench: Any, status: int, code: str) -> None:
    always(bench, "3101FF01", lambda _: [bytes([0x71, 0x01, 0xFF, 0x01, status])])
    with pytest.raises(FlashError) as caught:
        bench.stage()
    assert caught.value.code == code
    assert bench.download.touched


def test_other_bytes_in_its_flash_are_not_proved(bench: Any) -> None:
    def script(ecu: Any, request: bytes) -> list[bytes] | None:
        if request[0] == 0x37:
            ecu.put(SLOT, b"\xaa")
        return None

    bench.ecu.script = script
    with pytest.raises(NotProved):
        bench.stage()
    assert bench.ecu.content(DOCUMENT_AREA, 4) == b"\xff" * 4  # so it can't boot


def test_old_firmware_that_answers_after_the_reset_is_not_proved(bench: Any) -> None:
    with pytest.raises(NotProved, match=r"1\.0\.0"):
        bench.download.verify(bench.new)


def test_an_ecu_in_its_bootloader_is_not_proved(bench: Any) -> None:
    bench.ecu.in_bootloader = True
    with pytest.raises(NotProved, match="bootloader"):
        bench.download.verify(bench.old)


def test_an_empty_ecu_in_its_bootloader_is_flashed(bench: Any) -> None:
    bench.ecu.put(SLOT, b"\xff" * 9001)
    bench.ecu.put(DOCUMENT_AREA, b"\xff" * 16384)
    bench.ecu.reset()
    assert bench.download.identify().version is None
    flash(bench)


def test_a_half_done_download_of_another_tester_does_not_matter(bench: Any) -> None:
    for request in ("1003", "1002"):
        bench.ecu.answer(bytes.fromhex(request))
    bench.ecu.unlocked = bench.ecu.fingerprint = True
    bench.ecu.put(DOCUMENT_AREA, b"\xff" * 16384)
    bench.ecu.answer(bytes.fromhex("3400440801000000001000"))
    bench.ecu.answer(b"\x36\x01" + bytes(8))
    flash(bench)


def test_a_bootloader_that_leaves_its_session_through_default_only(bench: Any) -> None:
    bench.ecu.session, bench.ecu.in_bootloader = 2, True
    bench.ecu.script = lambda ecu, request: (
        [bench.negative(request, 0x7E)] if request == b"\x10\x03" and ecu.session == 2 else None
    )
    flash(bench)
    assert bench.ecu.asked("1001")


def test_what_surely_did_not_arrive_is_sent_again_even_a_key(bench: Any) -> None:
    real = bench.wire.send
    failed: list[int] = []

    def send(payload: bytes, *, timeout_s: float) -> None:
        if payload[:2] == b"\x27\x02" and not failed:
            failed.append(1)
            raise NotSent("no flow control")
        real(payload, timeout_s=timeout_s)

    bench.wire.send = send
    flash(bench)
    assert len(bench.ecu.asked("2702")) == 1


def test_a_dead_bus_is_not_retried(bench: Any) -> None:
    bench.wire.fail_sends = [BusDown("gone")]
    with pytest.raises(BusDown):
        bench.stage()
    assert not bench.ecu.log


def test_a_silent_ecu_ends_in_no_answer(bench: Any) -> None:
    bench.ecu.script = lambda *_: []
    with pytest.raises(NoAnswer):
        bench.stage()
    assert len(bench.ecu.log) == bench.timing.silent_tries
    assert not bench.download.touched
