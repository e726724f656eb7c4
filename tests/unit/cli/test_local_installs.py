"""`quarry job` and `quarry device`: what people installed at trucks stands beside the office's jobs."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from cli import device as devices
from cli import job as jobs
from cli import office as module
from cli.local_installs import find_install
from cli.office import OfficeClient, OfficeRefused

TARGET = {"component": "brakes", "version": "1.1.0", "read_back_version": "1.1.0"}


def job(number: int) -> dict[str, Any]:
    return {
        "job_id": f"job-{number}",
        "device_id": "truck-001",
        "release": None,
        "targets": [TARGET],
        "state": "done",
        "step": "finished",
        "created_at": f"2026-11-25T04:00:0{number}Z",
    }


def install(number: int, device_id: str = "truck-001", **more: Any) -> dict[str, Any]:
    fields = {
        "job_id": f"local-{number}",
        "device_id": device_id,
        "origin": "truck",
        "targets": [TARGET],
        "state": "error",
        "step": "finished",
        "progress": None,
        "reason": None,
        "why": None,
        "error": {"text": "it did not work", "advice": "Look at it.", "code": "x", "retryable": False},
        "created_at": f"2026-11-25T04:00:0{number}Z",
        "updated_at": f"2026-11-25T04:01:0{number}Z",
    }
    return fields | more


class Office(OfficeClient):
    """Answers with what it is given, by path."""

    def __init__(self, **answers: list[dict[str, Any]]) -> None:
        self.answers = answers

    def __exit__(self, *_: object) -> None:
        """There is no connection to close."""

    def call(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        if path == "/devices/truck-001":
            seen = {"device_id": "truck-001", "name": "", "online": True, "last_seen_at": None}
            return {**seen, "components": []}
        if path.endswith("/ecus"):
            raise OfficeRefused("no director", status=404, code="not_found", advice="")
        wanted = more.get("params", {})
        found = [
            one
            for one in self.answers[path.strip("/").replace("-", "_")]
            if all(one.get(name) == value for name, value in wanted.items() if name != "limit")
        ]
        return {"items": found, "next_cursor": None}


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A command line, answered by this office; what it printed."""

    def act(office: Office, app: Any, *words: str) -> str:
        monkeypatch.setattr(module, "OfficeClient", lambda *_: office)
        done = CliRunner().invoke(app, list(words), env={"COLUMNS": "200"})
        assert done.exit_code == 0, (done.output, done.exception)
        return done.stdout

    return act


def test_jobs_of_both_kinds_are_one_list(typed: Any) -> None:
    office = Office(jobs=[job(3), job(1)], local_installs=[install(2), install(0)])
    found = json.loads(typed(office, jobs.app, "list", "--most", "3", "--json"))
    assert [(one["job_id"], one["origin"]) for one in found] == [
        ("job-3", "office"),
        ("local-2", "truck"),
        ("job-1", "office"),
    ]
    said = typed(office, jobs.app, "list")
    assert said.index("job-3") < said.index("local-2") < said.index("local-0")


def test_one_of_a_truck_is_shown_by_its_id(typed: Any) -> None:
    office = Office(local_installs=[install(2), install(1)])
    assert json.loads(typed(office, jobs.app, "show", "local-2", "--json")) == install(2)
    said = typed(office, jobs.app, "show", "local-2")
    assert "local-2: began at truck-001, is error" in said
    assert "it did not work -- Look at it." in said


@pytest.mark.parametrize("trucks", [[], ["truck-001", "truck-002"]])
def test_an_id_that_does_not_name_one_is_refused(trucks: list[str]) -> None:
    office = Office(local_installs=[install(2, truck) for truck in trucks])
    with pytest.raises(OfficeRefused) as refused:
        find_install(office, "local-2")
    assert refused.value.code == "unknown_job"
    assert all(truck in refused.value.message for truck in trucks)


def test_a_truck_is_shown_with_them(typed: Any) -> None:
    office = Office(local_installs=[install(2, targets=[{**TARGET, "version": None}])])
    found = json.loads(typed(office, devices.app, "show", "truck-001", "--json"))
    assert [one["job_id"] for one in found["local_installs"]] == ["local-2"]
    said = typed(office, devices.app, "show", "truck-001")
    assert "Installed by people at the truck" in said
    assert "brakes 1.1.0" in said.replace("\n", " ")
