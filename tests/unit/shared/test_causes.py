"""Causes of waits: the words of both languages, the way over the wire, and what a newer agent says."""

from __future__ import annotations

import string
from pathlib import Path

import pytest

from shared.causes import LANGUAGES, SENTENCES, WORDS, Cause, Language, as_said, as_told, sentence
from shared.errors import BadMessage
from shared.messages import MOST_CAUSES, MOST_DETAIL, Status, StatusBatch, ToldCause

GOLDEN = Path(__file__).parent / "golden"
WAIT = (Cause("brake_not_set"), Cause("battery_low", "24"), Cause("speed_unknown", "0x0b", "silent"))
IN_WORDS: dict[Language, str] = {
    "en": "the vehicle is not ready: the parking brake is not set, the battery voltage is below 24 V, "
    "the speed is not known (0x0b is silent)",
    "ru": "машина не готова: стояночный тормоз не включён, напряжение батареи ниже 24 В, "
    "скорость неизвестна (0x0b молчит)",
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_wait_is_said_in_the_readers_language(language: Language) -> None:
    assert sentence(WAIT, language) == IN_WORDS[language]
    assert sentence((), language) == ""


def test_it_comes_over_the_wire_as_it_is() -> None:
    first, newer = StatusBatch.from_json((GOLDEN / "status_waiting.json").read_bytes()).statuses
    assert as_said(first.causes) == WAIT
    assert as_told(WAIT) == first.causes
    assert first.reason == sentence(WAIT)
    assert as_said(newer.causes) == (Cause("wheel_chocks_missing", "left rear"),)


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_nobody_here_knows_is_shown_as_it_came(language: Language) -> None:
    unknown = (Cause("wheel_chocks_missing", "left rear", "sideways"),)
    assert sentence(unknown, language) == "wheel_chocks_missing (left rear sideways)"
    assert sentence((Cause("wheel_chocks_missing"),), language) == "wheel_chocks_missing"


def test_what_is_not_the_vehicles_does_not_say_that_it_is() -> None:
    opens = (Cause("window_opens", "2026-12-01T06:00:00+00:00"),)
    assert sentence(opens) == "the window for flashing opens at 2026-12-01T06:00:00+00:00"
    assert sentence(opens, "ru").startswith("окно для прошивки")
    assert sentence((Cause("brake_not_set"), Cause("written_on")), "ru").startswith("машина не готова: ")


def test_a_status_is_bounded() -> None:
    many = [Cause("held", "x" * 1000)] * 100
    told = as_told(many)
    assert told is not None
    assert len(told) == MOST_CAUSES
    assert {len(one.detail or "") for one in told} == {MOST_DETAIL}
    assert as_told(()) is None
    for causes in ([{"code": "a"}] * (MOST_CAUSES + 1), [{"code": ""}], [{"code": "a", "detail": "x" * 201}]):
        obj = {"message_id": "m", "job_id": "j", "attempt": 1, "seq": 1, "status": "flashing"}
        with pytest.raises(BadMessage):
            Status.from_obj({**obj, "step": "waiting", "at": "2026-11-25T14:02:00Z", "causes": causes})


def test_a_newer_field_of_a_cause_is_kept() -> None:
    obj = {"code": "held", "detail": "anna", "since": "2026-11-25T14:02:00Z"}
    assert ToldCause.from_obj(obj).to_obj() == obj


@pytest.mark.parametrize("code", SENTENCES)
def test_a_sentence_has_one_place_at_the_most_and_the_same_in_both_languages(code: str) -> None:
    places = [
        [name for _, name, _, _ in string.Formatter().parse(one) if name is not None]
        for one in SENTENCES[code]
    ]
    assert places[0] == places[1]
    assert places[0] in ([], [""])


def test_words_are_in_both_languages() -> None:
    assert all(en.isascii() and not ru.isascii() for en, ru in WORDS.values())
