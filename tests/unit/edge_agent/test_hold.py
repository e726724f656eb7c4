"""The hold file: that it is there is what counts."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from edge_agent.interlocks.hold import AlreadyHeld, Hold, hold_path, read_hold, release_hold, set_hold

MINE = Hold(by="ivanov", why="blasting", at=datetime(2027, 1, 1, tzinfo=UTC))


def test_a_hold_is_set_read_and_released(tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert read_hold(data) is None
    assert release_hold(data) is None
    set_hold(data, MINE)
    assert read_hold(data) == MINE
    assert hold_path(data).stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in data.iterdir()) == ["hold"], "nothing half-made is left"
    assert release_hold(data) == MINE
    assert read_hold(data) is None


def test_a_second_hold_changes_nothing(tmp_path: Path) -> None:
    set_hold(tmp_path, MINE)
    with pytest.raises(AlreadyHeld, match="ivanov holds this truck already: blasting"):
        set_hold(tmp_path, Hold(by="petrov", why="other"))
    assert read_hold(tmp_path) == MINE


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00\xff\xfe",
        b"{",
        b"[]",
        b"{}",
        b'{"by": "x"}',
        b'{"by": "", "why": "y"}',
        b'{"by": 1, "why": "y"}',
        b'{"by": "x", "why": "y", "at": "2027-01-01T00:00:00"}',
        b'{"by": "' + b"x" * 5000 + b'", "why": "y"}',
    ],
)
def test_a_damaged_file_holds(tmp_path: Path, content: bytes) -> None:
    hold_path(tmp_path).write_bytes(content)
    held = read_hold(tmp_path)
    assert held is not None
    assert held.by == "unknown"
    assert release_hold(tmp_path) == held
    assert read_hold(tmp_path) is None


def test_what_is_no_file_holds_too(tmp_path: Path) -> None:
    hold_path(tmp_path).mkdir()
    assert read_hold(tmp_path) is not None
