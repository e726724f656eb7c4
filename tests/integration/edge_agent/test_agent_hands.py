"""What a person at the truck can do with `quarry agent`: no network, and with or without an agent."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from edge_agent.cli import app
from edge_agent.hands import cli_hands
from edge_agent.hands.asks import MOST_WAITING, Ask, Asks, asks_folder, leave, take_answer
from edge_agent.interlocks.hold import hold_path
from edge_agent.office.enrol import Credentials, Enrolled, Pending, write_credentials
from edge_agent.store.journal import Asked, Change, Report
from edge_agent.store.store import Store
from edge_agent.trust.counters import Counters
from shared.messages import Command, CommandTarget
from shared.release import FirmwareSpec
from shared.states import TruckStatus, UpdateState
from shared.trust.document import make_document
from shared.trust.keys import load_signer, new_key

IMAGE = b"image 2.0.0" * 500
SECRETS = {"http_token": "T" * 40, "mqtt_password": "P" * 40}
ECU_SECRET = bytes(range(100, 132))


class Desk:
    """A truck's data and configuration, and somebody who types."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        private, public = new_key()
        self.signer = load_signer(private)
        (folder / "firmware-key.pub.pem").write_bytes(public)
        secret = folder / "brake-controller.secret"
        secret.touch(mode=0o600)
        secret.write_bytes(ECU_SECRET)
        self.config = folder / "agent.toml"
        assert self.typed("init", "--out", str(self.config), config=False).exit_code == 0
        text = self.config.read_text().replace("/var/lib/quarry-agent", "data")
        self.config.write_text(text.replace("https://ota.example.org", "http://127.0.0.1:9"))

    def typed(self, *args: str, config: bool = True) -> Result:
        more = ["--config", str(self.config)] if config else []
        return CliRunner().invoke(app, [*args, *more])

    def asked(self, *args: str, code: int = 0) -> dict[str, Any]:
        done = self.typed(*args, "--json")
        assert done.exit_code == code, (done.output, done.exception)
        assert done.stdout.count("\n") == 1
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    @asynccontextmanager
    async def agent(self) -> AsyncIterator[tuple[Store, list[str]]]:
        """The part of a running agent that takes asks up; the jobs that it was told to hurry."""
        hurried: list[str] = []
        async with Store.open(self.data / "agent.db") as store:
            asks = Asks(self.data, store, hurry=hurried.append)
            await asks.take_all()
            task = asyncio.create_task(asks.run())
            yield store, hurried
            task.cancel()
            await asyncio.wait({task})

    def spec(self, **other: Any) -> FirmwareSpec:
        usual: dict[str, Any] = {
            "kind": "brake-controller",
            "hardware": ("rev-b",),
            "version": "2.0.0",
            "release_counter": 2,
            "length": len(IMAGE),
            "sha256": hashlib.sha256(IMAGE).hexdigest(),
        }
        return FirmwareSpec(**{**usual, **other})

    def drive(self, *, image: bytes = IMAGE, expires_in_s: float = 86400 * 900, **other: Any) -> list[str]:
        """A USB drive with a document and an image; what to type for it."""
        drive = self.folder / "usb"
        drive.mkdir(exist_ok=True)
        signer = other.pop("signer", self.signer)
        expires = datetime.now(UTC) + timedelta(seconds=expires_in_s)
        (drive / "fw.json").write_bytes(make_document(self.spec(**other), signer, expires))
        (drive / "fw.bin").write_bytes(image)
        return ["install-file", "--document", str(drive / "fw.json"), "--image", str(drive / "fw.bin")]

    def command(self, job_id: str = "job-1") -> Command:
        spec = self.spec()
        document = make_document(spec, self.signer, datetime(2030, 1, 1, tzinfo=UTC)).decode()
        target = CommandTarget(
            component="brake",
            version=spec.version,
            sha256=spec.sha256,
            length=spec.length,
            document=document,
            url="http://office/x",
        )
        return Command(
            command_id=job_id, job_id=job_id, attempt=1, revision=1, kind="install", targets=(target,)
        )

    async def job(self, state: UpdateState, job_id: str = "job-1") -> None:
        """A job of the office that has come so far."""
        async with Store.open(self.data / "agent.db") as store:
            await store.take_command(self.command(job_id))
            entry = await store.newest(job_id)
            assert entry is not None
            report = Report(status=TruckStatus.DOWNLOADING, step="x")
            await store.record(Change(entry=replace(entry, state=state), report=report))


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_a_truck_is_held_and_released(desk: Desk) -> None:
    held = desk.asked("hold", "--why", "blasting at 12", "--by", "ivanov")
    assert (held["held"], held["by"], held["why"]) == (True, "ivanov", "blasting at 12")
    assert desk.asked("status")["hold"]["why"] == "blasting at 12"
    assert "by ivanov: blasting at 12" in desk.typed("status").output
    again = desk.typed("hold", "--why", "mine", "--by", "petrov")
    assert again.exit_code == cli_hands.REFUSED
    assert "ivanov holds this truck already" in again.stderr
    assert desk.asked("hold", "--why", "mine", code=cli_hands.REFUSED)["code"] == "already_held"
    assert json.loads(hold_path(desk.data).read_bytes())["by"] == "ivanov"
    assert desk.asked("release-hold")["was_held_by"] == "ivanov"
    assert desk.asked("release-hold")["was_held_by"] is None
    assert desk.asked("status")["hold"] is None


