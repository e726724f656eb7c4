"""`quarry bench`: the form that machines read, goals met and missed, and what could not be measured."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from cli import bench
from cli.benches.flash import CASES
from cli.benches.report import Case, Row, figure, share_of, within

NEAR = share_of("near", 9.6, "kB/s", limit=10.0, limit_is="the wire", at_least=0.95)
FAR = share_of("far", 9.4, "kB/s", limit=10.0, limit_is="the wire", at_least=0.95)
OVER = within("over", 2.1, "ms", limit=2.0, limit_is="p99 under 2 ms")


def broken() -> Row:
    raise OSError("no such bus")


@pytest.fixture(autouse=True)
def logs_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    # The command runs in this process: its logs would go to a stream that is closed afterwards.
    monkeypatch.setattr(bench, "set_up_logs", lambda *_, **__: None)


@pytest.fixture
def cases(monkeypatch: pytest.MonkeyPatch) -> list[Case]:
    found = [
        Case(name="near", unit="kB/s", goal=NEAR.goal, measure=lambda: NEAR),
        Case(name="broken", unit="s", goal="<= limit", measure=broken),
        Case(name="free", unit="s", goal="none", measure=lambda: figure("free", 1.0, "s")),
    ]
    monkeypatch.setitem(sys.modules, "cli.benches.of_this_test", SimpleNamespace(CASES=found))
    monkeypatch.setitem(bench.BENCHES, "flash", ("cli.benches.of_this_test", "a test's"))
    return found


def run(*words: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(bench.app, list(words))
    return result.exit_code, result.stdout, result.stderr


def test_json_is_one_document_of_the_stable_form(cases: list[Case]) -> None:
    code, out, _ = run("flash", "--json")
    told: dict[str, Any] = json.loads(out)
    assert code == 0
    assert told["bench"] == "flash"
    assert {"seconds", "machine", "rows"} <= set(told)
    near, bad, free = told["rows"]
    assert near == {
        "case": "near",
        "value": 9.6,
        "unit": "kB/s",
        "limit": 10.0,
        "limit_is": "the wire",
        "ratio": 0.96,
        "goal": ">= 0.95 of limit",
        "met": True,
    }
    assert (bad["value"], bad["met"]) == (None, False)
    assert "no such bus" in bad["why"]
    assert free["met"] is None


def test_strict_fails_on_what_is_missed_or_not_measured(cases: list[Case]) -> None:
    assert run("flash", "--strict", "--case", "near", "--case", "free")[0] == 0
    assert run("flash", "--strict", "--case", "b*")[0] == 1
    cases.append(Case(name="far", unit="kB/s", goal=FAR.goal, measure=lambda: FAR))
    assert run("flash", "--case", "far")[0] == 0
    assert run("flash", "--strict", "--case", "far")[0] == 1
    cases.append(Case(name="over", unit="ms", goal=OVER.goal, measure=lambda: OVER))
    assert run("flash", "--strict", "--case", "over")[0] == 1


def test_the_table_names_every_case_and_why_one_is_missing(cases: list[Case]) -> None:
    code, out, _ = run("flash")
    assert code == 0
    assert all(one.name in out for one in cases)
    assert "not measured: OSError: no such bus" in out


@pytest.mark.parametrize(
    ("words", "said"), [(("rocket",), "no bench"), (("flash", "--case", "zzz"), "no case"), ((), "Missing")]
)
def test_wrong_use(cases: list[Case], words: tuple[str, ...], said: str) -> None:
    code, _, err = run(*words)
    assert code == 2
    assert said in err


def test_flash_has_the_cases_that_people_compare() -> None:
    names = {one.name for one in CASES}
    assert names >= {
        *("uds.classic.250k", "uds.classic.500k", "uds.classic.1m", "uds.fd.500k-2m", "uds.fd.500k-5m"),
        *("uds.paced.250k", "uds.paced.500k", "an3154.125k", "an3154.1m", "an5405.250k-1m"),
        *("an3154.ack_overhead", "an3154.ack_p99_loaded", "sector.changed_1_of_1mib"),
        *("host.frames_send", "host.frames_receive", "host.cpu_per_mib"),
        *("vcan.frames", "vcan.isotp_kernel", "plain.paced.250k", "plain.paced.500k"),
    }
