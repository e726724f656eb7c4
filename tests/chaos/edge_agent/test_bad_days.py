"""Memory that is spoiled and clocks that are wrong: the agent starts safe, says why, and goes on.

A truck for each case, with the real office and the trust chain. The agent is killed, idle or in the middle of
a release; a file of its data folder is spoiled, or its clock set wrong, or its link cut; it starts again, and
a release is (still) ordered. Where something is not known that must be known no ECU is changed, and the
office has the reason; else the release ends whole. Each has one final status.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from edge_agent.app import JOURNAL_LOST
from shared.states import JOB_TERMINAL, JobState
from sim.chaos.fleet import PRODUCTS, By, Fleet, runs, until
from sim.chaos.judge import Outcome, wrong_with
from sim.chaos.truck import ChaosTruck
from sim.power import NoCompiler, build
from sim.scenarios.truck import AGENT_DATA

WITHIN_S = 150.0
MONTH_S = 31 * 86400.0


def garbage(name: str) -> Callable[[Path], None]:
    def spoil(data: Path) -> None:
        path = data / name
        path.write_bytes(b"\x5a\x00garbage" * (path.stat().st_size // 9 + 1))

    return spoil


def shorter(name: str) -> Callable[[Path], None]:
    def spoil(data: Path) -> None:
        path = data / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return spoil


def garbage_database(data: Path) -> None:
    garbage("agent.db")(data)
    for tail in ("-wal", "-shm"):
        (data / f"agent.db{tail}").unlink(missing_ok=True)


def holes_in_the_database(data: Path) -> None:
    """Lost writes: the last quarter of the file is zeros."""
    db = sqlite3.connect(data / "agent.db")
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    raw = (data / "agent.db").read_bytes()
    whole = len(raw) * 3 // 4 // 4096 * 4096
    (data / "agent.db").write_bytes(raw[:whole] + bytes(len(raw) - whole))


def flip_a_bit(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def kept_hashes(data: Path) -> set[str]:
    records = json.loads((data / "images" / "kept.json").read_text())
    return {one["sha256"] for one in records.values()}


def flip_kept_images(data: Path) -> None:
    for sha256 in kept_hashes(data):
        flip_a_bit(data / "images" / f"{sha256}.bin")


def flip_new_images(data: Path) -> None:
    new = {path.stem for path in (data / "images").glob("*.bin")} - kept_hashes(data)
    assert new
    for sha256 in new:
        flip_a_bit(data / "images" / f"{sha256}.bin")


def nothing(_: Path) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class Case:
    """`at`: the kill point in the release at which the agent goes; "": it is idle. `clock_s`: how wrong its
    clock is from then on; None: it is in 1970. `offline`: the link is gone until the ECUs have changed.
    `code`: the error that the job ends with; None: it is done. `again`: with a right clock it is ordered
    once more, and done. `alarms` that the office has.
    """

    spoil: Callable[[Path], None] = nothing
    at: str = ""
    clock_s: float | None = 0.0
    offline: bool = False
    code: str | None = None
    again: bool = False
    alarms: frozenset[str] = frozenset()
    set_aside: int = 0


LOST = frozenset({JOURNAL_LOST})
CASES: dict[str, Case] = {
    "holes in the database in the middle of a release": Case(
        spoil=holes_in_the_database, at="journal.after:activating", alarms=LOST, set_aside=1
    ),
    "garbage counters": Case(spoil=garbage("counters.json"), code="counters_unknown"),
    "a kept image with a flipped bit": Case(spoil=flip_kept_images, code="no_way_back"),
    "a clock in 1970": Case(clock_s=None),
    "a month without a link in the middle of a release": Case(
        at="journal.after:flashing", clock_s=MONTH_S, offline=True
    ),
    "a garbage database": Case(spoil=garbage_database, alarms=LOST, set_aside=1),
    "a garbage record of kept images": Case(spoil=garbage("images/kept.json"), code="no_way_back"),
    "a new image with a flipped bit": Case(spoil=flip_new_images, at="journal.after:waiting"),
    "half a trust store": Case(spoil=shorter("trust/store.json"), code="trusted_store_unreadable"),
    "a clock in 1970 in the middle of a release": Case(at="journal.after:activating", clock_s=None),
    "a clock a month ahead before it begins": Case(
        at="journal.before:waiting", clock_s=MONTH_S, code="command_expired", again=True
    ),
}
THIN = tuple(CASES)[:5]


@dataclass(kw_only=True)
class Found:
    """What was found of a case."""

    job: dict[str, Any] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    alarms: frozenset[str] = frozenset()
    set_aside: int = 0
    log: str = ""
    failed: str = ""


class Day:
    """One case on its truck."""

    def __init__(self, fleet: Fleet, truck: ChaosTruck, case: Case, folder: Path) -> None:
        self._fleet = fleet
        self._truck = truck
        self._case = case
        self._folder = folder / truck.device_id

    async def live(self) -> Found:
        fleet, truck, case = self._fleet, self._truck, self._case
        data = self._folder / AGENT_DATA
        job_id = ""
        if case.at:
            job_id = await fleet.order(truck, 1, "")
            truck.kill_at_point(case.at)
            await until(self._is_dead, "the agent's end", within_s=WITHIN_S)
        else:
            if not (data / "counters.json").exists():
                (data / "counters.json").write_text("{}")
            await truck.kill_agent()
        truck.spare()
        await asyncio.to_thread(case.spoil, data)
        truck.set_clock(case.clock_s)
        if case.offline:
            truck.cut_link()
        truck.start_agent()
        job_id = job_id or await fleet.order(truck, 1, "")
        if case.offline:
            await until(self._runs_new, "the ECUs to run the release", within_s=WITHIN_S)
            truck.restore_link()
        await self._end(job_id)
        wrong = await self._judge(job_id, may_fail=case.code is not None)
        job = await fleet.job(job_id)
        if case.again:
            truck.set_clock(0.0)
            job_id = await fleet.order(truck, 1, "")
            await self._end(job_id)
            wrong += await self._judge(job_id, may_fail=False)
        await until(self._has_alarms, f"the alarms of {truck.device_id}", within_s=WITHIN_S)
        aside = {name.removesuffix("-wal").removesuffix("-shm") for name in truck.set_aside}
        return Found(
            job=job,
            wrong=wrong,
            alarms=await self._alarms(),
            set_aside=len(aside),
            log=(self._folder / "agent.log").read_text(),
        )

    async def _end(self, job_id: str) -> None:
        async def ended() -> bool:
            return JobState((await self._fleet.job(job_id))["state"]) in JOB_TERMINAL

        await until(ended, f"the job of {self._truck.device_id} to end", within_s=WITHIN_S)

    async def _is_dead(self) -> bool:
        return self._truck.is_dead

    async def _runs_new(self) -> bool:
        return self._runs() == self._hashes(1)

    def _runs(self) -> dict[str, str]:
        return {one.component: runs(self._truck, one.component) for one in PRODUCTS}

    def _hashes(self, version: int) -> dict[str, str]:
        return {name: one.spec.sha256 for name, one in self._fleet.firmware[version].items()}

    async def _judge(self, job_id: str, *, may_fail: bool) -> list[str]:
        await asyncio.to_thread(self._truck.cycle_ecus)
        # A lost journal takes its unsent statuses along: it is not asked for them.
        told = Counter[str]() if self._case.set_aside else self._truck.told(job_id)
        return wrong_with(
            Outcome(
                job=await self._fleet.job(job_id),
                told=told,
                runs=self._runs(),
                old=self._hashes(0),
                new=self._hashes(1),
                may_fail=may_fail,
                may_cancel=False,
                wrong_clock=False,
            )
        )

    async def _has_alarms(self) -> bool:
        return self._case.alarms <= await self._alarms()

    async def _alarms(self) -> frozenset[str]:
        params = {"device_id": self._truck.device_id, "limit": 100}
        found = await self._fleet.office.call("GET", "/api/v1/alarms", params=params)
        return frozenset(one["detail"] for one in found["items"])


async def story(folder: Path, library: Path, names: Collection[str]) -> dict[str, Found]:
    results: dict[str, Found] = {}

    async def play(name: str, day: Day) -> None:
        try:
            results[name] = await day.live()
        except Exception as error:
            results[name] = Found(failed=f"{type(error).__name__}: {error}")

    async with Fleet(folder, trucks=len(names), versions=1, by=By.RELEASES, library=library) as fleet:
        days = [
            (name, Day(fleet, truck, CASES[name], folder))
            for name, truck in zip(names, fleet.trucks, strict=True)
        ]
        await asyncio.gather(*(play(name, day) for name, day in days))
    return results


def play_all(folder: Path, names: Collection[str]) -> dict[str, Found]:
    try:
        library = build(folder)
    except NoCompiler as error:
        pytest.skip(f"no wrong clocks here: {error.message}. {error.advice}")
    return asyncio.run(story(folder, library, names))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Found]:
    return play_all(tmp_path_factory.mktemp("days"), THIN)


@pytest.fixture(scope="module")
def all_found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Found]:
    return play_all(tmp_path_factory.mktemp("days"), CASES)


def check(this: Found, case: Case) -> None:
    assert not this.failed
    assert not this.wrong, (this.wrong, this.job["error"])
    if case.code is None:
        assert this.job["state"] == "done"
    else:
        assert this.job["error"]["code"] == case.code
        assert this.job["error"]["text"]
    assert case.alarms <= this.alarms
    assert this.set_aside == case.set_aside
    assert ("store.set_aside" in this.log) is bool(case.set_aside)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", THIN)
def test_it_starts_safe_and_says_so(found: dict[str, Found], name: str) -> None:
    check(found[name], CASES[name])


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", CASES)
def test_each_bad_day_ends_right(all_found: dict[str, Found], name: str) -> None:
    check(all_found[name], CASES[name])
