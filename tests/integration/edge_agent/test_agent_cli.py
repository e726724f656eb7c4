"""`quarry agent` as it is typed: one sentence and a documented exit code for every mistake."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from cli.main import dispatch
from edge_agent.credentials import Credentials, Enrolled, write_credentials
from shared.trust.keys import new_key


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The example with the files that it names, on this machine's paths."""
    file = tmp_path / "agent.toml"
    assert dispatch(["agent", "init", "--out", str(file)]) == 0
    text = file.read_text().replace("/var/lib/quarry-agent", "data")
    file.write_text(text.replace("https://ota.example.org", "http://127.0.0.1:9"))
    (tmp_path / "firmware-key.pub.pem").write_bytes(new_key()[1])
    secret = tmp_path / "brake-controller.secret"
    secret.touch(mode=0o600)
    secret.write_bytes(b"\x01" * 32)
    return file


def run(*args: str) -> int:
    try:
        return dispatch(["agent", *args])
    except SystemExit as ended:
        return int(ended.code or 0)


def test_init_writes_the_example_and_never_over_another_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "agent.toml"
    assert run("init", "--out", str(out)) == 0
    assert "office" in tomllib.loads(out.read_text())
    out.write_text("mine")
    capsys.readouterr()
    assert run("init", "--out", str(out)) == 1
    assert out.read_text() == "mine"
    assert "File exists" in capsys.readouterr().err
    assert run("init", "--out", str(tmp_path / "none" / "agent.toml")) == 1


def test_a_truck_that_was_never_started_can_be_looked_at(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert run("status", "--config", str(config), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["device_id"], found["running"], found["store_id"]) == (None, False, None)
    assert run("jobs", "--config", str(config), "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"jobs": []}
    assert run("status", "--config", str(config)) == 0
    assert "not enrolled" in capsys.readouterr().out
    assert run("jobs", "--config", str(config)) == 0
    assert "no job" in capsys.readouterr().out
    assert not (config.parent / "data").exists(), "looking leaves nothing behind"


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["run"], 78, "not enrolled"),
        (["enroll", "--token", "t"], 75, "does not answer"),
        (["enroll", "--token", ""], 1, "no enrolment token"),
        (["enroll"], 2, "--token-file"),
        (["enroll", "--token", "t", "--token-file", "t"], 2, "--token-file"),
        (["enroll", "--token-file", "/none/token"], 1, "/none/token can't be read"),
        (["enroll", "--token-file", "/dev/zero"], 1, "over 4096 bytes"),
        (["enroll", "--token-file", "/dev/null"], 1, "no enrolment token"),
    ],
)
def test_what_can_not_be_done_is_one_sentence(
    config: Path, capsys: pytest.CaptureFixture[str], args: list[str], code: int, says: str
) -> None:
    capsys.readouterr()
    assert run(*args, "--config", str(config)) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert says in said.err
    assert "Traceback" not in said.err


@pytest.mark.parametrize("verb", ["run", "status", "jobs", "enroll"])
def test_a_bad_configuration_is_named(config: Path, capsys: pytest.CaptureFixture[str], verb: str) -> None:
    config.write_text(config.read_text().replace("threshold = 1", "treshold = 1"))
    capsys.readouterr()
    more = ["--token", "t"] if verb == "enroll" else []
    assert run(verb, "--config", str(config), *more) == (78 if verb == "run" else 1)
    said = capsys.readouterr().err
    assert "agent.toml: trust.threshold: is missing" in said


@pytest.mark.parametrize(
    "args", [["run"], ["enroll", "--config", "x"], ["status", "--config"], ["jobs", "--no-such"], ["no-such"]]
)
def test_wrong_use_exits_2(capsys: pytest.CaptureFixture[str], args: list[str]) -> None:
    assert run(*args) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("verb", ["run", "enroll", "status", "jobs", "init"])
def test_every_verb_teaches_itself(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    assert run(verb, "--help") == 0
    assert "Usage: quarry agent" in capsys.readouterr().out


def test_a_spoiled_certificate_hides_nothing_else(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    enrolled = Enrolled(
        device_id="truck-1",
        mqtt_host="h",
        mqtt_port=1,
        http_token="t" * 40,
        mqtt_password="p" * 40,
        client_key="x",
        certificate="x",
    )
    write_credentials(config.parent / "data", Credentials(enrolled=enrolled))
    capsys.readouterr()
    assert run("status", "--config", str(config), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["device_id"] == "truck-1"
    assert (found["certificate"]["standing"], "can't be read" in found["certificate"]["error"]) == (
        None,
        True,
    )
    assert run("status", "--config", str(config)) == 0
    assert "can't be read" in capsys.readouterr().out
