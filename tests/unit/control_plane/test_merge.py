"""What one status changes in a job, case by case."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from control_plane.jobs.merge import Progress, StatusKey, Wanted, merge
from shared.messages import Error, Status, TargetResult
from shared.states import JobState, TruckStatus

SHA = "a" * 64
WANTED = {"brakes": Wanted(version="1.1.0", sha256=SHA)}
RIGHT = TargetResult(component="brakes", version="1.1.0", sha256=SHA)


def status(seq: int, word: str, *, attempt: int = 1, **more: Any) -> Status:
    fields: dict[str, Any] = {
        "message_id": f"m{seq}",
        "job_id": "j",
        "step": word,
        "at": datetime(2026, 11, 25, tzinfo=UTC),
    }
    if word == "done" and "targets" not in more:
        more["targets"] = (RIGHT,)
    return Status(**fields | more, seq=seq, attempt=attempt, status=TruckStatus(word))


def at(
    state: str, *, attempt: int = 1, key: tuple[int, int, int] | None = (1, 1, 5), key_id: str = "m5"
) -> Progress:
    key = key or (0, 0, 0)
    place = StatusKey(attempt=key[0], store_no=key[1], seq=key[2], message_id=key_id)
    return Progress(state=JobState(state), attempt=attempt, key=place)


CASES: dict[str, tuple[Progress, Status, int, str | None]] = {
    "the first word of a dispatched job": (
        at("dispatched", key=None),
        status(1, "downloading"),
        1,
        "downloading",
    ),
    "a job whose dispatch was not recorded": (at("ready", key=None), status(1, "flashing"), 1, "flashing"),
    "a restored office that thinks nothing was sent": (
        at("scheduled", key=None),
        status(1, "downloading"),
        1,
        "downloading",
    ),
    "a newer word": (at("downloading"), status(6, "flashing"), 1, "flashing"),
    "the same word again": (at("downloading"), status(5, "downloading"), 1, None),
    "an older word": (at("flashing"), status(4, "downloading"), 1, None),
    "an older final word": (at("flashing"), status(4, "error"), 1, "error"),
    "a newer word of an older store": (at("flashing", key=(1, 2, 5)), status(99, "downloading"), 1, None),
    "a smaller number of a newer store": (at("flashing"), status(1, "downloading"), 2, "downloading"),
    "back from flashing: the agent began anew": (at("flashing"), status(9, "downloading"), 1, "downloading"),
    "a word after the end": (at("done"), status(9, "flashing"), 1, None),
    "a second end, later": (at("done"), status(9, "error"), 1, None),
    "a second end that was really the first": (at("error"), status(4, "done"), 1, "done"),
    "an end after four silent weeks": (at("silent"), status(6, "done"), 1, "done"),
    "an end while it is being cancelled": (at("cancelling"), status(6, "done"), 1, "done"),
    "the cancel is obeyed": (at("cancelling"), status(6, "cancelled"), 1, "cancelled"),
    "an operator gave it up": (at("abandoned"), status(6, "done"), 1, None),
    "the office cancelled it before the dispatch": (at("cancelled", key=None), status(1, "done"), 1, None),
    "the office refused it before the dispatch": (at("error", key=None), status(1, "downloading"), 1, None),
    "a word of an older attempt": (at("dispatched", attempt=2), status(9, "done"), 1, None),
    "the first word of a newer attempt": (
        at("dispatched", attempt=2),
        status(1, "flashing", attempt=2),
        1,
        "flashing",
    ),
    "a newer attempt after an end": (at("error"), status(1, "downloading", attempt=2), 1, "downloading"),
    "equal keys but for the id": (at("downloading"), status(5, "flashing", message_id="m9"), 1, "flashing"),
}


@pytest.mark.parametrize("name", CASES)
def test_case(name: str) -> None:
    job, word, store_no, expected = CASES[name]
    after = merge(job, WANTED, word, store_no)
    assert (None if after is None else after.state) == expected
    if after is not None:
        assert after.key == StatusKey(
            attempt=word.attempt, store_no=store_no, seq=word.seq, message_id=word.message_id
        )
        assert after.attempt == max(job.attempt, word.attempt)
        assert (after.step, after.progress, after.reason) == (word.step, word.progress, word.reason)


WRONG: dict[str, tuple[TargetResult, ...] | None] = {
    "nothing": None,
    "no targets": (),
    "another version": (TargetResult(component="brakes", version="1.0.0", sha256=SHA),),
    "another hash": (TargetResult(component="brakes", version="1.1.0", sha256="b" * 64),),
    "another component": (TargetResult(component="mast", version="1.1.0", sha256=SHA),),
    "two answers": (RIGHT, TargetResult(component="brakes", version="1.0.0", sha256=SHA)),
    "the same twice": (RIGHT, RIGHT),
}


@pytest.mark.parametrize("name", WRONG)
def test_done_without_the_right_answer_is_an_error(name: str) -> None:
    after = merge(at("flashing"), WANTED, status(9, "done", targets=WRONG[name]), 1)
    assert after is not None
    assert after.state is JobState.ERROR
    assert after.error is not None
    assert (after.error.code, "brakes" in after.error.text) == ("read_back_mismatch", True)


def test_done_of_all_components_and_of_others_too_is_done() -> None:
    wanted = WANTED | {"mast": Wanted(version="2", sha256=SHA)}
    mast = TargetResult(component="mast", version="2", sha256=SHA)
    one = merge(at("flashing"), wanted, status(9, "done"), 1)
    both = merge(at("flashing"), wanted, status(9, "done", targets=(mast, RIGHT)), 1)
    more = merge(at("flashing"), WANTED, status(9, "done", targets=(mast, RIGHT)), 1)
    assert [p and p.state for p in (one, both, more)] == ["error", "done", "done"]


def test_everything_shown_is_of_the_word_that_won() -> None:
    first = merge(
        at("downloading"),
        WANTED,
        status(6, "error", reason="wet", progress=7, error=Error(code="x", text="y")),
        1,
    )
    assert first is not None
    second = merge(first, WANTED, status(3, "done"), 1)
    assert second is not None
    assert (second.reason, second.progress, second.error) == (None, None, None)
    assert second.read_back == (RIGHT,)
