"""Plays a plan: orders updates, does each fault at its point, puts all right again, judges each end.

A fault whose point the update did not pass is no fault: it is counted as planned and not as happened. The end
of an update is the office's word; then the ECUs are power-cycled, and what they run is read from their flash.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shared.states import JOB_TERMINAL, JobState
from sim.chaos.fleet import IMAGE_BYTES, PRODUCTS, By, Fleet, runs, until
from sim.chaos.judge import Outcome, duplicates, lost, wrong_with
from sim.chaos.plan import NEEDS_RECORDING, At, Fault, Kind, Update, make_plan
from sim.chaos.truck import ChaosTruck
from sim.mcu.faults import Faults
from sim.power import NoCompiler, build
from sim.scenarios.office import OfficeFailed
from sim.truck_config import ESP32_UDS

MOST_UPDATES, MOST_TRUCKS = 1000, 10
LOOK_S = 0.005
END_WITHIN_S = 240.0
TOLD_WITHIN_S = 60.0
TWO_SLOTS = next(one.component for one in PRODUCTS if one.flasher == ESP32_UDS)


@dataclass(frozen=True, kw_only=True)
class Report:
    """A run's end. `ok`: nothing is `wrong`. `ends` counts the jobs' last states; `planned` and `happened`
    the faults by kind; `left_out` the kinds that this machine can't have; `restarts` the agents' starts
    beyond the first, `crashes` the ends of them that no fault explains.
    """

    ok: bool
    seed: int
    by: str
    updates: int
    trucks: int
    ends: dict[str, int]
    planned: dict[str, int]
    happened: dict[str, int]
    left_out: list[str]
    doubled_messages: int
    restarts: int
    crashes: int
    statuses: int
    duplicates: int
    lost: int
    dead_letters: int
    databases_set_aside: int
    wrong: list[str]
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        return {**asdict(self), "seconds": round(self.seconds, 1)}


class Run:
    """One run's parts and counts."""

    def __init__(self, fleet: Fleet, show: Callable[[str], None]) -> None:
        self._fleet = fleet
        self._show = show
        self._at = [0] * len(fleet.trucks)
        self._versions = [dict.fromkeys((one.component for one in PRODUCTS), 0) for _ in fleet.trucks]
        self.happened: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()
        self.statuses = self.duplicates = self.lost = 0
        self.wrong: list[str] = []

    async def play(self, plan: tuple[Update, ...]) -> None:
        """Every truck's updates one after the other, the trucks side by side."""
        async with asyncio.TaskGroup() as tasks:
            for place in range(len(self._fleet.trucks)):
                mine = [update for update in plan if update.truck == place]
                tasks.create_task(self._truck(place, mine), name=f"chaos.truck-{place}")

    async def _truck(self, place: int, updates: list[Update]) -> None:
        truck = self._fleet.trucks[place]
        watching = asyncio.create_task(_supervise(truck), name=f"chaos.supervisor-{place}")
        try:
            for update in updates:
                try:
                    said = await self._update(truck, place, update)
                except OfficeFailed as error:
                    said = [error.message]
                    self.wrong += [f"update {update.number}: {one}" for one in said]
                    # What is not understood must not be built upon.
                    return
                self.wrong += [f"update {update.number}: {one}" for one in said]
        finally:
            watching.cancel()
            await asyncio.wait({watching})

    async def _update(self, truck: ChaosTruck, place: int, update: Update) -> list[str]:
        fleet = self._fleet
        self._at[place] += 1
        version = self._at[place]
        component = PRODUCTS[version % 2].component
        changed = [one.component for one in PRODUCTS] if fleet.by is By.RELEASES else [component]
        old = {name: fleet.firmware[n][name].spec.sha256 for name, n in self._versions[place].items()}
        new = old | {name: fleet.firmware[version][name].spec.sha256 for name in changed}
        truck.doubles = update.doubled
        truck.lag(update.lag_s)
        if update.bad:
            truck.order_faults(TWO_SLOTS, Faults(bad_app=True))
        job_id = await fleet.order(truck, version, component)
        injector = Injector(truck, update, changed, self.happened)
        injecting = asyncio.create_task(injector.run(), name="chaos.faults")
        cancelling = asyncio.create_task(self._cancel(job_id, update), name="chaos.cancel")
        try:
            await until(lambda: self._ended(job_id), f"job {job_id} to end", within_s=END_WITHIN_S)
        finally:
            for task in (injecting, cancelling):
                task.cancel()
            done = await asyncio.gather(injecting, cancelling, return_exceptions=True)
            truck.calm()
        failed = [one for one in done if isinstance(one, Exception)]
        if failed:
            raise failed[0]
        await asyncio.to_thread(truck.cycle_ecus)
        truck.order_faults(TWO_SLOTS, Faults())
        outcome = await self._outcome(truck, job_id, injector, old=old, new=new)
        wrong = wrong_with(outcome)
        state = outcome.job["state"]
        self.ends[state] += 1
        self.statuses += sum(1 for line in outcome.job["history"] if line["message_id"])
        self.duplicates += duplicates(outcome)
        self.lost += lost(outcome).total()
        if state == "done":
            self._versions[place].update(dict.fromkeys(changed, version))
        faults = ", ".join(f"{one.kind} at {one.at} {one.name}".strip() for one in injector.happened) or "-"
        self._show(f"update {update.number:3} {truck.device_id} {state:9} {faults}")
        return wrong

    async def _ended(self, job_id: str) -> bool:
        return JobState((await self._fleet.job(job_id))["state"]) in JOB_TERMINAL

    async def _cancel(self, job_id: str, update: Update) -> None:
        """An operator thinks better of it as soon as the truck has said something."""
        if not update.cancel:
            return
        await until(lambda: self._heard(job_id), "the truck's first word", within_s=END_WITHIN_S)
        while not await self._ended(job_id):
            try:
                await self._fleet.cancel(job_id)
            except OfficeFailed:
                # It moved on between the look and the word: once more, unless it has ended.
                await asyncio.sleep(LOOK_S)
                continue
            return

    async def _heard(self, job_id: str) -> bool:
        job = await self._fleet.job(job_id)
        return any(line["message_id"] for line in job["history"])

    async def _outcome(
        self, truck: ChaosTruck, job_id: str, injector: Injector, *, old: dict[str, str], new: dict[str, str]
    ) -> Outcome:
        kinds = {one.kind for one in injector.happened}
        update = injector.update

        async def look() -> Outcome:
            return Outcome(
                job=await self._fleet.job(job_id),
                told=truck.told(job_id),
                runs={one.component: runs(truck, one.component) for one in PRODUCTS},
                old=old,
                new=new,
                may_fail=update.bad,
                may_cancel=update.cancel,
                wrong_clock=bool(kinds & {Kind.CLOCK, Kind.CLOCK_RESTART}),
            )

        outcome = await look()
        for _ in range(round(TOLD_WITHIN_S / 0.2)):
            if not lost(outcome):
                break
            await asyncio.sleep(0.2)
            outcome = await look()
        return outcome


