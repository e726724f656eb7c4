"""A release of several ECUs on a real store and real signatures: whole-new or whole-old, told in words.

Played are the ECUs (one of two slots beside the one-slot one of `truck`), the download and the vehicle.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge_agent.interlocks.safety import Policy
from edge_agent.store.release_plan import HealthBounds, ReleasePlan, plan_of
from edge_agent.store.store import Store
from edge_agent.update.kept import KeptImages
from edge_agent.update.updater import ComponentAccess, Timing, Updater
from firmware_flashers.base import (
    AccessDenied,
    Capabilities,
    FirmwareImage,
    Flasher,
    FlashError,
    Identity,
    NoAnswer,
    NotNow,
    NotProved,
    OnProgress,
    Progress,
    TrustClass,
    no_progress,
)
from shared.backoff import Backoff
from shared.messages import Command
from shared.release import FirmwareSpec
from shared.states import TruckStatus, UpdateState

OLD = b"old display"
OLD_SHA = hashlib.sha256(OLD).hexdigest()


class Display:
    """A two-slot ECU whose new image runs on trial until it is confirmed; a reset before gives it up."""

    def __init__(self) -> None:
        self.running = ("1.0.0", OLD_SHA)
        self.former: tuple[str, str] | None = None
        self.armed: tuple[str, str] | None = None
        self.bad = False
        self.faults: dict[str, list[Exception]] = {}
        self.calls: list[str] = []

    capabilities = Capabilities(
        slots=2, self_reverting=True, anti_rollback=True, trust_class=TrustClass.VERIFIES, isolated_bus=False
    )

    @property
    def on_trial(self) -> bool:
        return self.former is not None

    def reset(self) -> None:
        if self.armed is not None:
            if not self.bad:
                self.former, self.running = self.running, self.armed
            self.armed = None
        elif self.former is not None:
            self.running, self.former = self.former, None

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Flasher]:
        self._step("open")
        yield self

    def _step(self, name: str) -> None:
        self.calls.append(name)
        if self.faults.get(name):
            raise self.faults[name].pop(0)

    async def identify(self) -> Identity:
        self._step("identify")
        version, sha256 = self.running
        return Identity(kind="display", hardware="rev-a", version=version, sha256=sha256, in_bootloader=False)

    async def stage(self, image: FirmwareImage, *, progress: OnProgress = no_progress) -> None:
        assert not self.on_trial, "the slot of the former image would be lost"
        self._step("stage")
        progress(Progress(step="writing", done_bytes=len(image.data), total_bytes=len(image.data)))
        self.armed = (image.spec.version, hashlib.sha256(image.data).hexdigest())

    async def activate(self) -> None:
        self._step("activate")
        if not self.on_trial:
            self.reset()

    async def verify(self, image: FirmwareImage) -> Identity:
        self._step("verify")
        identity = await self.identify()
        if identity.sha256 != image.spec.sha256:
            raise NotProved("the former image runs", code="rolled_back")
        return identity

    async def confirm(self) -> None:
        self._step("confirm")
        self.former = None

    async def revert(self) -> None:
        """As over a fresh connection: an image that waits for its start is not remembered."""
        self._step("revert")
        if not self.on_trial:
            raise FlashError("nothing on trial", code="nothing_to_revert", retryable=False, touched=False)
        self.reset()


def quick(command: Command, slots: Any) -> ReleasePlan:
    plan = plan_of(command, slots)
    bounds = HealthBounds(within_s=0.05, every_s=0.01)
    return replace(plan, targets=tuple(replace(one, health=bounds) for one in plan.targets))


class Wagon:
    """The truck with a second ECU and what it keeps."""

    def __init__(self, truck: Any, folder: Path) -> None:
        self.truck = truck
        self.display = Display()
        self.kept = KeptImages(folder / "images")
        self.folder = folder
        truck.updater = self.updater()
        self.specs = {
            "brakes": truck.spec("2.0.0", counter=2),
            "display": truck.spec("5.0.0", counter=7, kind="display", hardware=("rev-a",)),
        }

    def updater(self, planner: Any = quick) -> Updater:
        truck = self.truck
        return Updater(
            truck.store,
            downloader=truck.downloads,
            verifier=truck.verifier,
            components={
                "brakes": ComponentAccess(kind="brake-controller", hardware="rev-b", open=truck.ecu.open),
                "display": ComponentAccess(kind="display", hardware="rev-a", open=self.display.open),
            },
            vehicle=truck.vehicle,
            policy=Policy(),
            clock=truck.clock,
            backoff=Backoff(first_s=0.001, most_s=0.01),
            timing=Timing(poll_s=0.01, refused_s=0.01, link_s=0.01, progress_s=0.01, rest_s=5.0),
            kept=self.kept,
            planner=planner,
        )

    async def keep_old_brakes(self) -> None:
        """The brakes run an image that the agent installed itself."""
        truck = self.truck
        spec: FirmwareSpec = truck.spec("1.0.0", counter=1)
        command = truck.command("job-0", spec=spec)
        path = self.folder / "old-brakes"
        path.write_bytes(truck.downloads.images[spec.sha256])
        truck.ecu.version, truck.ecu.sha256 = spec.version, spec.sha256
        await truck.counters.raise_to("brakes", 1)
        await self.kept.keep(command.targets[0], str(path))

    def command(self, names: tuple[str, ...] = ("brakes", "display"), **other: Any) -> Command:
        if other.get("kind") == "cancel":
            cancel: Command = self.truck.command("job-1", **other)
            return cancel
        commands = [
            self.truck.command("job-1", spec=self.specs[name], component=name, **other) for name in names
        ]
        obj = commands[0].to_obj()
        obj["targets"] = [one.to_obj()["targets"][0] for one in commands]
        return Command.from_obj(obj)

    @property
    def runs(self) -> tuple[str | None, str]:
        ecu = self.truck.ecu
        return (None if ecu.in_bootloader else ecu.version, self.display.running[0])


NEW = ("2.0.0", "5.0.0")
BEFORE = ("1.0.0", "1.0.0")


@pytest.fixture
async def wagon(truck: Any, tmp_path: Path) -> Wagon:
    made = Wagon(truck, tmp_path)
    await made.keep_old_brakes()
    return made


def finals(truck: Any) -> list[str]:
    return [str(one.status) for one in truck.seen if one.status in {"done", "error", "cancelled"}]


async def test_two_ecus_end_together_and_every_step_is_told(wagon: Wagon) -> None:
    truck = wagon.truck
    await truck.store.take_command(wagon.command())
    async with truck.run():
        done = await truck.told(status=TruckStatus.DONE)
    assert wagon.runs == NEW
    assert not wagon.display.on_trial
    assert [(one.component, one.version, one.sha256) for one in done.targets] == [
        (name, wagon.specs[name].version, wagon.specs[name].sha256) for name in ("brakes", "display")
    ]
    told = [(one.step, one.reason) for one in truck.seen]
    for expected in (
        ("preparing", "display (2 of 2)"),
        ("writing", "display (2 of 2)"),
        ("reading_back", "display (2 of 2)"),
        ("preparing", "brakes (1 of 2)"),
        ("erasing", "brakes (1 of 2)"),
        ("activating", "brakes (1 of 2)"),
        ("reading_back", "all 2 components"),
        ("confirming", "display (2 of 2)"),
    ):
        assert expected in told, told
    assert finals(truck) == ["done"]
    assert truck.counters.highest("brakes") == 2
    assert truck.counters.highest("display") == 7
    kept = await wagon.kept.of("brakes")
    assert kept is not None
    assert kept.version == "2.0.0"
    # The one-slot ECU is touched when the other one is proved to run the new image.
    assert wagon.display.calls.index("verify") < wagon.display.calls.index("confirm")


async def test_all_must_answer_before_the_first_is_touched(wagon: Wagon) -> None:
    truck = wagon.truck
    truck.ecu.faults = {"identify": [NoAnswer("asleep") for _ in range(1000)]}
    await truck.store.take_command(wagon.command())
    async with truck.run():
        error = await truck.told(status=TruckStatus.ERROR)
    assert error.error.code == "no_answer"
    assert wagon.runs == BEFORE
    assert "stage" not in wagon.display.calls


async def test_a_sleeper_that_wakes_up_in_time_is_flashed(wagon: Wagon) -> None:
    truck = wagon.truck
    truck.ecu.faults = {"identify": [NoAnswer("asleep") for _ in range(3)]}
    await truck.store.take_command(wagon.command())
    async with truck.run():
        await truck.told(status=TruckStatus.DONE)
    assert wagon.runs == NEW


async def test_without_the_installed_image_of_a_one_slot_ecu_it_is_refused(wagon: Wagon) -> None:
    truck = wagon.truck
    (wagon.folder / "old-brakes").write_bytes(b"spoiled")
    await truck.store.take_command(wagon.command())
    async with truck.run():
        error = await truck.told(status=TruckStatus.ERROR)
    assert error.error.code == "no_way_back"
    assert "brakes" in error.error.text
    assert wagon.runs == BEFORE
    assert "stage" not in truck.ecu.calls + wagon.display.calls


async def test_what_was_kept_of_another_version_than_is_installed_is_no_way_back(wagon: Wagon) -> None:
    truck = wagon.truck
    truck.ecu.version, truck.ecu.sha256 = "1.5.0", "e" * 64
    await truck.store.take_command(wagon.command())
    async with truck.run():
        error = await truck.told(status=TruckStatus.ERROR)
    assert error.error.code == "no_way_back"
    assert "stage" not in truck.ecu.calls


async def test_the_policy_of_a_release_may_go_without_the_way_back(wagon: Wagon) -> None:
    truck = wagon.truck

    def forward(command: Command, slots: Any) -> ReleasePlan:
        plan = quick(command, slots)
        return replace(plan, targets=tuple(replace(one, needs_way_back=False) for one in plan.targets))

    truck.updater = wagon.updater(forward)
    (wagon.folder / "old-brakes").unlink()
    truck.ecu.faults = {"stage": [NoAnswer("cut") for _ in range(12)]}
    await truck.store.take_command(wagon.command())
    async with truck.run():
        await truck.told(step="stranded")
        await truck.told(status=TruckStatus.DONE)
    assert wagon.runs == NEW


async def test_a_one_slot_ecu_that_refuses_for_good_sends_the_other_back(wagon: Wagon) -> None:
    truck = wagon.truck
    truck.ecu.faults = {"stage": [AccessDenied("no key", touched=False)]}
    await truck.store.take_command(wagon.command())
    async with truck.run():
        back = await truck.told(step="going_back")
        error = await truck.told(status=TruckStatus.ERROR)
    assert back.status is TruckStatus.FLASHING
    assert "display (2 of 2)" in back.reason
    assert error.error.code == "access_denied"
    assert "every component runs what it ran before" in error.reason
    assert wagon.runs == BEFORE
    assert not wagon.display.on_trial
    assert wagon.display.armed is None
    assert "confirm" not in wagon.display.calls + truck.ecu.calls
    assert truck.counters.highest("brakes") == 1
    assert finals(truck) == ["error"]


async def test_an_image_that_does_not_come_up_sends_all_back_by_slot_and_by_flash(wagon: Wagon) -> None:
    """The one-slot ECU is flashed with the kept image, whose release counter is lower."""
    truck = wagon.truck
    await truck.counters.raise_to("brakes", 2)
    truck.ecu.faults = {"verify": [NotProved("it does not run") for _ in range(60)]}
    await truck.store.take_command(wagon.command())
    async with truck.run():
        await truck.told(step="going_back")
        truck.ecu.faults = {}
        await truck.told(status=TruckStatus.ERROR)
    assert wagon.runs == BEFORE
    assert wagon.display.armed is None
    assert truck.counters.highest("display") == 0


async def test_an_interlock_that_is_lost_on_the_way_back_delays_the_reset_not_the_writing(
    wagon: Wagon,
) -> None:
    truck = wagon.truck
    ecu, verify = truck.ecu, truck.ecu.verify

    async def does_not_run(image: FirmwareImage) -> Identity:
        if image.spec.version == "2.0.0":
            # The next one that is written is the old one; it takes until the test lets it end.
            ecu.may_stage.clear()
            ecu.staging.clear()
            raise NotProved("it does not run", retryable=False)
        identity: Identity = await verify(image)
        return identity

    ecu.verify = does_not_run
    await truck.store.take_command(wagon.command())
    async with truck.run():
        await truck.told(step="going_back")
        await ecu.staging.wait()
        starts = ecu.calls.count("activate")
        truck.drive()
        ecu.may_stage.set()
        waiting = await truck.told(step="waiting")
        assert (waiting.status, [one.code for one in waiting.causes]) == (
            TruckStatus.FLASHING,
            ["not_parked"],
        )
        assert ecu.calls.count("activate") == starts
        assert ecu.in_bootloader, "written, and not started"
        truck.park()
        error = await truck.told(status=TruckStatus.ERROR)
    assert error.error.code == "not_proved"
    assert wagon.runs == BEFORE
    # What was written is not written again.
    assert ecu.calls.count("stage") == 2


async def test_going_back_is_tried_for_ever(wagon: Wagon) -> None:
    truck = wagon.truck
    truck.ecu.faults = {"stage": [NoAnswer("cut") for _ in range(40)]}
    wagon.display.faults = {"revert": [NoAnswer("cut") for _ in range(20)]}
    await truck.store.take_command(wagon.command())
    async with truck.run():
        await truck.told(step="going_back")
        stranded = await truck.told(step="stranded")
        assert stranded.status is TruckStatus.FLASHING
        await truck.store.take_command(wagon.command(revision=2, kind="cancel"))
        await truck.told(status=TruckStatus.ERROR)
    assert wagon.runs == BEFORE
    assert finals(truck) == ["error"]


async def test_an_ecu_that_went_back_by_itself_before_the_commit_is_flashed_again(wagon: Wagon) -> None:
    truck, display = wagon.truck, wagon.display
    stage = truck.ecu.stage

    async def with_a_reset(image: FirmwareImage, **options: Any) -> None:
        if not display.calls.count("reset"):
            display.calls.append("reset")
            display.reset()
        await stage(image, **options)

    truck.ecu.stage = with_a_reset
    await truck.store.take_command(wagon.command())
    async with truck.run():
        await truck.told(step="retrying")
        await truck.told(status=TruckStatus.DONE)
    assert display.calls.count("stage") == 2
    assert wagon.runs == NEW


async def test_an_ecu_that_went_back_by_itself_after_the_commit_is_flashed_again(wagon: Wagon) -> None:
    truck, display = wagon.truck, wagon.display
    confirm, resets = display.confirm, [1]

    async def with_a_reset() -> None:
        if resets:
            resets.pop()
            display.reset()
            raise NoAnswer("power")
        await confirm()

    display.confirm = with_a_reset  # type: ignore[method-assign]
    await truck.store.take_command(wagon.command())
    async with truck.run():
        await truck.told(status=TruckStatus.DONE)
    assert wagon.runs == NEW
    assert not display.on_trial
    assert display.calls.count("stage") == 2


async def test_a_vehicle_that_moves_delays_and_does_not_end_it(wagon: Wagon) -> None:
    truck = wagon.truck
    truck.ecu.may_stage.clear()
    truck.ecu.faults = {"stage": [NoAnswer("cut")]}
    await truck.store.take_command(wagon.command())
    async with truck.run():
        await truck.ecu.staging.wait()
        truck.drive()
        truck.ecu.may_stage.set()
        waiting = await truck.told(step="waiting")
        assert waiting.status is TruckStatus.FLASHING
        await truck.store.take_command(wagon.command(revision=2, kind="cancel"))
        await truck.told(step="too_late")
        truck.park()
        await truck.told(status=TruckStatus.DONE)
    assert wagon.runs == NEW


async def test_an_ecu_that_refuses_for_the_moment_is_waited_for_and_told_once(wagon: Wagon) -> None:
    truck = wagon.truck
    wagon.display.faults = {"stage": [NotNow("engine runs", touched=False) for _ in range(30)]}
    await truck.store.take_command(wagon.command())
    async with truck.run():
        await truck.told(step="waiting")
        await truck.told(status=TruckStatus.DONE)
    assert [one.step for one in truck.seen].count("waiting") == 1
    assert wagon.runs == NEW


async def test_an_ecu_may_take_its_time_to_become_healthy_within_its_bounds(wagon: Wagon) -> None:
    truck = wagon.truck

    def patient(command: Command, slots: Any) -> ReleasePlan:
        plan = plan_of(command, slots)
        bounds = HealthBounds(within_s=20.0, every_s=0.01)
        return replace(plan, targets=tuple(replace(one, health=bounds) for one in plan.targets))

    truck.updater = wagon.updater(patient)
    wagon.display.faults = {"verify": [NoAnswer("boots") for _ in range(10)]}
    await truck.store.take_command(wagon.command())
    async with truck.run():
        await truck.told(status=TruckStatus.DONE)
    assert "retrying" not in truck.story()
    assert wagon.display.calls.count("stage") == 1
    assert wagon.runs == NEW


async def test_a_cancel_before_the_first_touch_ends_it(wagon: Wagon) -> None:
    truck = wagon.truck
    truck.drive()
    await truck.store.take_command(wagon.command())
    async with truck.run():
        await truck.told(step="waiting")
        await truck.store.take_command(wagon.command(revision=2, kind="cancel"))
        await truck.told(status=TruckStatus.CANCELLED)
    assert wagon.runs == BEFORE


async def test_what_every_ecu_runs_already_is_done_at_once(wagon: Wagon) -> None:
    truck = wagon.truck
    truck.ecu.version, truck.ecu.sha256 = "2.0.0", wagon.specs["brakes"].sha256
    wagon.display.running = ("5.0.0", wagon.specs["display"].sha256)
    await truck.store.take_command(wagon.command())
    async with truck.run():
        done = await truck.told(status=TruckStatus.DONE)
    assert [one.version for one in done.targets] == list(NEW)
    assert truck.downloads.asked == []


async def test_an_ecu_that_runs_its_image_already_is_left_alone_both_ways(wagon: Wagon) -> None:
    truck = wagon.truck
    wagon.display.running = ("5.0.0", wagon.specs["display"].sha256)
    truck.ecu.faults = {"verify": [NotProved("no") for _ in range(60)]}
    await truck.store.take_command(wagon.command())
    async with truck.run():
        await truck.told(step="going_back")
        truck.ecu.faults = {}
        await truck.told(status=TruckStatus.ERROR)
    assert wagon.runs == ("1.0.0", "5.0.0")
    assert not {"stage", "activate", "revert"} & set(wagon.display.calls)


async def test_a_kept_image_that_is_lost_on_the_way_back_turns_it_round(wagon: Wagon) -> None:
    truck = wagon.truck
    truck.ecu.faults = {"verify": [NotProved("no") for _ in range(60)]}
    await truck.store.take_command(wagon.command())
    async with truck.run():
        await truck.told(step="activating", reason="brakes (1 of 2)")
        (wagon.folder / "old-brakes").unlink()
        await truck.told(step="going_back")
        truck.ecu.faults = {}
        await truck.told(status=TruckStatus.DONE)
    assert wagon.runs == NEW
    assert not wagon.display.on_trial


async def test_a_newer_job_waits_for_a_release_that_has_begun(wagon: Wagon) -> None:
    truck = wagon.truck
    truck.ecu.faults = {"stage": [NoAnswer("cut") for _ in range(3)]}
    truck.ecu.may_stage.clear()
    await truck.store.take_command(wagon.command())
    async with truck.run():
        await truck.ecu.staging.wait()
        await truck.store.take_command(truck.command("job-2", spec=truck.spec("3.0.0", counter=3)))
        truck.ecu.may_stage.set()
        await truck.told(status=TruckStatus.DONE, job_id="job-1")
        await truck.told(status=TruckStatus.DONE, job_id="job-2")
    assert wagon.runs == ("3.0.0", "5.0.0")
    assert finals(truck) == ["done", "done"]


async def test_a_single_install_is_kept_for_later_releases(wagon: Wagon) -> None:
    truck = wagon.truck
    await truck.store.take_command(truck.command("job-2", spec=truck.spec("1.9.0", counter=2)))
    async with truck.run():
        await truck.told(status=TruckStatus.DONE)
    kept = await wagon.kept.of("brakes")
    assert kept is not None
    assert kept.version == "1.9.0"
    assert Path(kept.image).read_bytes() == truck.downloads.images[kept.sha256]


async def test_a_lost_journal_in_the_middle_still_knows_what_was_before(wagon: Wagon, tmp_path: Path) -> None:
    """The display runs the new image on trial, the brakes are torn, the database is damaged."""
    truck = wagon.truck
    truck.ecu.may_stage.clear()
    await truck.store.take_command(wagon.command())
    async with truck.run():
        await truck.ecu.staging.wait()
    assert wagon.runs[1] == "5.0.0"
    assert truck.ecu.in_bootloader
    async with Store.open(tmp_path / "new.db") as store:
        truck.store = store
        truck.updater = wagon.updater()
        truck.ecu.may_stage.set()
        truck.ecu.faults = {"stage": [NoAnswer("cut") for _ in range(6)]}
        await store.take_command(wagon.command())
        async with truck.run():
            await truck.told(status=TruckStatus.ERROR)
    assert wagon.runs == BEFORE
    assert not wagon.display.on_trial


async def test_a_journal_lost_when_all_run_on_trial_still_confirms(wagon: Wagon, tmp_path: Path) -> None:
    truck = wagon.truck
    wagon.display.faults = {"confirm": [NoAnswer("cut") for _ in range(1000)]}
    await truck.store.take_command(wagon.command())
    async with truck.run():
        await truck.told(step="retrying")
    assert wagon.display.on_trial
    async with Store.open(tmp_path / "new.db") as store:
        truck.store = store
        truck.updater = wagon.updater()
        wagon.display.faults = {}
        await store.take_command(wagon.command())
        async with truck.run():
            await truck.told(status=TruckStatus.DONE)
    assert wagon.runs == NEW
    assert not wagon.display.on_trial


async def test_a_stopped_agent_takes_a_release_up_again_at_any_state(wagon: Wagon) -> None:
    """The updater is stopped at every journal write of the way and started again; the hardware is asked."""
    truck = wagon.truck
    states: list[str] = []
    reached = asyncio.Event()

    def stop_at(point: str) -> None:
        if point.startswith("journal.after:") and point not in states:
            states.append(point)
            reached.set()

    await truck.store.take_command(wagon.command())
    while await truck.store.live():
        truck.updater = wagon.updater()
        truck.updater._kill = stop_at
        reached.clear()
        task = asyncio.create_task(truck.updater.run())
        ended = asyncio.create_task(truck.updater.ended.wait())
        stopped = asyncio.create_task(reached.wait())
        await asyncio.wait({task, ended, stopped}, return_when=asyncio.FIRST_COMPLETED, timeout=30)
        for one in (task, ended, stopped):
            one.cancel()
        await asyncio.wait({task, ended, stopped})
    assert {f"journal.after:{one}" for one in UpdateState} - set(states) == {
        "journal.after:error",
        "journal.after:cancelled",
        "journal.after:received",
        "journal.after:restoring",
    } - set(states)
    assert wagon.runs == NEW
