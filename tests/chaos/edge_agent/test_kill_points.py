"""SIGKILL at every journal write and every act: the update ends done, once, with the right image.

The gateway is a process of its own (truck_child.py) with a real store on disk; so is the ECU's flash.
"""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from shared.messages import Command, CommandTarget
from shared.release import FirmwareSpec
from shared.trust.document import make_document
from shared.trust.keys import load_signer, new_key

CHILD = Path(__file__).with_name("truck_child.py")
IMAGE = bytes(range(256)) * 40
OLD = b"what runs today"
Live = Callable[[Path, str], int]
NEVER = "*#0"
PRIVATE, PUBLIC = new_key()


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    """One life of the gateway in a folder, killed at the k-th point of a name, `NAME#K` (`*`: of any name);
    returns the exit code.
    """
    with subprocess.Popen(
        [sys.executable, "-P", str(CHILD)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        stdin, stdout = child.stdin, child.stdout

        def act(folder: Path, kill_at: str) -> int:
            stdin.write(f"{folder} {kill_at}\n")
            stdin.flush()
            return int(stdout.readline())

        yield act
        stdin.close()


def new_truck(folder: Path) -> Path:
    """A truck that runs the old image, and the command for the new one."""
    folder.mkdir()
    (folder / "office.bin").write_bytes(IMAGE)
    (folder / "flash").write_bytes(OLD)
    (folder / "document").write_text(
        json.dumps({"version": "1.0.0", "sha256": hashlib.sha256(OLD).hexdigest()})
    )
    (folder / "mode").write_text("application")
    (folder / "public.pem").write_bytes(PUBLIC)
    spec = FirmwareSpec(
        kind="brake-controller",
        hardware=("rev-b",),
        version="2.0.0",
        release_counter=2,
        length=len(IMAGE),
        sha256=hashlib.sha256(IMAGE).hexdigest(),
    )
    target = CommandTarget(
        component="brakes",
        version=spec.version,
        sha256=spec.sha256,
        length=spec.length,
        document=make_document(spec, load_signer(PRIVATE), datetime(2030, 1, 1, tzinfo=UTC)).decode(),
        url=str(folder / "office.bin"),
    )
    command = Command(
        command_id="c1", job_id="job-1", attempt=1, revision=1, kind="install", targets=(target,)
    )
    (folder / "command.json").write_bytes(command.to_json())
    return folder


def check_end(folder: Path, kills: int) -> None:
    """The ECU runs the new image, and the office has every status exactly once."""
    assert (folder / "flash").read_bytes() == IMAGE
    assert json.loads((folder / "document").read_text())["version"] == "2.0.0"
    assert (folder / "mode").read_text() == "application"
    assert json.loads((folder / "counters.json").read_text()) == {"brakes": 2}
    received = [json.loads(line) for line in (folder / "office").read_text().splitlines()]
    by_id = {one["message_id"]: one for one in received}
    # A repeat has its first id, number and words: the office's dedup takes it.
    assert all(by_id[one["message_id"]] == one for one in received)
    assert max(Counter(one["message_id"] for one in received).values()) <= 1 + kills
    once = sorted(by_id.values(), key=lambda one: one["seq"])
    assert [one["seq"] for one in once] == list(range(1, len(once) + 1))
    assert len({one["store_id"] for one in once}) == 1
    assert [one["status"] for one in once].count("done") == 1
    assert once[-1]["status"] == "done"
    assert not {one["status"] for one in once} & {"error", "cancelled"}
    steps = [one["step"] for one in once]
    for step in ("received", "downloading", "verifying", "preparing"):
        assert steps.count(step) == 1, steps
    assert {"activating", "reading_back"} & set(steps)


def passed(folder: Path) -> list[str]:
    return (folder / "points").read_text().splitlines()


def kill_at_each_point(live: Live, tmp_path: Path, tail: str) -> None:
    calm = new_truck(tmp_path / f"calm{tail}")
    assert live(calm, NEVER) == 0
    check_end(calm, kills=0)
    points = passed(calm)
    for needed in (
        "journal.before:flashing",
        "journal.after:flashing",
        "act.before:flash",
        "act.after:flash",
        "ecu.erased",
        "journal.before:done",
        "journal.after:done",
        "sql.COMMIT",
    ):
        assert needed in points
    killed_at = set()
    for place, name in enumerate(points):
        number = points[: place + 1].count(name)
        folder = new_truck(tmp_path / f"killed-{place}{tail}")
        code = live(folder, f"{name}#{number}")
        # Progress is written beside the act, so how often some points are passed differs a little from
        # life to life; each is passed once at least.
        assert code == -signal.SIGKILL or (code == 0 and number > 1), (name, number)
        if code != 0:
            killed_at.add(passed(folder)[-1])
            assert live(folder, NEVER) == 0, (name, number)
        check_end(folder, kills=int(code != 0))
    assert killed_at == set(points)


def test_killed_at_each_point_it_ends_done_once(live: Live, tmp_path: Path) -> None:
    kill_at_each_point(live, tmp_path, "")


@pytest.mark.long
@pytest.mark.timeout(600)
def test_killed_at_each_statement_it_ends_done_once(live: Live, tmp_path: Path) -> None:
    kill_at_each_point(live, tmp_path, "-sql")


def test_a_gateway_whose_job_is_over_does_nothing_more(live: Live, tmp_path: Path) -> None:
    folder = new_truck(tmp_path / "over")
    assert live(folder, NEVER) == 0
    (folder / "flash").write_bytes(b"another hand")
    received = (folder / "office").read_bytes()
    assert live(folder, NEVER) == 0
    assert (folder / "flash").read_bytes() == b"another hand"
    assert (folder / "office").read_bytes() == received


@pytest.mark.long
@pytest.mark.timeout(600)
def test_killed_several_times_it_ends_done_once(live: Live, tmp_path: Path) -> None:
    rng = random.Random(3)
    for number in range(150):
        folder = new_truck(tmp_path / f"truck-{number}")
        kills = 0
        for _ in range(rng.randint(2, 6)):
            code = live(folder, f"*#{rng.randint(1, 30)}")
            kills += code == -signal.SIGKILL
            assert code in {0, -signal.SIGKILL}
        assert live(folder, NEVER) == 0
        check_end(folder, kills=kills)
