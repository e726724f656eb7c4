"""`quarry job`: the reasons of waits in the language that was asked for, each once while it lasts."""

from __future__ import annotations

from typing import Any

import pytest
import typer

from cli import job as jobs

BRAKE = {"en": "the parking brake is not set", "ru": "стояночный тормоз не включён"}


def view(state: str, lang: str, *, waits: bool) -> dict[str, Any]:
    why = BRAKE[lang] if waits else None
    causes = [{"code": "brake_not_set", "text": BRAKE[lang]}] if waits else []
    line = {
        "at": "2026-11-25T04:00:00Z",
        "to_state": "downloading",
        "step": "waiting",
        "progress": None,
        "cause": "truck",
        "reason": BRAKE["en"],
        "why": BRAKE[lang],
        "causes": causes,
        "error": None,
    }
    return {
        "job_id": "job-1",
        "device_id": "truck-001",
        "state": state,
        "step": "waiting",
        "progress": 3,
        "reason": None,
        "why": why,
        "causes": causes,
        "error": None,
        "release": None,
        "targets": [
            {"component": "brakes", "version": "1.1.0", "read_back_version": None, "read_back_right": None}
        ],
        "history": [line],
    }


class Office:
    """Answers as the real one does: waiting twice, on its way, waiting again, done."""

    def __init__(self) -> None:
        self.waits = [True, True, False, True]
        self.asked: list[Any] = []

    def call(self, method: str, path: str, *, params: dict[str, str]) -> dict[str, Any]:
        self.asked.append((method, path, params))
        lang = params.get("lang", "en")
        if self.waits:
            return view("downloading", lang, waits=self.waits.pop(0))
        return view("done", lang, waits=False)


@pytest.mark.parametrize("lang", ["en", "ru", None])
def test_a_wait_is_told_once_in_the_language_that_was_asked_for(
    lang: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "POLL_S", 0.0)
    monkeypatch.setenv("COLUMNS", "200")
    office: Any = Office()
    jobs.follow(office, "job-1", lang=lang, as_json=False)
    told = capsys.readouterr()
    words = BRAKE[lang or "en"]
    assert told.err.count(words) == 2
    assert words in told.out
    assert (BRAKE["en"] in told.out) == (lang != "ru")
    assert {one[2].get("lang") for one in office.asked} == {lang}


def test_a_job_that_failed_exits_1() -> None:
    class Failed:
        def call(self, *_: Any, **__: Any) -> dict[str, Any]:
            return view("error", "ru", waits=False)

    failed: Any = Failed()
    with pytest.raises(typer.Exit) as ended:
        jobs.follow(failed, "job-1", lang="ru", as_json=False)
    assert ended.value.exit_code == 1