@pytest.mark.parametrize("verb", ["abort", "retry"])
async def test_a_job_that_nobody_knows(desk: Desk, verb: str) -> None:
    for _ in range(2):
        found = await asyncio.to_thread(desk.asked, verb, "no-job", code=cli_hands.NO_JOB)
        assert found["code"] == "no_such_job"
        async with Store.open(desk.data / "agent.db"):
            pass
    assert not list(asks_folder(desk.data).glob("*"))


@pytest.mark.parametrize("state", [UpdateState.RECEIVED, UpdateState.DOWNLOADING, UpdateState.WAITING])
async def test_an_abort_waits_for_the_agents_start_and_comes_before_everything(
    desk: Desk, state: UpdateState
) -> None:
    await desk.job(state)
    found = await asyncio.to_thread(desk.asked, "abort", "job-1", "--by", "ivanov")
    assert (found["ok"], found["taken"]) == (True, False)
    async with desk.agent() as (store, _):
        entry = await store.newest("job-1")
        assert entry is not None
        assert entry.asked is Asked.CANCEL
    assert not list(asks_folder(desk.data).glob("*.json"))


@pytest.mark.parametrize(
    ("state", "code"),
    [
        (UpdateState.FLASHING, "too_late"),
        (UpdateState.ACTIVATING, "too_late"),
        (UpdateState.CHECKING, "too_late"),
        (UpdateState.DONE, "ended"),
        (UpdateState.ERROR, "ended"),
        (UpdateState.CANCELLED, "ended"),
    ],
)
async def test_what_can_no_longer_be_aborted(desk: Desk, state: UpdateState, code: str) -> None:
    await desk.job(state)
    found = await asyncio.to_thread(desk.asked, "abort", "job-1", code=cli_hands.REFUSED)
    assert found["code"] == code
    # The agent says the same, should the ECU have been touched between the question and the ask.
    leave(desk.data, Ask(ask_id="a", kind="abort", job_id="job-1", by="x", at=datetime.now(UTC)))
    async with desk.agent() as (store, _):
        answer = take_answer(desk.data, "a")
        assert answer is not None
        assert answer.code == code
        entry = await store.newest("job-1")
        assert entry is not None
        assert (entry.state, entry.asked) == (state, None)


