"""That the simulated power cut takes what it must, and keeps what was synced: real programs, then the cut."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sim.power import NoCompiler, Power, build
from sim.power_disk import Loss, LostTrack

PRELUDE = """
import os, pathlib, shutil, sqlite3, sys, time
data = pathlib.Path(sys.argv[1])
def sync(path):
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return build(tmp_path_factory.mktemp("power"))
    except NoCompiler as error:
        pytest.skip(f"no power cuts here: {error.message}. {error.advice}")


@pytest.fixture
def power(library: Path, tmp_path: Path) -> Power:
    (tmp_path / "data").mkdir()
    return Power(library, tmp_path / "data", tmp_path)


def run(power: Power, code: str, *, fails: bool = False) -> str:
    power.on()
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", PRELUDE + code, str(power.root)],
        env=power.environment({}),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode != 0) is fails, done.stderr
    return done.stdout


def left(power: Power) -> dict[str, bytes]:
    return {
        str(path.relative_to(power.root)): path.read_bytes()
        for path in power.root.rglob("*")
        if path.is_file()
    }


WRITTEN = "(data / 'a').write_bytes(b'new' * 1000)\n"
SYNCED = WRITTEN + "sync(data / 'a')\n"
NAMED = SYNCED + "sync(data)\n"
NEW = b"new" * 1000


def test_what_was_not_synced_is_gone(power: Power) -> None:
    for code, kept in ((WRITTEN, {}), (SYNCED, {}), (NAMED, {"a": NEW})):
        run(power, code)
        assert left(power) == {"a": NEW}
        power.cut(Loss.STRICT, 0)
        assert left(power) == kept
        for path in power.root.iterdir():
            path.unlink()


def test_a_journalled_disk_keeps_the_name_of_a_synced_file(power: Power) -> None:
    run(power, SYNCED)
    power.cut(Loss.JOURNAL, 0)
    assert left(power) == {"a": NEW}


def test_sigkill_alone_loses_nothing_and_hides_the_fault(power: Power) -> None:
    run(power, WRITTEN + "os.kill(os.getpid(), 9)", fails=True)
    assert left(power) == {"a": NEW}
    power.cut(Loss.STRICT, 0)
    assert left(power) == {}


RENAMED = "(data / 'b').write_bytes(b'new' * 1000)\n{0}(data / 'b').replace(data / 'a')\n{1}"


def test_a_rename_may_be_undone_until_its_folder_is_synced(power: Power) -> None:
    run(power, RENAMED.format("sync(data / 'b'); ", ""))
    power.cut(Loss.STRICT, 0)
    assert left(power) == {}
    run(power, RENAMED.format("sync(data / 'b'); ", "sync(data)"))
    power.cut(Loss.STRICT, 0)
    assert left(power) == {"a": NEW}


# The named fault of careless programs: the new name is there before the new content is.
def test_a_rename_without_a_sync_of_the_content_leaves_neither_old_nor_new(
    library: Path, tmp_path: Path
) -> None:
    before = {"a": b"old" * 1000}
    folder = tmp_path / "data"
    folder.mkdir()
    ends = set()
    for seed in range(60):
        for path in folder.iterdir():
            path.unlink()
        (folder / "a").write_bytes(before["a"])
        if seed == 0:
            power = Power(library, folder, tmp_path)
            run(power, RENAMED.format("", ""))
            kept = power.log.read_bytes()
            (folder / "a").write_bytes(before["a"])
        # The recorded inode of the old file is of the first run: it is not touched by this program.
        power.on()
        power.log.write_bytes(kept)
        power.cut(Loss.TORN, seed)
        content = left(power).get("a")
        ends.add({NEW: "new", before["a"]: "old", b"": "empty"}.get(content or b"", "torn"))
    assert ends == {"new", "old", "empty", "torn"}


