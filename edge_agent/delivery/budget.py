"""How many bytes of network a job and a day may cost, kept over restarts.

A day is 24 hours of this agent's own counting, by the boot clock, which nobody sets. Over a restart of
the gateway the boot clock begins anew: then the wall clock says how long it was off, as far as it went
forward, and at least the time since boot has passed. A clock that jumps while the agent runs changes
nothing; one that jumps over a restart gives one fresh day at the most.

Bytes are booked before they are taken, in steps of BOOK_BYTES, so that a power cut can only book too
many. A file that can't be read is begun anew: it is about money, not about safety.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edge_agent.clock import Clock
from edge_agent.errors import OverBudget
from edge_agent.safe_files import read_bounded, write_whole
from shared.logs import get_log

log = get_log("edge_agent.budget")

MIB = 1024 * 1024
DAY_S = 24 * 3600.0
BOOK_BYTES = MIB
MOST_JOBS = 200
"""Jobs whose bytes are remembered, the newest."""
MOST_FILE_BYTES = 256 * 1024
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def read_boot_id() -> str:
    """Names this run of the kernel; empty where nothing tells it."""
    try:
        return BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""


@dataclass(frozen=True, kw_only=True)
class BudgetLimits:
    """Bytes; None is no bound. `links` bounds a day of each link by its name."""

    job_bytes: int | None = None
    day_bytes: int | None = None
    links: Mapping[str, int | None]  # empty: none is bounded


class _Spent(msgspec.Struct, kw_only=True):
    """The file. `day_s`: how much of the day had passed when it was written."""

    v: int = 1
    boot_id: str
    boot_s: float
    wall_s: float
    day_s: float
    day: dict[str, int]  # "" is every link together
    jobs: dict[str, int]


class Budget:
    """Open it with `await Budget.open(...)`. One download books at a time."""

    def __init__(self, path: Path, limits: BudgetLimits, clock: Clock, boot_id: str, spent: _Spent) -> None:
        self._path = path
        self._limits = limits
        self._clock = clock
        self._boot_id = boot_id
        self._spent = spent
        self._day_began_s = clock.boot_s() - spent.day_s

    @classmethod
    async def open(
        cls, path: Path, limits: BudgetLimits, clock: Clock, *, boot_id: str | None = None
    ) -> Budget:
        """Read what was spent. Never raises."""
        boot_id = read_boot_id() if boot_id is None else boot_id
        now_s, wall_s = clock.boot_s(), clock.now().timestamp()
        fresh = _Spent(boot_id=boot_id, boot_s=now_s, wall_s=wall_s, day_s=0.0, day={}, jobs={})
        try:
            raw = await asyncio.to_thread(read_bounded, path, MOST_FILE_BYTES)
            spent = msgspec.json.decode(raw, type=_Spent)
        except FileNotFoundError:
            spent = fresh
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, ValueError):
            log.exception("budget.unreadable", path=str(path))
            spent = fresh
        if boot_id and spent.boot_id == boot_id and now_s >= spent.boot_s:
            passed_s = now_s - spent.boot_s
        else:
            passed_s = max(now_s, wall_s - spent.wall_s, 0.0)
        spent.day_s = max(0.0, spent.day_s) + passed_s
        return cls(path, limits, clock, boot_id, spent)

    def left(self, *, job_id: str, link: str) -> int | None:
        """Bytes that may still be taken for a job by a link; None: no bound."""
        return min((left for left, _ in self._bounds(job_id, link)), default=None)

    def check(self, *, job_id: str, link: str) -> None:
        """Raise OverBudget when nothing is left."""
        for left, why in self._bounds(job_id, link):
            if left <= 0:
                raise OverBudget(why)

    def _bounds(self, job_id: str, link: str) -> list[tuple[int, str]]:
        self._turn_day()
        out = []
        limits, spent = self._limits, self._spent
        if limits.job_bytes is not None and job_id:
            why = f"the job has cost its {limits.job_bytes // MIB} MiB of network"
            out.append((limits.job_bytes - spent.jobs.get(job_id, 0), why))
        if limits.day_bytes is not None:
            why = f"the day's {limits.day_bytes // MIB} MiB of network are used; it goes on the next day"
            out.append((limits.day_bytes - spent.day.get("", 0), why))
        of_link = limits.links.get(link)
        if of_link is not None:
            why = f"the day's {of_link // MIB} MiB over {link} are used; it goes on the next day"
            out.append((of_link - spent.day.get(link, 0), why))
        return out

    async def book(self, count: int, *, job_id: str, link: str) -> None:
        """Count bytes that are about to be taken; on the disk when it returns. A disk that fails is no
        reason to stop: it is said, and counted in memory.
        """
        self._turn_day()
        spent = self._spent
        for name in {"", link}:
            spent.day[name] = max(0, spent.day.get(name, 0) + count)
        if job_id:
            spent.jobs[job_id] = max(0, spent.jobs.pop(job_id, 0) + count)
            while len(spent.jobs) > MOST_JOBS:
                del spent.jobs[next(iter(spent.jobs))]
        now_s = self._clock.boot_s()
        spent.boot_id, spent.boot_s = self._boot_id, now_s
        spent.wall_s, spent.day_s = self._clock.now().timestamp(), now_s - self._day_began_s
        try:
            await asyncio.to_thread(write_whole, self._path, msgspec.json.encode(spent))
        except OSError as error:
            log.warning("budget.not_written", why=str(error))

    def _turn_day(self) -> None:
        if self._clock.boot_s() - self._day_began_s >= DAY_S:
            self._day_began_s = self._clock.boot_s()
            self._spent.day = {}


class Booking:
    """Books the bytes of one answer ahead of their coming, and gives back what did not come."""

    def __init__(self, budget: Budget | None, *, job_id: str, link: str, free: bool) -> None:
        self._budget = budget
        self._job_id = job_id
        self._link = link
        self._free = free
        self._ahead = 0

    async def take(self, count: int) -> None:
        """`count` bytes have come. Raises OverBudget when no more may come, unless it is `free`."""
        if self._budget is None:
            return
        if count > self._ahead:
            if not self._free:
                self._budget.check(job_id=self._job_id, link=self._link)
            left = self._budget.left(job_id=self._job_id, link=self._link)
            step = max(count - self._ahead, BOOK_BYTES if left is None else min(BOOK_BYTES, max(left, 0)))
            await self._budget.book(step, job_id=self._job_id, link=self._link)
            self._ahead += step
        self._ahead -= count

    async def close(self) -> None:
        """Give back what was booked and did not come."""
        if self._budget is not None and self._ahead:
            await self._budget.book(-self._ahead, job_id=self._job_id, link=self._link)
            self._ahead = 0
