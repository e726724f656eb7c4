"""Log files turn, stay within their bound, and never stop anything."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from edge_agent.gateway.log_files import AGAIN_AFTER_S, LogFiles, TeeLog


def line(number: int) -> str:
    return f"line {number:05d} {'x' * 88}\n"


@pytest.mark.parametrize("keep", [1, 2, 4])
def test_the_files_are_bounded_and_hold_the_newest_lines_whole(tmp_path: Path, keep: int) -> None:
    stream = io.StringIO()
    with TeeLog(stream, tmp_path / "log", LogFiles(keep=keep, each_bytes=1000)) as tee:
        for number in range(100):
            assert tee.write(line(number)) == 100
        tee.flush()
    files = sorted((tmp_path / "log").iterdir())
    assert len(files) == keep
    assert all(file.stat().st_size <= 1000 for file in files)
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in files)
    order = sorted(files, key=lambda file: -int(file.suffix[1:] if file.suffix[1:].isdigit() else 0))
    text = "".join(file.read_text() for file in order)
    assert stream.getvalue().endswith(text)
    assert text.endswith(line(99))
    assert stream.getvalue() == "".join(line(number) for number in range(100))


def test_a_later_process_goes_on_in_the_same_file(tmp_path: Path) -> None:
    for number in range(5):
        with TeeLog(io.StringIO(), tmp_path, LogFiles(keep=2, each_bytes=350)) as tee:
            tee.write(line(number))
    assert (tmp_path / "agent.log").read_text() == line(3) + line(4)
    assert (tmp_path / "agent.log.1").read_text() == line(0) + line(1) + line(2)


def test_fewer_files_than_before_take_the_surplus_away(tmp_path: Path) -> None:
    for keep in (5, 2):
        with TeeLog(io.StringIO(), tmp_path, LogFiles(keep=keep, each_bytes=100)) as tee:
            for number in range(8):
                tee.write(line(number))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["agent.log", "agent.log.1"]


def test_none_is_none(tmp_path: Path) -> None:
    with TeeLog(io.StringIO(), tmp_path / "log", LogFiles(keep=0)) as tee:
        tee.write(line(1))
    assert not (tmp_path / "log").exists()


def test_a_line_over_the_bound_is_cut_in_the_file_only(tmp_path: Path) -> None:
    stream = io.StringIO()
    with TeeLog(stream, tmp_path, LogFiles(keep=2, each_bytes=50)) as tee:
        tee.write(line(1))
    assert stream.getvalue() == line(1)
    assert (tmp_path / "agent.log").stat().st_size == 50


def test_a_disk_that_refuses_stops_nothing_and_is_tried_again_later(tmp_path: Path) -> None:
    stream, now = io.StringIO(), [0.0]
    folder = tmp_path / "log"
    folder.write_text("a file where the folder should be")
    with TeeLog(stream, folder, LogFiles(), now=lambda: now[0]) as tee:
        tee.write(line(1))
        folder.unlink()
        now[0] = AGAIN_AFTER_S / 2
        tee.write(line(2))
        assert not folder.exists(), "it is left alone for a while"
        now[0] = AGAIN_AFTER_S
        tee.write(line(3))
    assert stream.getvalue() == line(1) + line(2) + line(3)
    assert (folder / "agent.log").read_text() == line(3)