async def _supervise(truck: ChaosTruck) -> None:
    """What a service manager does."""
    while True:
        truck.revive()
        await asyncio.sleep(0.2)


class Injector:
    """Does the faults of one update, in their order; what passes passes by itself."""

    def __init__(self, truck: ChaosTruck, update: Update, changed: list[str], counts: Counter[str]) -> None:
        self._truck = truck
        self.update = update
        self._changed = changed
        self._counts = counts
        self.happened: list[Fault] = []

    async def run(self) -> None:
        """Until all are done, or cancelled."""
        async with asyncio.TaskGroup() as passing:
            for fault in self.update.faults:
                await self._reach(fault)
                self.happened.append(fault)
                self._counts[fault.kind] += 1
                await self._do(fault, passing)

    async def _reach(self, fault: Fault) -> None:
        """Until its point is passed; where the agent kills itself there, it is dead then."""
        truck = self._truck
        match fault.at:
            case At.ORDERED:
                return
            case At.POINT:
                truck.kill_at_point(fault.name)
                await _until(lambda: truck.is_dead)
            case At.DISK:
                truck.kill_at_act(int(fault.value))
                await _until(lambda: truck.is_dead)
            case At.DOWNLOADED:
                least = fault.value * IMAGE_BYTES
                await _until(lambda: any(least <= one for one in truck.partial_downloads().values()))
            case At.PROGRAMMED:
                name = fault.name if fault.name in self._changed else self._changed[0]
                least = fault.value * IMAGE_BYTES
                await _until(lambda: least <= truck.programmed_bytes(name) < IMAGE_BYTES)

    async def _do(self, fault: Fault, passing: asyncio.TaskGroup) -> None:
        truck = self._truck
        match fault.kind:
            case Kind.LINK_CUT:
                truck.cut_link()
                passing.create_task(_later(fault.lasts_s, truck.restore_link))
            case Kind.KILL | Kind.POWER_GATEWAY | Kind.POWER_ALL | Kind.CLOCK_RESTART:
                await truck.fall(fault)
                if fault.kind is Kind.CLOCK_RESTART:
                    passing.create_task(_later(fault.lasts_s, lambda: truck.set_clock(0.0)))
            case Kind.POWER_ECU:
                await asyncio.to_thread(truck.cycle_ecus, fault.name or self._changed[0])
            case Kind.DISK_FULL:
                truck.fill_disk(fault.room_bytes)
                passing.create_task(_later(fault.lasts_s, lambda: truck.fill_disk(-1)))
            case Kind.CLOCK:
                truck.set_clock(fault.clock_s)
                passing.create_task(_later(fault.lasts_s, lambda: truck.set_clock(0.0)))


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(LOOK_S)


