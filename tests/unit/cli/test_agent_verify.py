"""The bench of full verification measures what it says."""

from __future__ import annotations

import pytest

from cli.benches import agent_verify


def test_it_is_a_release_of_all_ecus_among_the_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_verify, "TARGETS", 60)
    row = agent_verify.verify_release()
    assert (row.case, row.unit, row.met) == ("verify.release", "s", None)
    assert row.value is not None
    assert row.value > 0
