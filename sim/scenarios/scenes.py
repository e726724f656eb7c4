"""The scenes of the story: each makes something happen, looks whether it ended as it must, and says so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.states import JobState, Step
from shared.trust.uptane.release_document import ReleaseSpec
from sim.mcu.faults import Faults
from sim.scenarios.captured import CapturedOffice
from sim.scenarios.desk import Desk, Firmware, release_of
from sim.scenarios.truck import BODY, BRAKE, DemoTruck
from sim.scenarios.yard import Yard

IMAGE_BYTES = 32 * 1024
CUT_FOR_S = 1.0
QUICK_S = 0.02
PARKED, BRAKE_OFF = "parked", "parked parking_brake=released"


@dataclass(frozen=True, kw_only=True)
class Made:
    """A release with its firmwares, one for each product, in the order of the release."""

    release: ReleaseSpec
    firmwares: tuple[Firmware, ...]


async def sign_offline(yard: Yard, releases: Sequence[Made]) -> None:
    """One key of three publishes nothing, two do; the office takes in what they have published."""
    refused = yard.desk.why_not_with(1)
    yard.desk.publish(keys=2)
    known = await yard.upload()
    yard.shown(
        "signed_offline",
        f"one key of three publishes nothing ({refused or 'IT DID'}); two do: "
        f"{len(known)} releases are taken in by the office, which has none of these keys",
        ok=bool(refused) and set(known) == {one.release.target_path for one in releases},
    )


async def refuse_tampered(yard: Yard, truck: DemoTruck, new: Made, old: Made) -> None:
    """Someone who holds the firmware store changes one bit; the truck must not install it."""
    target = next(one for one in new.firmwares if one.product == BODY)
    yard.note(truck, f"the {BODY.component}'s image is tampered with in the firmware store")
    stored = yard.office.stored_image(target.spec.sha256)
    tampered = bytearray(target.image)
    tampered[len(tampered) // 2] ^= 1
    await asyncio.to_thread(replace_bytes, stored, bytes(tampered))
    try:
        job = await yard.wait_end(await yard.order(truck, new.release))
    finally:
        await asyncio.to_thread(replace_bytes, stored, target.image)
    text = sentence_of(job)
    yard.note(truck, f"refused the tampered image: {job['state']}; now the good one")
    yard.shown(
        "tampered_image_refused",
        f"a tampered image is refused, both ECUs untouched: {text}",
        ok=job["state"] == JobState.ERROR and "SHA-256" in text and yard.holds(truck, old.firmwares),
    )


async def wait_for_brake(yard: Yard, truck: DemoTruck, job_id: str, old: Made) -> None:
    """The parking brake is released: the truck says so and waits; when it is set, the update goes on."""

    def waits(job: dict[str, Any]) -> bool:
        return job["step"] == Step.WAITING and "parking brake is not set" in (job["reason"] or "")

    job = await yard.wait_job(job_id, waits, "to wait for the parking brake")
    untouched = yard.holds(truck, old.firmwares)
    reason: str = job["reason"]
    yard.note(truck, f"waits: {reason}")
    yard.note(truck, "the driver sets the parking brake")
    truck.drive(PARKED)
    job = await yard.wait_job(job_id, lambda job: not waits(job), "to go on")
    yard.shown(
        "waits_for_the_parking_brake",
        f'everything downloaded, no ECU touched: "{reason}"; with the brake set it goes on',
        ok=untouched,
    )


async def follow_release(yard: Yard, truck: DemoTruck, job_id: str, new: Made, old: Made) -> None:
    """Look at both ECUs all the while: the ESP32 comes first, in its other slot, and one commit ends it."""
    body, brake = (next(one for one in new.firmwares if one.product == product) for product in (BODY, BRAKE))
    old_brake = next(one for one in old.firmwares if one.product == BRAKE)
    slot_before = truck.place(BODY.component)
    version = new.release.version
    seen: list[str] = []

    def see(word: str, text: str) -> None:
        if word not in seen:
            seen.append(word)
            yard.note(truck, text)

    def look() -> None:
        if yard.holds(truck, [body]) and (place := truck.place(BODY.component)) != slot_before:
            if yard.holds(truck, [old_brake]):
                see(
                    "tried",
                    f"the {BODY.component} runs {version} from {place}; the {BRAKE.component} as before",
                )
            elif yard.holds(truck, [brake]):
                see("both", f"both ECUs run {version}, and are proved before they are committed")
        if truck.place(BRAKE.component) == "bootloader":
            see("flashed", f"the {BRAKE.component}, which has one slot, is in its bootloader")

    with sampling(look):
        job = await yard.wait_end(job_id)
    steps = [line["step"] for line in job["history"] if line["applied"]]
    yard.shown(
        "two_slots_first_then_one_then_the_commit",
        f"the {BODY.component} ran {version} from its other slot before the {BRAKE.component}'s only one was "
        "touched; both were committed together",
        ok=seen == ["tried", "flashed", "both"]
        and Step.CONFIRMING in steps
        and job["state"] == JobState.DONE,
    )


async def cut_link(yard: Yard, truck: DemoTruck, job_id: str) -> None:
    """The link goes in the middle of the download and comes back later."""

    async def is_half_way() -> bool:
        return sum(truck.partial_downloads().values()) >= IMAGE_BYTES // 4

    await yard.until(is_half_way, f"{truck.device_id} to be in its download", every_s=QUICK_S)
    truck.cut_link()
    await asyncio.sleep(CUT_FOR_S)
    had = truck.partial_downloads()
    yard.note(
        truck, f"link cut in the middle of the download: {sum(had.values())} bytes of an image are there"
    )
    least = dict(had)

    async def is_whole() -> bool:
        have = truck.partial_downloads()
        least.update({name: min(least[name], have[name]) for name in had.keys() & have.keys()})
        return not had.keys() & have.keys()

    truck.restore_link()
    yard.note(truck, "link restored: goes on where it stopped")
    await yard.until(is_whole, f"{truck.device_id} to finish its download", every_s=QUICK_S)
    job = await yard.look(job_id)
    yard.shown(
        "link_cut_in_the_download",
        f"the link was cut with {sum(had.values())} of {IMAGE_BYTES} bytes of an image there, "
        "and not one of them was fetched again",
        ok=bool(had) and least == had and job["state"] != JobState.ERROR,
    )


async def kill_agent(yard: Yard, truck: DemoTruck) -> None:
    """SIGKILL while an ECU is being programmed; a service manager starts the agent again."""
    component = BRAKE.component

    async def is_programming() -> bool:
        return truck.programmed_bytes(component) >= IMAGE_BYTES // 4

    await yard.until(is_programming, f"{truck.device_id} to program its {component}", every_s=QUICK_S)
    await truck.kill_agent()
    written, place = truck.programmed_bytes(component), truck.place(component)
    yard.note(truck, f"agent killed (SIGKILL), {written} of {IMAGE_BYTES} bytes written to the {component}")
    truck.start_agent()
    yard.shown(
        "agent_killed_in_the_flash",
        f"the agent was killed with {written} of {IMAGE_BYTES} bytes in the {component}'s one slot, "
        "and its journal goes on from there",
        ok=0 < written <= IMAGE_BYTES and place == "bootloader",
    )


async def captured_office_invents(yard: Yard, truck: DemoTruck, now: Made) -> None:
    """The captured office directs a release that nobody has signed offline."""
    thief = Desk(yard.products)
    firmwares = tuple(
        thief.firmware(one.product, "6.6.6", counter=66, nbytes=IMAGE_BYTES) for one in now.firmwares
    )
    release = release_of("6.6.6", firmwares, now.release.safety)
    yard.note(truck, "the office is captured: it directs 6.6.6, signed by the thief's own keys")
    await CapturedOffice(yard.office.folder).believe(release, firmwares)
    await _refuse(
        yard, truck, release, now, name="captured_office_invents_a_release", alarm="target_not_found"
    )


async def captured_office_goes_back(yard: Yard, truck: DemoTruck, older: Made, now: Made) -> None:
    """The captured office directs an older release, which was once signed offline."""
    yard.note(truck, f"the captured office directs {older.release.version}, an older release")
    await CapturedOffice(yard.office.folder).forget_counters()
    name, alarm = "captured_office_directs_an_older_release", "release_counter_rolled_back"
    await _refuse(yard, truck, older.release, now, name=name, alarm=alarm)


async def _refuse(
    yard: Yard, truck: DemoTruck, release: ReleaseSpec, now: Made, *, name: str, alarm: str
) -> None:
    """Order what the truck must refuse; its alarm reaches the office, and a person acknowledges it."""
    job = await yard.wait_end(await yard.order(truck, release))
    found: dict[str, Any] = {}

    async def is_raised() -> bool:
        nonlocal found
        found = next((one for one in await yard.alarms(truck) if one["about"] == alarm), {})
        return bool(found)

    await yard.until(is_raised, f"the alarm {alarm} of {truck.device_id}")
    await yard.office.call("POST", f"/api/v1/alarms/{found['alarm_id']}/acknowledge")
    yard.note(truck, f"refused, and an alarm: {found['alarm']} {found['about']}")
    error = job["error"] or {}
    yard.shown(
        name,
        f"{release.version} is refused ({error.get('code')}): {error.get('text')}; "
        f"the office shows the alarm {found['alarm']} {found['about']}",
        ok=job["state"] == JobState.ERROR and error.get("code") == alarm and yard.holds(truck, now.firmwares),
    )


async def give_office_back(yard: Yard, releases: Sequence[Made]) -> None:
    """A fresh publication of what is signed offline replaces whatever the thief has put there."""
    await CapturedOffice(yard.office.folder).leave()
    yard.desk.publish(keys=2)
    known = await yard.upload()
    yard.shown(
        "office_recovered",
        f"the thief is out; published and uploaded anew, the office knows the {len(known)} releases that "
        "were signed offline, and nothing of the thief's",
        ok=set(known) == {one.release.target_path for one in releases},
    )


async def update(yard: Yard, truck: DemoTruck, new: Made) -> None:
    """The corrected release, as any other."""
    right = await yard.update(truck, new.release, new.firmwares)
    version = new.release.version
    yard.note(truck, f"{version} is on both ECUs" if right else f"{version} is not there")
    yard.shown("corrected_release", f"{truck.device_id} runs {version} on both ECUs", ok=right)


async def go_back_whole(yard: Yard, truck: DemoTruck, bad: Made, now: Made) -> None:
    """The ESP32's image never comes up: the STM32, which has the release already, goes back too."""
    truck.order_faults(BODY.component, Faults(bad_app=True))
    new = next(one for one in bad.firmwares if one.product == BRAKE)
    seen = False

    def look() -> None:
        nonlocal seen
        seen = seen or yard.holds(truck, [new])

    yard.note(truck, f"{bad.release.version}: the {BODY.component}'s image will never come up")
    with sampling(look):
        job = await yard.wait_end(await yard.order(truck, bad.release))
    truck.order_faults(BODY.component, Faults())
    back = now.release.version
    yard.note(truck, f"went back whole to {back}: {sentence_of(job)}")
    yard.shown(
        "goes_back_whole",
        f"the {BODY.component} never came up with {bad.release.version}; the {BRAKE.component}, which ran it "
        f"already, and the {BODY.component} both run {back} again: {sentence_of(job)}",
        ok=job["state"] == JobState.ERROR and seen and yard.holds(truck, now.firmwares),
    )


@contextmanager
def sampling(look: Callable[[], None]) -> Iterator[None]:
    """Look all the while, often enough to see an ECU between two of its states."""

    async def sample() -> None:
        while True:
            look()
            await asyncio.sleep(QUICK_S)

    task = asyncio.create_task(sample(), name="scene.sample")
    try:
        yield
    finally:
        task.cancel()
    if task.done() and not task.cancelled():
        task.result()


def sentence_of(job: dict[str, Any]) -> str:
    """Why a job failed, in the truck's words."""
    text: str = (job["error"] or {}).get("text") or "no reason"
    return text


def replace_bytes(path: Path, data: bytes) -> None:
    """Put other bytes in a file's place in one step."""
    part = path.with_suffix(".part")
    part.write_bytes(data)
    part.replace(path)