async def _later(seconds: float, act: Callable[[], None]) -> None:
    await asyncio.sleep(seconds)
    act()


async def play(
    folder: Path,
    *,
    updates: int,
    trucks: int,
    seed: int,
    by: By,
    show: Callable[[str], None] = lambda _: None,
) -> Report:
    """Play one run; all data goes into `folder`. Raises OtaError when a part can't be started."""
    began = time.monotonic()
    kinds = tuple(Kind)
    library = None
    try:
        library = await asyncio.to_thread(build, folder)
    except NoCompiler as error:
        show(f"left out: {', '.join(sorted(NEEDS_RECORDING))}: {error.message}")
        kinds = tuple(one for one in Kind if one not in NEEDS_RECORDING)
    plan = make_plan(
        seed,
        updates=updates,
        trucks=trucks,
        components=[one.component for one in PRODUCTS],
        kinds=kinds,
        may_go_back=by is By.RELEASES,
    )
    most = max(Counter(update.truck for update in plan).values())
    async with Fleet(folder, trucks=trucks, versions=most, by=by, library=library) as fleet:
        run = Run(fleet, show)
        await run.play(plan)
        dead_letters = await fleet.dead_letters()
        aside = [name for truck in fleet.trucks for name in truck.set_aside]
        crashes = [code for truck in fleet.trucks for code in truck.crashes]
        wrong = list(run.wrong)
        if dead_letters:
            wrong.append(f"{dead_letters} dead letters at the office")
        if crashes:
            wrong.append(f"agents ended by themselves, with {sorted(set(crashes))}")
        if aside:
            wrong.append(f"databases were set aside: {', '.join(aside)}")
        return Report(
            ok=not wrong,
            seed=seed,
            by=by,
            updates=sum(run.ends.values()),
            trucks=trucks,
            ends=dict(run.ends),
            planned=dict(Counter(fault.kind.value for update in plan for fault in update.faults)),
            happened=dict(run.happened),
            left_out=sorted(set(Kind) - set(kinds)),
            doubled_messages=sum(one.doubled for truck in fleet.trucks for one in truck.doublers),
            restarts=sum(truck.starts - 1 for truck in fleet.trucks),
            crashes=len(crashes),
            statuses=run.statuses,
            duplicates=run.duplicates,
            lost=run.lost,
            dead_letters=dead_letters,
            databases_set_aside=len(aside),
            wrong=wrong,
            seconds=time.monotonic() - began,
        )
