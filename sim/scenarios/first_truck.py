"""The first truck's story: from factory firmware to the release, through everything that goes wrong.

An office with its director (its own process), agents (a process each), and for every truck CAN hubs with
an STM32 (one slot), an ESP32 (two slots), a vehicle around them, and a slow link. Releases for both ECUs are
signed offline, two keys of three. One truck gets an image that was tampered with, one waits for its parking
brake, one's link is cut in its download, one's agent is killed while it flashes. Then the office is captured,
and a release goes back whole. The story ends by itself; what it reports is read from the office's API and
from the ECUs' flash, never from what this program thinks it did.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

from shared.trust.uptane.safety_policy import SafetyPolicy
from sim.scenarios import scenes
from sim.scenarios.report import Picture, Report
from sim.scenarios.scenes import BRAKE_OFF, IMAGE_BYTES, PARKED, Made
from sim.scenarios.truck import BODY, BRAKE, DemoTruck
from sim.scenarios.yard import Yard

MOST_TRUCKS = 50
PRODUCTS = (BRAKE, BODY)
OLD_VERSION, NEW_VERSION, BAD_VERSION, GOOD_VERSION = "1.0.0", "1.1.0", "1.2.0", "1.2.1"
STEADY_MS = 1000
SAFETY = SafetyPolicy(steady_for=STEADY_MS)
FIRST_SAFETY = SafetyPolicy(steady_for=STEADY_MS, may_go_without_way_back=True)
"""No gateway has the image that the factory put into a single-slot ECU: the first release must say that it
goes forward only."""


def make_releases(yard: Yard) -> dict[str, Made]:
    """All releases of the story as drafts, by version."""
    made = {}
    for counter, version in enumerate((OLD_VERSION, NEW_VERSION, BAD_VERSION, GOOD_VERSION), start=1):
        firmwares = tuple(
            yard.desk.firmware(one, version, counter=counter, nbytes=IMAGE_BYTES) for one in PRODUCTS
        )
        yard.know(firmwares)
        safety = FIRST_SAFETY if version == NEW_VERSION else SAFETY
        # The bad one begins with the ECU that has one slot, so that there is something to bring back.
        release = yard.desk.release(version, firmwares, safety, groups=version == BAD_VERSION)
        made[version] = Made(release=release, firmwares=firmwares)
    return made


async def play(folder: Path, *, trucks: int, show: Callable[[Picture], None]) -> Report:
    """Play the story with so many trucks; all data goes into `folder`.

    With fewer than three trucks one truck gets more than one of the faults. Raises OtaError when a
    part can't be started.
    """
    began = time.monotonic()
    async with AsyncExitStack() as stack:
        yard = await asyncio.to_thread(Yard, folder, PRODUCTS, show)
        yard.stage("the office starts; releases for both ECUs are signed offline, two keys of three")
        made = await asyncio.to_thread(make_releases, yard)
        await stack.enter_async_context(yard.office)
        await scenes.sign_offline(yard, list(made.values()))
        yard.stage("trucks with two ECUs leave the factory")
        names = [f"truck-{number:03}" for number in range(1, trucks + 1)]
        fleet = await asyncio.gather(
            *(
                yard.enrol(name, made[OLD_VERSION].firmwares, stack, vehicle=PARKED if number else BRAKE_OFF)
                for number, name in enumerate(names)
            )
        )
        watching = asyncio.create_task(yard.watch(), name="yard.watch")
        stack.callback(watching.cancel)
        await asyncio.gather(*(yard.wait_connected(truck, OLD_VERSION) for truck in fleet))
        set_up_s = time.monotonic() - began

        await _update_all(yard, fleet, made)
        await _attack_and_go_back(yard, fleet, made)

        yard.stage("reading every ECU's flash")
        await yard.wait_manifests()
        reports = tuple([await yard.report(truck) for truck in fleet])
        alarms = tuple(
            {key: one[key] for key in ("device_id", "alarm", "about", "serial")}
            for one in await yard.alarms(all_of_them=True)
        )
    return Report(
        trucks=reports,
        scenes=tuple(yard.scenes),
        alarms=alarms,
        seconds=time.monotonic() - began,
        set_up_s=set_up_s,
    )


async def _update_all(yard: Yard, fleet: list[DemoTruck], made: dict[str, Made]) -> None:
    braked, cut, killed = (fleet[n % len(fleet)] for n in range(3))
    old, new = made[OLD_VERSION], made[NEW_VERSION]
    yard.stage("a tampered image: must be refused")
    await scenes.refuse_tampered(yard, killed, new, old)

    yard.stage(f"every truck's two ECUs from {OLD_VERSION} to {NEW_VERSION}")
    jobs = {truck.device_id: await yard.order(truck, new.release) for truck in fleet}
    ended, *_ = await asyncio.gather(
        asyncio.gather(*(yard.wait_end(job_id) for job_id in jobs.values())),
        scenes.wait_for_brake(yard, braked, jobs[braked.device_id], old),
        scenes.follow_release(yard, braked, jobs[braked.device_id], new, old),
        scenes.cut_link(yard, cut, jobs[cut.device_id]),
        scenes.kill_agent(yard, killed),
    )
    right = [yard.is_updated(truck, job, new.firmwares) for truck, job in zip(fleet, ended, strict=True)]
    yard.shown(
        "two_ecus_updated",
        f"{sum(right)} of {len(fleet)} trucks run {NEW_VERSION} on both ECUs, proved and committed together",
        ok=all(right),
    )


async def _attack_and_go_back(yard: Yard, fleet: list[DemoTruck], made: dict[str, Made]) -> None:
    attacked, back = (fleet[n % len(fleet)] for n in range(2))
    old, now, bad, good = (made[v] for v in (OLD_VERSION, NEW_VERSION, BAD_VERSION, GOOD_VERSION))

    async def attack() -> None:
        await scenes.captured_office_invents(yard, attacked, now)
        await scenes.captured_office_goes_back(yard, attacked, old, now)

    async def go_back() -> None:
        await scenes.go_back_whole(yard, back, bad, now)

    yard.stage("the office is captured; a release goes back whole")
    if attacked is back:
        await attack()
        await go_back()
    else:
        await asyncio.gather(attack(), go_back())

    yard.stage(f"the office is given back; the corrected release {GOOD_VERSION}")
    await scenes.give_office_back(yard, list(made.values()))
    await asyncio.gather(*(scenes.update(yard, truck, good) for truck in {attacked, back}))
