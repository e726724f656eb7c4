"""The command line itself: verbs, exit codes, one sentence for each failure."""

from __future__ import annotations

import importlib

import pytest

from cli.main import VERBS, dispatch


@pytest.mark.parametrize("arguments", [[], ["--help"], ["help"]])
def test_without_a_verb_it_teaches_all_of_them(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert dispatch(arguments) == 0
    shown = capsys.readouterr().out
    assert all(f"  {verb} " in shown for verb in VERBS)


def test_an_unknown_verb_is_one_sentence_with_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["relase"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == "quarry: there is no verb 'relase'; did you mean 'release'?\n"


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_is_there_and_teaches_its_use(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert importlib.import_module(VERBS[verb][0]).app is not None
    assert dispatch([verb, "--help"]) == 0
    assert "Usage: quarry" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [["job", "show"], ["device", "add", "truck-1"], ["release", "sign"], ["demo", "--trucks", "x"]],
)
def test_wrong_use_exits_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["job", "list"], "it is not said which office is meant"),
        (["job", "list", "--data", "/nowhere"], "no office runs with the data folder /nowhere"),
        (
            ["device", "list", "--office", "http://127.0.0.1:1", "--token-file", "/nowhere"],
            "the admin token can't be read",
        ),
        (["release", "document", "show", "--document", "/nowhere"], "/nowhere can't be read"),
    ],
)
def test_a_failure_is_one_sentence_with_advice_and_exit_1(
    arguments: list[str],
    says: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("QUARRY_DATA", "QUARRY_OFFICE", "QUARRY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    assert dispatch(arguments) == 1
    shown = capsys.readouterr()
    assert says in shown.err
    assert " -- " in shown.err
    assert shown.err.count("\n") == 1