SQLITE = """
db = sqlite3.connect(data / "db", isolation_level=None)
db.execute("PRAGMA journal_mode = WAL")
db.execute("PRAGMA synchronous = {0}")
db.execute("CREATE TABLE t (n INTEGER, fill TEXT)")
sync(data)
for n in range(30):
    db.execute("INSERT INTO t VALUES (?, ?)", (n, "x" * 3000))
    print(n, flush=True)
os.kill(os.getpid(), 9)
"""
COUNT = "print(sqlite3.connect(data / 'db').execute('SELECT count(*) FROM t').fetchone()[0])"


def rows_after_a_cut(power: Power, how: str, loss: Loss, seed: int) -> int | None:
    for path in power.root.iterdir():
        path.unlink()
    said = run(power, SQLITE.format(how), fails=True)
    assert said.split()[-1] == "29"
    power.cut(loss, seed)
    found = subprocess.run(
        [sys.executable, "-I", "-S", "-c", PRELUDE + COUNT, str(power.root)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return int(found.stdout) if found.returncode == 0 else None


@pytest.mark.parametrize("loss", Loss)
def test_sqlite_keeps_each_commit_with_full_and_loses_some_with_normal(power: Power, loss: Loss) -> None:
    for seed in range(3):
        assert rows_after_a_cut(power, "FULL", loss, seed) == 30
    lost = [rows_after_a_cut(power, "NORMAL", loss, seed) for seed in range(3)]
    assert any(rows != 30 for rows in lost)


def test_it_is_killed_instead_of_the_act_of_a_number(power: Power) -> None:
    power.kill_at(3)
    run(power, "(data / 'a').mkdir()\n(data / 'b').mkdir()\n(data / 'c').mkdir()\n", fails=True)
    assert sorted(path.name for path in power.root.iterdir()) == ["a", "b"]
    assert power.acts == 3


def test_what_can_not_be_followed_is_said(power: Power) -> None:
    code = WRITTEN + "shutil.copyfile(data / 'a', data / 'b')"
    run(power, code)
    with pytest.raises(LostTrack, match="sendfile"):
        power.cut(Loss.STRICT, 0)


def test_a_full_disk_refuses_what_grows_and_takes_what_does_not(power: Power) -> None:
    (power.root / "a").write_bytes(b"0123456789")
    power.fill_disk(4)
    said = run(
        power,
        """
print(shutil.disk_usage(data).free)
with open(data / "a", "r+b", buffering=0) as file:
    print(file.write(b"xxxxx"))
    file.seek(8)
    print(file.write(b"abcdefghij"))
    try:
        file.write(b"more")
    except OSError as error:
        print(error.errno)
try:
    (data / "b").touch()
except OSError as error:
    print(error.errno)
(data / "a").rename(data / "c")
""",
    )
    assert said.split() == ["0", "5", "6", "28", "28"]
    assert left(power) == {"c": b"xxxxx567abcdef"}
    power.empty_disk()
    run(power, "(data / 'b').write_bytes(bytes(9000))")


def test_sqlite_meets_a_full_disk_as_such_and_goes_on_afterwards(power: Power) -> None:
    power.fill_disk(200_000)
    code = """
db = sqlite3.connect(data / "db", isolation_level=None)
db.execute("PRAGMA journal_mode = WAL")
db.execute("CREATE TABLE t (n INTEGER, fill TEXT)")
done = 0
try:
    while True:
        db.execute("INSERT INTO t VALUES (?, ?)", (done, "x" * 3000))
        done += 1
except sqlite3.OperationalError as error:
    print(error.sqlite_errorname, done > 5, db.execute("SELECT count(*) FROM t").fetchone()[0] == done)
"""
    assert run(power, code).split() == ["SQLITE_FULL", "True", "True"]


@pytest.mark.parametrize("by_s", [-56 * 365 * 86400.0, 30 * 86400.0])
def test_the_clock_is_shifted_and_intervals_are_not(power: Power, by_s: float) -> None:
    power.shift_clock(by_s)
    code = "import datetime\nprint(time.time(), datetime.datetime.now().timestamp(), time.monotonic())"
    shifted, also, _ = (float(one) for one in run(power, code).split())
    power.shift_clock(0)
    plain, _, _ = (float(one) for one in run(power, code).split())
    assert abs(shifted - (plain + by_s)) < 60
    assert abs(also - shifted) < 1
