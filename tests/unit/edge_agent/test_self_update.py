"""Which version of the agent runs: decisions, files, and a power cut at every point."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.gateway import trial
from edge_agent.gateway.launch import BASE_VARIABLE, FOLDER_VARIABLE
from edge_agent.gateway.self_update import (
    HEALTHY_AFTER_S,
    LINK_WITHIN_S,
    MOST_STARTS,
    Health,
    State,
    Unfit,
    Versions,
    confirmed,
    given_up,
    judge,
    on_start,
    staged,
)
from edge_agent.trust.counters import Counters

PYTHON = Path(sys.executable).resolve()
OLD = State(base="1.0", current="1.1")


def archive(folder: Path, version: str = "2.0", **other: bytes | str | None) -> Path:
    """A version's archive; `other` replaces, adds or (None) takes away members; a text is a link."""
    members: dict[str, bytes | str | None] = {
        "bin/python": str(PYTHON),
        "bin/quarry-agent-launcher": b"#!/bin/sh\n",
        "pyvenv.cfg": b"home = /usr/bin\n",
        "lib/python3.11/site-packages/edge_agent/__main__.py": f"print({version!r})\n".encode(),
        **other,
    }
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as opened:
        for name, content in members.items():
            if content is None:
                continue
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                opened.addfile(info)
            else:
                info.size = len(content)
                opened.addfile(info, io.BytesIO(content))
    path = folder / f"{version}.tar.gz"
    path.write_bytes(gzip.compress(raw.getvalue()))
    return path


def test_a_trial_that_never_proves_itself_gives_way() -> None:
    state = staged(OLD, "2.0", linked=True)
    there = {"1.1", "2.0"}
    for start in range(1, MOST_STARTS + 1):
        state, chosen = on_start(state, present=there, may_try=True)
        assert (chosen, state.starts) == ("2.0", start)
    state, chosen = on_start(state, present=there, may_try=True)
    assert (chosen, state.trial, state.bad) == ("1.1", None, ("2.0",))
    assert on_start(state, present=there, may_try=True) == (state, "1.1")
    with pytest.raises(Unfit, match="failed its trial"):
        staged(state, "2.0", linked=True)


def test_a_trial_that_proves_itself_stays() -> None:
    state, _ = on_start(staged(OLD, "2.0", linked=True), present={"2.0"}, may_try=True)
    state = confirmed(state, "2.0")
    for _ in range(2 * MOST_STARTS):
        state, chosen = on_start(state, present={"2.0"}, may_try=True)
        assert chosen == "2.0"
    assert confirmed(state, "3.0") == state


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_what_runs_already_is_not_tried(version: str) -> None:
    with pytest.raises(Unfit, match="runs already"):
        staged(OLD, version, linked=True)


def test_nothing_is_staged_beside_a_trial_that_goes_on() -> None:
    state = staged(OLD, "2.0", linked=True)
    assert staged(state, "2.0", linked=True) == state, "a repeat after a crash"
    with pytest.raises(Unfit, match="on trial"):
        staged(state, "3.0", linked=True)
    started, _ = on_start(state, present={"2.0"}, may_try=True)
    with pytest.raises(Unfit, match="on trial"):
        staged(started, "2.0", linked=True)


@given(
    trial=st.sampled_from([None, "2.0"]),
    current=st.sampled_from([None, "1.1"]),
    starts=st.integers(-1, MOST_STARTS + 2),
    present=st.sets(st.sampled_from(["1.1", "2.0", "9"])),
    may_try=st.booleans(),
)
def test_what_is_started_is_there_and_counted(
    trial: str | None, current: str | None, starts: int, present: set[str], may_try: bool
) -> None:
    state = State(base="1.0", current=current, trial=trial, starts=starts)
    after, chosen = on_start(state, present=present, may_try=may_try)
    assert chosen is None or chosen in present
    if not may_try:
        assert after == state, "a question changes nothing"
        assert chosen != "2.0"
    if trial is not None and chosen == trial:
        assert after.starts == starts + 1 <= MOST_STARTS
    elif may_try:
        assert after.trial is None


@pytest.mark.parametrize(
    ("health", "must_link", "verdict"),
    [
        (Health(up_s=HEALTHY_AFTER_S - 1, linked=True, stuck=False), True, None),
        (Health(up_s=HEALTHY_AFTER_S, linked=True, stuck=False), True, True),
        (Health(up_s=HEALTHY_AFTER_S, linked=False, stuck=False), False, True),
        (Health(up_s=HEALTHY_AFTER_S, linked=False, stuck=False), True, None),
        (Health(up_s=LINK_WITHIN_S, linked=False, stuck=False), True, False),
        (Health(up_s=LINK_WITHIN_S, linked=True, stuck=False), True, True),
        (Health(up_s=1, linked=True, stuck=True), False, False),
        (Health(up_s=HEALTHY_AFTER_S, linked=True, stuck=True), True, False),
    ],
)
def test_health(health: Health, must_link: bool, verdict: bool | None) -> None:
    assert judge(health, must_link=must_link) is verdict


