"""Bytes of network per job, day and link: over restarts, reboots and clocks that jump."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from edge_agent.clock import Clock
from edge_agent.delivery.budget import BOOK_BYTES, DAY_S, MOST_JOBS, Booking, Budget, BudgetLimits
from edge_agent.delivery.links import Pace
from edge_agent.errors import OverBudget

MIB = 1024 * 1024
LIMITS = BudgetLimits(job_bytes=10 * MIB, day_bytes=20 * MIB, links={"wifi": None, "sat": 2 * MIB})


class Time:
    """A boot clock and a wall clock that a test moves apart."""

    def __init__(self) -> None:
        self.boot = 1000.0
        self.wall = datetime(2027, 1, 1, tzinfo=UTC)
        self.clock = Clock(wall=lambda: self.wall, boot_s=lambda: self.boot)

    def pass_s(self, seconds: float) -> None:
        self.boot += seconds
        self.wall += timedelta(seconds=seconds)


async def opened(path: Path, time: Time, boot_id: str = "boot-1", limits: BudgetLimits = LIMITS) -> Budget:
    return await Budget.open(path, limits, time.clock, boot_id=boot_id)


async def test_what_was_spent_survives_a_restart(tmp_path: Path) -> None:
    path, time = tmp_path / "spent.json", Time()
    budget = await opened(path, time)
    await budget.book(9 * MIB, job_id="job-1", link="wifi")
    budget = await opened(path, time)
    assert budget.left(job_id="job-1", link="wifi") == MIB
    assert budget.left(job_id="job-2", link="wifi") == 10 * MIB
    await budget.book(MIB, job_id="job-1", link="wifi")
    with pytest.raises(OverBudget, match="job"):
        budget.check(job_id="job-1", link="wifi")
    await budget.book(10 * MIB, job_id="job-2", link="wifi")
    with pytest.raises(OverBudget, match="day"):
        budget.check(job_id="job-3", link="wifi")
    assert path.stat().st_mode & 0o777 == 0o600


async def test_a_link_has_its_own_day(tmp_path: Path) -> None:
    budget = await opened(tmp_path / "spent.json", Time())
    await budget.book(2 * MIB, job_id="job-1", link="sat")
    with pytest.raises(OverBudget, match="sat"):
        budget.check(job_id="job-1", link="sat")
    budget.check(job_id="job-1", link="wifi")


# How the clocks move over a restart: (boot seconds, wall seconds, the kernel restarted) -> is it a new day?
JUMPS = {
    "an hour": (3600, 3600, False, False),
    "a day": (DAY_S, DAY_S, False, True),
    "the wall jumps a month ahead": (60, 30 * DAY_S, False, False),
    "the wall jumps to the floor": (60, -300 * DAY_S, False, False),
    "off for two days": (None, 2 * DAY_S, True, True),
    "off for an hour": (None, 3600, True, False),
    "a reboot into 1970": (None, -10_000 * DAY_S, True, False),
}


@pytest.mark.parametrize("case", JUMPS, ids=lambda case: str(case).replace(" ", "-"))
async def test_a_day_is_a_day_whatever_the_clock_says(tmp_path: Path, case: str) -> None:
    boot, wall, rebooted, new_day = JUMPS[case]
    path, time = tmp_path / "spent.json", Time()
    await (await opened(path, time)).book(20 * MIB, job_id="j", link="wifi")
    time.boot = 30.0 if boot is None else time.boot + boot
    time.wall = max(time.wall + timedelta(seconds=wall), datetime(1970, 1, 1, tzinfo=UTC))
    budget = await opened(path, time, "boot-2" if rebooted else "boot-1")
    assert budget.left(job_id="", link="wifi") == (20 * MIB if new_day else 0)


async def test_a_day_ends_while_it_runs_and_only_by_the_boot_clock(tmp_path: Path) -> None:
    time = Time()
    budget = await opened(tmp_path / "spent.json", time)
    await budget.book(20 * MIB, job_id="j", link="wifi")
    time.wall += timedelta(days=3)
    assert budget.left(job_id="k", link="wifi") == 0
    time.pass_s(DAY_S)
    assert budget.left(job_id="k", link="wifi") == 10 * MIB


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'{"boot_id": 3}', b"\xff", b" " * 300_000])
async def test_a_spoiled_file_is_begun_anew(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "spent.json"
    path.write_bytes(raw)
    budget = await opened(path, Time())
    assert budget.left(job_id="j", link="wifi") == 10 * MIB
    await budget.book(1, job_id="j", link="wifi")
    assert (await opened(path, Time())).left(job_id="j", link="wifi") == 10 * MIB - 1


async def test_the_file_stays_small(tmp_path: Path) -> None:
    path = tmp_path / "spent.json"
    budget = await opened(path, Time())
    for number in range(MOST_JOBS + 5):
        await budget.book(1, job_id=f"job-{number}", link="wifi")
    budget = await opened(path, Time())
    assert budget.left(job_id="job-0", link="wifi") == 10 * MIB
    assert budget.left(job_id=f"job-{MOST_JOBS}", link="wifi") == 10 * MIB - 1


async def test_bytes_are_booked_ahead_and_given_back(tmp_path: Path) -> None:
    path, time = tmp_path / "spent.json", Time()
    budget = await opened(path, time)
    booking = Booking(budget, job_id="j", link="wifi", free=False)
    await booking.take(1000)
    assert (await opened(path, time)).left(job_id="j", link="wifi") == 10 * MIB - BOOK_BYTES
    await booking.close()
    assert (await opened(path, time)).left(job_id="j", link="wifi") == 10 * MIB - 1000


async def test_an_urgent_download_is_counted_and_not_stopped(tmp_path: Path) -> None:
    budget = await opened(tmp_path / "spent.json", Time())
    booking = Booking(budget, job_id="j", link="wifi", free=True)
    for _ in range(12):
        await booking.take(MIB)
    await booking.close()
    assert budget.left(job_id="j", link="wifi") == -2 * MIB


async def test_a_disk_that_fails_stops_no_download(tmp_path: Path) -> None:
    budget = await opened(tmp_path / "no" / "such" / "folder", Time())
    await budget.book(MIB, job_id="j", link="wifi")
    assert budget.left(job_id="j", link="wifi") == 9 * MIB


def test_the_pace_is_kept_over_any_chunks() -> None:
    pace, now, taken = Pace(1000.0), 0.0, 0
    for size in (10, 5000, 1, 64_000, 300, 300) * 3:
        taken += size
        now += pace.delay_s(size, now)
    assert now >= (taken - 1000) / 1000
    assert now <= taken / 1000


def test_a_rest_saves_no_more_than_the_burst() -> None:
    pace = Pace(1000.0)
    pace.delay_s(1000, 0.0)
    assert pace.delay_s(3000, 1000.0) == pytest.approx(2.0)
    assert Pace(None).delay_s(10**9, 0.0) == 0
