"""Whatever an ECU answers, and however often: a named error or proof, and what is claimed of it is true."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from firmware_flashers.base import FlashError

SLOT, DOCUMENT_AREA = 0x0801_0000, 0x0800_8000

NOISE: st.SearchStrategy[list[bytes]] = st.one_of(
    st.just([]),
    st.binary(max_size=24).map(lambda raw: [raw]),
    st.lists(st.binary(min_size=1, max_size=8), max_size=3),
)
REFUSALS = st.integers(0, 255)


def judge_run(bench: Any) -> None:
    """One stage with its script; checks what must hold whatever came of it."""
    failed: FlashError | None = None
    try:
        bench.stage()
    except FlashError as error:
        failed = error
    assert failed is None or (failed.code and failed.advice)
    ecu = bench.ecu
    assert bench.download.touched == bool(ecu.asked("3101FF00"))
    # The order that lets no torn image boot, whatever the ECU said on the way.
    erases = [int.from_bytes(r[5:9], "big") for r in ecu.asked("3101FF00")]
    downloads = [int.from_bytes(r[3:7], "big") for r in ecu.asked("34")]
    if erases:
        assert erases[0] == DOCUMENT_AREA
    if DOCUMENT_AREA in downloads:
        assert downloads[0] == SLOT
        assert ecu.asked("31010202")  # the slot was checked before its document was written
    if failed is None:
        assert ecu.asked("3101FF01")
    # Keys are never hammered.
    assert len(ecu.asked("2702")) <= bench.timing.download_tries


@settings(max_examples=150, deadline=None)
@given(at=st.integers(1, 40), answers=NOISE)
def test_noise_in_place_of_one_answer(new_bench: Callable[[], Any], at: int, answers: list[bytes]) -> None:
    bench = new_bench()
    bench.ecu.script = lambda ecu, _: answers if len(ecu.log) == at else None
    judge_run(bench)


@settings(max_examples=150, deadline=None)
@given(at=st.integers(1, 40), nrc=REFUSALS, often=st.integers(1, 12))
def test_a_refusal_from_some_request_on(new_bench: Callable[[], Any], at: int, nrc: int, often: int) -> None:
    bench = new_bench()
    bench.ecu.script = lambda ecu, request: (
        [bench.negative(request, nrc)] if at <= len(ecu.log) < at + often else None
    )
    judge_run(bench)


@settings(max_examples=100, deadline=None)
@given(resets=st.sets(st.integers(1, 60), max_size=4), silent=st.booleans())
def test_resets_anywhere_and_then_a_run_that_ends_well(
    new_bench: Callable[[], Any], resets: set[int], silent: bool
) -> None:
    bench = new_bench()

    def script(ecu: Any, request: bytes) -> list[bytes] | None:
        if len(ecu.log) not in resets:
            return None
        answer = [] if silent else ecu.model(request)
        ecu.reset()
        return answer

    bench.ecu.script = script
    judge_run(bench)
    installed = bench.ecu.installed()
    assert installed in (bench.old.spec, bench.new.spec, None)
    bench.ecu.script = lambda *_: None
    bench.stage()
    bench.download.activate()
    bench.download.verify(bench.new)