DAMAGED = [
    *(b"", b"{", b"[]", b"null", b'{"base": "1.0"}', b'{"base": 1, "bad": []}', b'{"base": "1.0", "bad": 3}'),
    *(b'{"base": "1.0", "current": "../../x", "bad": []}', b'{"base": "1.0", "bad": [], "starts": "many"}'),
    *(b'{"base": "1.0", "bad": [], "new": 1}', b"\xff" * 100_000),
]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_state_is_the_packaged_versions(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state.json").write_bytes(content)
    assert Versions(tmp_path, base="1.0").read() == State(base="1.0")


def test_a_new_package_begins_afresh(tmp_path: Path) -> None:
    Versions(tmp_path, base="1.0").write(replace(OLD, trial="2.0"))
    assert Versions(tmp_path, base="3.0").read() == State(base="3.0")


BAD_ARCHIVES: dict[str, dict[str, bytes | str | None]] = {
    "another interpreter": {"bin/python": "/usr/bin/python3.9"},
    "no interpreter": {"bin/python": None},
    "no launcher": {"bin/quarry-agent-launcher": None},
    "no agent": {"lib/python3.11/site-packages/edge_agent/__main__.py": None},
    "out of the tree": {"../evil": b"x"},
    "an absolute path": {"lib/x": "/etc/passwd"},
    "a link out": {"lib/x": "../../../etc/passwd"},
    "through the interpreter's link": {"bin/python/evil": b"x"},
}


@pytest.mark.parametrize("case", BAD_ARCHIVES)
def test_a_bad_archive_leaves_nothing(tmp_path: Path, case: str) -> None:
    versions = Versions(tmp_path / "versions", base="1.0")
    with pytest.raises(Unfit):
        versions.stage(archive(tmp_path, "2.0", **BAD_ARCHIVES[case]), "2.0", python=PYTHON)
    assert versions.present() == set()
    assert not [path for path in (tmp_path / "versions").iterdir() if path.name != ".lock"]
    assert not (tmp_path / "evil").exists()
    assert versions.read().trial is None


@pytest.mark.parametrize("content", [b"", b"no archive", gzip.compress(b"no tar" * 500, mtime=0)])
def test_no_archive_at_all(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(Unfit):
        Versions(tmp_path / "versions", base="1.0").stage(tmp_path / "x", "2.0", python=PYTHON)


def test_a_cut_archive(tmp_path: Path) -> None:
    whole = archive(tmp_path).read_bytes()
    (tmp_path / "cut").write_bytes(whole[: len(whole) // 2])
    versions = Versions(tmp_path / "versions", base="1.0")
    with pytest.raises(Unfit):
        versions.stage(tmp_path / "cut", "2.0", python=PYTHON)
    assert versions.present() == set()


POINTS = ["version.unpacked", "version.synced", "version.named", "version.safe"]
POINTS += ["state.written", "state.synced", "state.renamed", "state.safe"]


def lives(folder: Path, point: str | None) -> int:
    """Stage 2.0 in a process that dies at a point without any clean-up; its exit code."""
    pid = os.fork()
    if pid == 0:
        try:
            Versions(
                folder / "versions", base="1.0", kill_point=lambda at: os._exit(9) if at == point else None
            ).stage(folder / "2.0.tar.gz", "2.0", python=PYTHON, linked=True, counter=7)
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("point", POINTS)
def test_a_power_cut_while_staging_leaves_the_old_or_the_new_version(tmp_path: Path, point: str) -> None:
    """Also what an earlier interrupted staging left is no obstacle, and goes."""
    versions = Versions(tmp_path / "versions", base="1.0")
    versions.stage(archive(tmp_path, "1.1"), "1.1", python=PYTHON)
    versions.write(confirmed(versions.read(), "1.1"))
    archive(tmp_path, "2.0")
    assert lives(tmp_path, point) == 9
    if versions.read().trial is None:
        assert versions.start(may_try=True) == "1.1"
    assert lives(tmp_path, None) == 0
    assert versions.start(may_try=True) == "2.0"
    assert (versions.read().counter, versions.read().linked) == (7, True)
    names = {path.name for path in (tmp_path / "versions").iterdir()}
    assert names == {"1.1", "2.0", "state.json"}


@pytest.mark.parametrize("point", [one for one in POINTS if one.startswith("state.")])
def test_a_power_cut_at_a_start_counts_or_does_not_happen(tmp_path: Path, point: str) -> None:
    archive(tmp_path, "2.0")
    assert lives(tmp_path, None) == 0
    versions = Versions(tmp_path / "versions", base="1.0")
    cuts = 0
    while versions.read().trial is not None and cuts < 20:
        pid = os.fork()
        if pid == 0:
            kill = Versions(
                tmp_path / "versions", base="1.0", kill_point=lambda at: os._exit(9) if at == point else None
            )
            kill.start(may_try=True)
            os._exit(0)
        os.waitpid(pid, 0)
        cuts += 1
        if point in ("state.written", "state.synced"):
            # It never came to a start, so that nothing is counted, and the next one is whole.
            assert versions.read().starts == cuts - 1
            assert versions.start(may_try=True) == ("2.0" if cuts <= MOST_STARTS else None)
    assert versions.read().bad == ("2.0",)
    assert versions.start(may_try=True) is None


def test_a_disk_that_refuses_the_count_tries_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive(tmp_path, "2.0")
    assert lives(tmp_path, None) == 0
    versions = Versions(tmp_path / "versions", base="1.0")

    def full(_: State) -> None:
        raise OSError(28, "no space")

    monkeypatch.setattr(versions, "write", full)
    assert versions.start(may_try=True) is None


def test_only_the_current_version_stays_beside_a_new_one(tmp_path: Path) -> None:
    versions = Versions(tmp_path / "versions", base="1.0")
    for version in ("1.1", "1.2", "1.3"):
        versions.stage(archive(tmp_path, version), version, python=PYTHON)
        versions.write(confirmed(versions.read(), version))
    assert versions.present() == {"1.2", "1.3"}


LAUNCH = [sys.executable, "-I", "-m", "edge_agent.gateway.launch"]


def launched(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, FOLDER_VARIABLE: str(folder)}
    return subprocess.run([*LAUNCH, *args], env=environment, capture_output=True, text=True, check=False)


def put(folder: Path, name: str, code: str) -> None:
    """A version whose agent is a line of Python."""
    python = folder / name / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{code}"\n')
    python.chmod(0o755)


def test_the_launcher_becomes_the_version_on_trial_and_returns_from_it(tmp_path: Path) -> None:
    from edge_agent.app import AGENT_VERSION

    put(tmp_path, "9.9", "import sys; print('9.9'); sys.exit(1)")
    put(tmp_path, "9.8", "print('9.8')")
    Versions(tmp_path, base=AGENT_VERSION).write(State(base=AGENT_VERSION, current="9.8", trial="9.9"))
    assert launched(tmp_path, "status").stdout == "9.8\n", "a question gets what is proved"
    said = [launched(tmp_path, "run").stdout for _ in range(MOST_STARTS + 2)]
    assert said == ["9.9\n"] * MOST_STARTS + ["9.8\n"] * 2


def test_the_launcher_alone_is_the_packaged_version(tmp_path: Path) -> None:
    from edge_agent.app import AGENT_VERSION

    assert launched(tmp_path / "none", "--version").stdout == f"quarry-agent {AGENT_VERSION}\n"
    assert not (tmp_path / "none").exists(), "a question leaves nothing behind"


def test_a_second_run_beside_the_first_counts_nothing(tmp_path: Path) -> None:
    from edge_agent.app import AGENT_VERSION

    put(tmp_path, "9.9", "import sys; print('up', flush=True); sys.stdin.read()")
    versions = Versions(tmp_path, base=AGENT_VERSION)
    versions.write(State(base=AGENT_VERSION, trial="9.9"))
    environment = {**os.environ, FOLDER_VARIABLE: str(tmp_path)}
    with subprocess.Popen(
        [*LAUNCH, "run"], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "up\n"
        assert "up" not in launched(tmp_path, "run").stdout
        assert versions.read().starts == 1
        first.communicate("")
    assert versions.alone() is not None, "the lock ends with the agent"


@pytest.fixture
def on_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Versions:
    from edge_agent.app import AGENT_VERSION

    monkeypatch.setenv(BASE_VARIABLE, "0.0.1")
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.setattr(trial, "LOOK_EVERY_S", 0.0)
    versions = Versions(tmp_path, base="0.0.1")
    versions.write(
        State(base="0.0.1", current="0.0.2", trial=AGENT_VERSION, starts=1, linked=True, counter=7)
    )
    return versions


@pytest.mark.parametrize(("linked", "stuck"), [(True, False), (False, False), (True, True)])
async def test_a_version_on_trial_proves_itself_or_stops(
    on_trial: Versions, tmp_path: Path, linked: bool, stuck: bool
) -> None:
    from edge_agent.app import AGENT_VERSION

    stopped: list[bool] = []
    seconds = iter(range(0, 10_000, 10))
    await trial.prove_trial(
        linked=lambda: linked,
        stuck=lambda: stuck,
        counters=tmp_path / "counters.json",
        stop=lambda: stopped.append(True),
        now=lambda: float(next(seconds)),
    )
    state = on_trial.read()
    counters = await Counters.open(tmp_path / "counters.json")
    if linked and not stuck:
        assert (state.current, state.trial, stopped) == (AGENT_VERSION, None, [])
        assert counters.highest(trial.COMPONENT) == 7
    else:
        assert (state.current, state.bad, stopped) == ("0.0.2", (AGENT_VERSION,), [True])
        assert counters.highest(trial.COMPONENT) == 0
    assert given_up(state) == state


async def test_what_is_not_on_trial_proves_nothing(tmp_path: Path) -> None:
    def never() -> bool:
        raise AssertionError

    await trial.prove_trial(linked=never, stuck=never, counters=tmp_path / "c", stop=lambda: None)
