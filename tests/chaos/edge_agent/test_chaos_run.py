"""Updates under seeded faults: nothing lost, nothing twice, nothing bricked. The same as `quarry sim chaos`.

The real office, agents of their own processes, simulated STM32 and ESP32 on a hub, on the whole trust chain.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sim.chaos.fleet import By
from sim.chaos.run import Report, play


def check(report: Report) -> None:
    said = json.dumps(report.as_json(), indent=1)
    assert report.ok, said
    assert (report.lost, report.duplicates, report.dead_letters, report.databases_set_aside) == (0, 0, 0, 0)
    # A run in which nothing went wrong would prove nothing.
    assert sum(report.happened.values()) >= 0.5 * sum(report.planned.values()), said
    assert report.doubled_messages > 0


@pytest.mark.timeout(300)
async def test_a_few_updates_under_faults_end_right(tmp_path: Path) -> None:
    report = await play(tmp_path, updates=8, trucks=2, seed=5, by=By.RELEASES)
    check(report)
    assert report.updates == 8


@pytest.mark.long
@pytest.mark.timeout(7200)
async def test_two_hundred_updates_under_faults_end_right(tmp_path: Path) -> None:
    report = await play(tmp_path, updates=200, trucks=5, seed=1, by=By.RELEASES)
    check(report)
    assert report.updates == 200


@pytest.mark.long
@pytest.mark.timeout(3600)
async def test_updates_by_documents_end_right(tmp_path: Path) -> None:
    report = await play(tmp_path, updates=60, trucks=4, seed=3, by=By.DOCUMENTS)
    check(report)
    assert report.updates == 60
