"""What a truck keeps so that a release can go back: on real files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edge_agent.errors import StoreFailed
from edge_agent.store.release import Former
from edge_agent.update.kept import KeptImages
from shared.messages import CommandTarget

FORMER = {"brakes": Former(version="1", sha256="a" * 64, is_kept=True)}
SEEN_LATER = {"brakes": Former(version="2", sha256="b" * 64, is_kept=True)}
JOB = ("job-1", 1)


def target(component: str = "brakes", **other: Any) -> CommandTarget:
    fields: dict[str, Any] = {"version": "1", "sha256": "a" * 64, **other}
    return CommandTarget(component=component, length=3, document="{}", url="http://office/1", **fields)


async def test_the_newest_install_of_each_component_is_kept_over_a_restart(tmp_path: Path) -> None:
    kept = KeptImages(tmp_path)
    assert await kept.of("brakes") is None
    await kept.keep(target(), "/images/a")
    await kept.keep(target("display", sha256="d" * 64), "/images/d")
    await kept.keep(target(version="2", sha256="b" * 64), "/images/b")
    again = KeptImages(tmp_path)
    found = await again.of("brakes")
    assert found is not None
    assert (found.version, found.image) == ("2", "/images/b")
    assert found.target("brakes").sha256 == "b" * 64
    assert await again.hashes() == {"b" * 64, "d" * 64}
    assert (tmp_path / "kept.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("raw", [b"", b"{", b"[1]", b'{"brakes": 1}', b"\xff" * 10])
async def test_a_damaged_file_is_nothing_kept_and_is_mended_by_the_next_install(
    tmp_path: Path, raw: bytes
) -> None:
    (tmp_path / "kept.json").write_bytes(raw)
    kept = KeptImages(tmp_path)
    assert await kept.of("brakes") is None
    await kept.keep(target(), "/images/a")
    assert await KeptImages(tmp_path).of("brakes") is not None


async def test_what_can_not_be_written_is_said_and_not_believed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    kept = KeptImages(tmp_path / "file")
    with pytest.raises(StoreFailed):
        await kept.keep(target(), "/images/a")


async def test_only_a_lost_journal_is_told_what_was_before(tmp_path: Path) -> None:
    kept = KeptImages(tmp_path)
    assert not await kept.was_begun(JOB, "journal-1")
    assert await kept.remember_before(JOB, "journal-1", FORMER) == FORMER
    # The same journal asks again as long as nothing was touched: what it sees now is true.
    assert await kept.remember_before(JOB, "journal-1", SEEN_LATER) == SEEN_LATER
    assert await kept.remember_before(JOB, "journal-1", FORMER) == FORMER
    assert not await kept.was_begun(JOB, "journal-1")
    again = KeptImages(tmp_path)
    assert await again.was_begun(JOB, "journal-2")
    assert await again.remember_before(JOB, "journal-2", SEEN_LATER) == FORMER
    assert not await again.was_begun(("job-1", 2), "journal-2")
    assert await again.remember_before(("job-2", 1), "journal-2", SEEN_LATER) == SEEN_LATER