async def test_a_running_agent_answers(desk: Desk) -> None:
    await desk.job(UpdateState.WAITING)
    async with desk.agent() as (store, hurried):
        assert (await asyncio.to_thread(desk.asked, "retry", "job-1"))["taken"] is True
        assert hurried == ["job-1"]
        assert (await asyncio.to_thread(desk.asked, "abort", "job-1"))["taken"] is True
        entry = await store.newest("job-1")
        assert entry is not None
        assert entry.asked is Asked.CANCEL
        late = await asyncio.to_thread(desk.asked, "retry", "job-1", code=cli_hands.REFUSED)
        assert "being cancelled" in late["text"]
    assert not list(asks_folder(desk.data).glob("*")), "answers that were read are gone"


async def test_an_agent_that_does_not_answer_is_told_of(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    await desk.job(UpdateState.WAITING)
    monkeypatch.setattr(cli_hands, "ANSWER_WITHIN_S", 0.2)
    async with Store.open(desk.data / "agent.db"):
        found = await asyncio.to_thread(desk.asked, "abort", "job-1", code=cli_hands.NOT_TAKEN)
    assert found["code"] == "not_taken"
    assert len(list(asks_folder(desk.data).glob("*.json"))) == 1, "it stays asked for"


async def test_a_failed_job_of_the_office_is_the_offices_to_begin_anew(desk: Desk) -> None:
    await desk.job(UpdateState.ERROR)
    found = await asyncio.to_thread(desk.asked, "retry", "job-1", code=cli_hands.REFUSED)
    assert "Ask the office for a new job" in found["text"]


async def test_asks_are_bounded_and_damaged_ones_stop_nothing(desk: Desk) -> None:
    await desk.job(UpdateState.WAITING)
    for _ in range(MOST_WAITING):
        await asyncio.to_thread(desk.asked, "abort", "job-1")
    over = await asyncio.to_thread(desk.typed, "abort", "job-1")
    assert over.exit_code == 1
    assert "wait for the agent already" in str(over.exception)
    folder = asks_folder(desk.data)
    for path in list(folder.glob("*.json"))[1:]:
        path.unlink()
    (folder / "half.json").write_bytes(b'{"ask_id": ')
    (folder / "huge.json").write_bytes(b" " * 300_000)
    (folder / "kind.json").write_bytes(b'{"ask_id": "k", "kind": "erase", "job_id": "j", "by": "x"}')
    bad = Ask(ask_id="i", kind="install", job_id="j", by="x", at=datetime.now(UTC), command={"no": "command"})
    leave(desk.data, bad)
    async with desk.agent() as (store, _):
        entry = await store.newest("job-1")
        assert entry is not None
        assert entry.asked is Asked.CANCEL
        answer = take_answer(desk.data, "i")
        assert answer is not None
        assert answer.code != "taken"
    assert not list(folder.glob("*.json"))


async def test_a_file_is_installed_by_the_next_agent_once(desk: Desk) -> None:
    found = await asyncio.to_thread(desk.asked, *desk.drive(), "--by", "ivanov")
    job_id = found["job_id"]
    assert job_id.startswith("local-")
    image = desk.data / "images" / f"{desk.spec().sha256}.bin"
    assert image.read_bytes() == IMAGE
    assert image.stat().st_mode & 0o777 == 0o600
    [ask] = asks_folder(desk.data).glob("*.json")
    raw = ask.read_bytes()
    async with desk.agent() as (store, _):
        entry = await store.newest(job_id)
        assert entry is not None
        assert (entry.state, entry.target.sha256) == (UpdateState.RECEIVED, desk.spec().sha256)
    # A crash between taking it up and forgetting it: the second time changes nothing.
    ask.write_bytes(raw)
    async with desk.agent() as (store, _):
        assert len(await store.jobs()) == 1


async def test_a_failed_installation_is_begun_again_as_a_new_attempt(desk: Desk) -> None:
    job_id = (await asyncio.to_thread(desk.asked, *desk.drive()))["job_id"]
    async with desk.agent() as (store, _):
        entry = await store.newest(job_id)
        assert entry is not None
        report = Report(status=TruckStatus.ERROR, step="finished")
        await store.record(Change(entry=replace(entry, state=UpdateState.ERROR), report=report))
        assert (await asyncio.to_thread(desk.asked, "retry", job_id))["taken"] is True
        again = await store.newest(job_id)
        assert again is not None
        assert (again.attempt, again.state) == (2, UpdateState.RECEIVED)


REFUSED_FILES: dict[str, tuple[dict[str, Any], str]] = {
    "another key": ({"signer": load_signer(new_key()[0])}, "0 valid signatures"),
    "its time is over": ({"expires_in_s": -60}, "expired"),
    "another kind": ({"kind": "pump"}, "components of this truck that fit: none"),
    "another hardware": ({"hardware": ("rev-z",)}, "rev-z"),
    "another image": ({"image": b"x" * len(IMAGE)}, "not the one that was signed"),
    "too long": ({"image": IMAGE + b"x"}, "longer than"),
    "too short": ({"image": IMAGE[:-1]}, "were signed"),
    "empty": ({"image": b""}, "has 0 bytes"),
    "older than what ran": ({"release_counter": 1}, "ran 2 already"),
}


@pytest.mark.parametrize("case", REFUSED_FILES)
async def test_what_is_not_to_be_installed_leaves_nothing_behind(desk: Desk, case: str) -> None:
    other, says = REFUSED_FILES[case]
    desk.data.mkdir()
    await (await Counters.open(desk.data / "counters.json")).raise_to("brake", 2)
    done = await asyncio.to_thread(desk.typed, *desk.drive(**other))
    assert done.exit_code == 1
    assert says in str(done.exception)
    assert not list(asks_folder(desk.data).glob("*"))
    assert not list((desk.data / "images").glob("*"))


async def test_damaged_counters_install_nothing(desk: Desk) -> None:
    desk.data.mkdir()
    (desk.data / "counters.json").write_bytes(b"{")
    done = await asyncio.to_thread(desk.typed, *desk.drive())
    assert done.exit_code == 1
    assert "counters.json is damaged" in str(done.exception)


def test_a_full_image_folder_refuses_and_removes_nothing(desk: Desk) -> None:
    images = desk.data / "images"
    images.mkdir(parents=True)
    kept = images / f"{'0' * 64}.bin"
    with kept.open("wb") as file:
        file.truncate(512 * 1024 * 1024 - 10)
    done = desk.typed(*desk.drive())
    assert done.exit_code == 1
    assert "images may take" in str(done.exception)
    assert list(images.iterdir()) == [kept]


@pytest.fixture
def secrets(desk: Desk) -> list[bytes]:
    """Every secret that this truck has, after an enrolment that is under way again."""
    write_credentials(
        desk.data,
        Credentials(
            enrolled=Enrolled(
                device_id="truck-1",
                mqtt_host="broker",
                mqtt_port=8883,
                http_token=SECRETS["http_token"],
                mqtt_password=SECRETS["mqtt_password"],
            ),
            pending=Pending(token_sha256="e" * 64, http_token="N" * 40, mqtt_password="M" * 40),
        ),
    )
    return [*(one.encode() for one in SECRETS.values()), b"e" * 64, b"N" * 40, b"M" * 40, ECU_SECRET]


def members(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as opened:
        return {
            one.name.removeprefix("quarry-diag/"): (opened.extractfile(one) or pytest.fail("no file")).read()
            for one in opened
        }


async def test_an_archive_has_what_support_needs_and_no_secret(desk: Desk, secrets: list[bytes]) -> None:
    await desk.job(UpdateState.WAITING)
    await asyncio.to_thread(desk.asked, "hold", "--why", "looking at it", "--by", "ivanov")
    (desk.data / "log").mkdir()
    spilt = b" ".join([*secrets, ECU_SECRET.hex().encode()])
    (desk.data / "log" / "agent.log").write_bytes(b'{"message": "spilt ' + spilt + b'"}\nlast line\n')
    desk.config.write_text(desk.config.read_text() + '\n# password = "in a comment"\n')
    out = desk.folder / "diag.tar.gz"
    found = await asyncio.to_thread(desk.asked, "diag", "collect", "--out", str(out))
    assert found["bytes"] == out.stat().st_size
    assert out.stat().st_mode & 0o777 == 0o600
    parts = members(out)
    everything = b"\n".join(parts.values())
    for secret in [*secrets, ECU_SECRET.hex().encode(), b"in a comment"]:
        assert secret not in everything
    journal = json.loads(parts["journal.json"])
    assert [job["job_id"] for job in journal["jobs"]] == ["job-1"]
    assert journal["pending_statuses"] >= 1
    assert json.loads(parts["agent.json"])["hold"]["by"] == "ivanov"
    assert json.loads(parts["config-verdict.json"])["good"] is True
    assert b'security_secret_file = "brake-controller.secret"' in parts["config.toml"]
    assert b"last line" in parts["log/agent.log"]
    assert any(link["name"] == "lo" for link in json.loads(parts["links.json"]))
    assert "credentials.json" in {one["name"] for one in json.loads(parts["data-folder.json"])["files"]}
    assert "quarry-ota" in json.loads(parts["packages.json"])
    assert "counters.json" in json.loads(parts["problems.json"])


def test_an_archive_is_bounded(desk: Desk, secrets: list[bytes]) -> None:
    (desk.data / "log").mkdir(parents=True)
    for number in range(12):
        with (desk.data / "log" / f"agent.log.{number}").open("wb") as file:
            file.write(b"begin\n" + b"x" * 99 + b"\n" + b"y\n" * 1_500_000 + b"end\n")
    out = desk.folder / "diag.tar.gz"
    found = desk.asked("diag", "collect", "--out", str(out))
    assert "log/agent.log.9" in found["problems"]
    parts = members(out)
    assert sum(map(len, parts.values())) < 9 * 1024 * 1024
    assert parts["log/agent.log.0"].endswith(b"end\n")
    assert b"begin" not in parts["log/agent.log.0"]


@pytest.mark.parametrize("content", [None, b"not = [toml", b"\xff\xfe", b'data_dir = "data"\n'])
def test_an_archive_of_a_truck_whose_configuration_is_bad(
    desk: Desk, secrets: list[bytes], content: bytes | None
) -> None:
    if content is None:
        desk.config.unlink()
    else:
        desk.config.write_bytes(content)
    out = desk.folder / "diag.tar.gz"
    assert desk.asked("diag", "collect", "--out", str(out))["ok"] is True
    parts = members(out)
    assert json.loads(parts["config-verdict.json"])["good"] is False
    assert "about.json" in parts
    assert not any(secret in b"".join(parts.values()) for secret in secrets)


def test_an_archive_is_never_written_over_another_file(desk: Desk) -> None:
    out = desk.folder / "mine"
    out.write_text("mine")
    assert desk.typed("diag", "collect", "--out", str(out)).exit_code == 1
    assert out.read_text() == "mine"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act for another user")
def test_what_root_does_belongs_to_the_agents_user() -> None:
    user = 54321
    # Not in pytest's folder, which each session closes to other users.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        desk = Desk(folder)
        desk.data.mkdir(mode=0o700)
        os.chown(desk.data, user, user)
        python = [sys.executable, "-P", "-m", "cli.main", "agent"]
        for args in (["hold", "--why", "x"], ["status", "--json"], desk.drive()):
            done = subprocess.run(
                [*python, *args, "--config", str(desk.config)], capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
        found = [desk.data, *desk.data.rglob("*")]
        assert len(found) >= 5
        assert {path.stat().st_uid for path in found} == {user}
