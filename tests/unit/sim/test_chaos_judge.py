"""The judge of a chaos run finds each promise that is broken, by name; and nothing in what ended right."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from sim.chaos.judge import Outcome, duplicates, lost, wrong_with

OLD, NEW = {"brake": "b1", "body": "d1"}, {"brake": "b2", "body": "d2"}


def line(message_id: str | None, step: str, status: str = "flashing", attempt: int = 1) -> dict[str, Any]:
    return {"message_id": message_id, "step": step, "status": status, "attempt": attempt}


DONE = [
    line(None, "", ""),
    line("m1", "received"),
    line("m2", "activating"),
    line("m3", "activating"),
    line("m4", "finished", "done"),
]
TOLD = Counter({"activating": 2, "finished": 1})


def outcome(
    state: str = "done",
    history: list[dict[str, Any]] = DONE,
    *,
    code: str | None = None,
    runs: dict[str, str] = NEW,
    **more: Any,
) -> Outcome:
    job = {
        "state": state,
        "attempt": 1,
        "error": None if code is None else {"code": code, "text": "so it is"},
        "history": history,
        "history_total": more.pop("total", len(history)),
    }
    usual: dict[str, Any] = {"may_fail": False, "may_cancel": False, "wrong_clock": False, "told": TOLD}
    return Outcome(job=job, runs=runs, old=OLD, new=NEW, **(usual | more))


ENDED = [line("m1", "received"), line("m4", "finished", "error")]
RIGHT: dict[str, Outcome] = {
    "done and new": outcome(),
    "a bad image, and back": outcome(
        "error", ENDED, code="not_proved", runs=OLD, may_fail=True, told=Counter({"finished": 1})
    ),
    "cancelled as asked": outcome(
        "cancelled", [line("m1", "finished", "cancelled")], runs=OLD, may_cancel=True, told=Counter()
    ),
    "cancelled before it left": outcome(
        "cancelled", [line(None, "")], runs=OLD, may_cancel=True, told=Counter()
    ),
    "too late by a wrong clock": outcome(
        "error", ENDED, code="command_expired", runs=OLD, wrong_clock=True, told=Counter()
    ),
}
WRONG: dict[str, tuple[Outcome, str]] = {
    "a third": (outcome(runs={"brake": "b2", "body": "d1"}), "neither whole-new nor whole-old"),
    "torn": (outcome(runs={"brake": "", "body": "d2"}), "NOTHING WHOLE"),
    "done and old": (outcome(runs=OLD), "says done, and the truck runs the old"),
    "error and new": (outcome("error", ENDED, code="x", may_fail=True, told=Counter()), "runs the new"),
    "an end for no reason": (outcome("error", ENDED, code="internal", runs=OLD, told=Counter()), "internal"),
    "expired by a right clock": (
        outcome("error", ENDED, code="command_expired", runs=OLD, told=Counter()),
        "command_expired",
    ),
    "cancelled by nobody": (
        outcome("cancelled", [line("m1", "finished", "cancelled")], runs=OLD, told=Counter()),
        "nobody asked",
    ),
    "a bad image is done": (outcome(may_fail=True), "the image was bad"),
    "no final status": (outcome(history=DONE[:-1], told=Counter()), "final statuses"),
    "two final statuses": (outcome(history=[*DONE, line("m9", "finished", "done")]), "final statuses"),
    "another attempt": (outcome(history=[*DONE, line("m9", "finished", "done", 2)]), "final statuses"),
    "twice": (outcome(history=[*DONE, line("m2", "activating")]), "1 statuses twice"),
    "lost": (outcome(told=Counter({"activating": 3})), "lost statuses: {'activating': 1}"),
    "more than is shown": (outcome(total=501), "501 lines"),
}


@pytest.mark.parametrize("case", RIGHT)
def test_nothing_is_found_in_what_ended_right(case: str) -> None:
    assert wrong_with(RIGHT[case]) == []


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(case: str) -> None:
    found, sentence = WRONG[case]
    assert any(sentence in one for one in wrong_with(found)), wrong_with(found)


def test_what_is_lost_and_what_is_twice_is_counted() -> None:
    assert lost(WRONG["lost"][0]).total() == 1
    assert duplicates(WRONG["twice"][0]) == 1
