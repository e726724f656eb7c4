"""A download against a scripted ECU: every fault ends in success or in a named error, within bounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from firmware_flashers.base import (
    FlashError,
    NoAnswer,
)

DOCUMENT_AREA, SLOT = 0x0800_8000, 0x0801_0000


def once(bench: Any, prefix: str, answers: list[bytes], *, nth: int = 1) -> None:
    """Answer the nth request that begins so by `answers`, once, without acting on it."""
    state = {"left": nth}

    def script(_: Any, request: bytes) -> list[bytes] | None:
        if not request.startswith(bytes.fromhex(prefix)):
            return None
        state["left"] -= 1
        return answers if state["left"] == 0 else None

    bench.ecu.script = script


def always(bench: Any, prefix: str, answer: Callable[[bytes], list[bytes]]) -> None:
    def script(_: Any, request: bytes) -> list[bytes] | None:
        return answer(request) if request.startswith(bytes.fromhex(prefix)) else None

    bench.ecu.script = script


def lost_answer(bench: Any, prefix: str, *, nth: int = 1) -> None:
    """The ECU acts on the nth such request, but its answer never arrives."""
    state = {"left": nth}

    def script(ecu: Any, request: bytes) -> list[bytes] | None:
        if not request.startswith(bytes.fromhex(prefix)):
            return None
        state["left"] -= 1
        if state["left"] != 0:
            return None
        ecu.model(request)
        return []

    bench.ecu.script = script


def flash(bench: Any) -> None:
    bench.stage()
    bench.download.activate()
    assert bench.download.verify(bench.new).version == "1.1.0"


def test_it_flashes_in_the_order_that_never_boots_a_torn_image(bench: Any) -> None:
    flash(bench)
    ecu = bench.ecu
    assert ecu.content(SLOT, len(bench.new.data)) == bench.new.data
    assert ecu.erased[0] == DOCUMENT_AREA
    downloads = [int.from_bytes(r[3:7], "big") for r in ecu.asked("34")]
    assert downloads == [SLOT, DOCUMENT_AREA]
    before_the_erase = [r[:2].hex() for r in ecu.log[: ecu.log.index(ecu.asked("3101FF00")[0])]]
    assert [one for one in before_the_erase if not one.startswith("22")] == [
        *("1003", "3101", "1002", "2701", "2702", "2ef1", "3101")
    ]
    assert not ecu.in_bootloader


def test_progress_ends_at_the_whole_image(bench: Any) -> None:
    bench.stage()
    steps = [str(step) for step, _, _ in bench.steps]
    assert list(dict.fromkeys(steps)) == ["preparing", "erasing", "writing", "checking"]
    writing = [done for step, done, _ in bench.steps if step == "writing"]
    assert writing == sorted(writing)
    assert writing[-1] == len(bench.new.data)
    assert {total for _, _, total in bench.steps} == {len(bench.new.data)}


def test_block_counter_wraps_from_ff_to_00(bench: Any) -> None:
    # 64 data bytes a block make 300 blocks of a small image.
    bench.ecu.script = lambda ecu, request: (
        [ecu.model(request)[0][:2] + b"\x00\x42"] if request[0] == 0x34 else None
    )
    image = bench.make_image(nbytes=64 * 300)
    bench.stage(image)
    counters = [r[1] for r in bench.ecu.asked("36")][:300]
    assert counters == [n & 0xFF for n in range(1, 301)]
    assert bench.ecu.content(SLOT, len(image.data)) == image.data


def test_only_needed_sectors_are_erased(bench: Any) -> None:
    bench.stage(bench.make_image(nbytes=64 * 1024 + 4))
    assert set(bench.ecu.erased) == {DOCUMENT_AREA, SLOT, SLOT + 64 * 1024}


REQUESTS = [
    ("1003", 1),
    ("31010203", 1),
    ("1002", 1),
    ("2701", 1),
    ("2EF15A", 1),
    ("3101FF00", 1),
    ("3101FF00", 2),
    ("34", 1),
    ("34", 2),
    ("36", 1),
    ("36", 3),
    ("37", 1),
    ("37", 2),
    ("31010202", 1),
    ("31010202", 2),
    ("3101FF01", 1),
    ("22F197", 1),
    ("22FD01", 2),
]
# A key is never sent twice and a reset is asked for once: what their loss does stands below.
ACTED_ON = [*REQUESTS, ("2702", 1), ("1101", 1)]


@pytest.mark.parametrize(("prefix", "nth"), ACTED_ON)
def test_any_lost_answer_is_survived(bench: Any, prefix: str, nth: int) -> None:
    lost_answer(bench, prefix, nth=nth)
    flash(bench)
    assert bench.ecu.content(SLOT, len(bench.new.data)) == bench.new.data


@pytest.mark.parametrize(("prefix", "nth"), REQUESTS)
def test_any_lost_request_is_survived(bench: Any, prefix: str, nth: int) -> None:
    once(bench, prefix, [], nth=nth)
    flash(bench)
    assert bench.ecu.content(SLOT, len(bench.new.data)) == bench.new.data


def test_a_lost_key_is_not_sent_again(bench: Any) -> None:
    once(bench, "2702", [])
    with pytest.raises(NoAnswer):
        bench.stage()
    assert len(bench.ecu.asked("2702")) == 1
    assert not bench.download.touched


def test_a_lost_reset_is_reported(bench: Any) -> None:
    bench.stage()
    always(bench, "1101", lambda _: [])
    with pytest.raises(FlashError) as caught:
        bench.download.activate()
    assert caught.value.code == "not_booted"
    assert "bootloader" in caught.value.message


def test_a_repeated_block_keeps_its_counter(bench: Any) -> None:
    lost_answer(bench, "36", nth=2)
    bench.stage()
    first, second, again = bench.ecu.asked("36")[:3]
    assert second == again
    assert first[1] == 1
    assert second[1] == 2
    assert len(bench.ecu.asked("34")) == 2  # no restart was needed


@pytest.mark.parametrize("nrc", [0x73, 0x24])
def test_an_ecu_that_refuses_a_repeat_is_downloaded_to_again(bench: Any, nrc: int) -> None:
    """Real bootloaders answer a repeated block so; the way on is from RequestDownload, once."""
    seen = {"lost": False, "refused": False}

    def script(ecu: Any, request: bytes) -> list[bytes] | None:
        if request[:2] != b"\x36\x02":
            return None
        if not seen["lost"]:
            seen["lost"] = True
            ecu.model(request)
            return []
        if not seen["refused"]:
            seen["refused"] = True
            return [bench.negative(request, nrc)]
        return None

    bench.ecu.script = script
    flash(bench)
    assert bench.ecu.erased.count(SLOT) == 2


@pytest.mark.parametrize("nrc", [0x73, 0x24])
def test_the_restart_is_bounded(bench: Any, nrc: int) -> None:
    always(bench, "36", lambda request: [bench.negative(request, nrc)])
    with pytest.raises(FlashError) as caught:
        bench.stage()
    assert caught.value.code in {"wrong_block_sequence_counter", "request_sequence_error"}
    assert caught.value.retryable
    assert bench.download.touched
    assert len(bench.ecu.asked("34")) == bench.timing.download_tries


def test_another_blocks_counter_in_the_answer_counts_as_no_answer(bench: Any) -> None:
    lost_then_wrong = {"done": False}

    def script(ecu: Any, request: bytes) -> list[bytes] | None:
        if request[:2] == b"\x36\x02" and not lost_then_wrong["done"]:
            lost_then_wrong["done"] = True
            ecu.model(request)
            return [b"\x76\x01"]
        return None

    bench.ecu.script = script
    flash(bench)


def test_always_the_wrong_counter_ends_named(bench: Any) -> None:
    always(bench, "36", lambda request: [bytes([0x76, (request[1] + 1) & 0xFF])])
    with pytest.raises(FlashError) as caught:
        bench.stage()
    assert caught.value.code == "bad_answer"
    assert len(bench.ecu.asked("36")) == bench.timing.silent_tries * bench.timing.download_tries


@pytest.mark.parametrize("times", [1, 2])
def test_a_reset_in_the_middle_is_survived_or_named(bench: Any, times: int) -> None:
    def script(ecu: Any, request: bytes) -> list[bytes] | None:
        if request[:2] == b"\x36\x02" and ecu.session == 2 and len(seen) < times:
            seen.append(1)
            ecu.reset()
            return []
        return None

    seen: list[int] = []
    bench.ecu.script = script
    if times == 1:
        flash(bench)
        return
    with pytest.raises(FlashError) as caught:
        bench.stage()
    assert caught.value.code == "session_lost"
    assert caught.value.retryable
    assert bench.download.touched
    assert bench.ecu.in_bootloader
    flash(bench)


def test_a_session_that_timed_out_while_an_answer_was_lost_is_opened_again(bench: Any) -> None:
    """P2* is as long as S3: an ECU whose answer after responsePending is lost may lock meanwhile."""
    seen: list[int] = []

    def script(ecu: Any, request: bytes) -> list[bytes] | None:
        if request.startswith(b"\x31\x01\xff\x00") and not seen:
            seen.append(1)
            ecu.model(request)
            ecu.enter(1)
            return [bench.negative(request, 0x78)]
        return None

    bench.ecu.script = script
    flash(bench)
    assert len(bench.ecu.asked("2702")) == 2
