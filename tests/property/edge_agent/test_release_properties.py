"""A release of several ECUs, with crashes, failures, power cuts and resets in any interleaving.

The machine is pure; here it drives a model of the hardware that keeps the contract of the flashers (acts ask
the ECU first, a stage may be cut anywhere, an image on trial is gone after a reset). It ends with every ECU
on its new image or every one on its old, never anything else, and with one final status.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.store import release as release_values
from edge_agent.store.journal import BEGUN, Entry
from edge_agent.store.release import Former, Release
from edge_agent.store.release_plan import USUAL_ATTEMPTS, BadPlan, Part, PlannedTarget, ReleasePlan, plan_of
from edge_agent.update.release_machine import FORWARD_RESTARTS
from edge_agent.update.update_events import (
    Act,
    Activated,
    AllProved,
    CancelAsked,
    Confirmed,
    Event,
    Fault,
    FaultKind,
    Fetched,
    Fits,
    Holds,
    Pause,
    Proved,
    Ready,
    Replaced,
    Restarted,
    Restored,
    Staged,
    TimeOver,
    Unsafe,
    Verified,
)
from edge_agent.update.update_machine import RECOVERY, decide
from shared.messages import Command, CommandTarget, Error, Status, TargetResult
from shared.states import UPDATE_MOVES, TruckStatus, UpdateState

AT = datetime(2027, 1, 1, tzinfo=UTC)
FINAL = {TruckStatus.DONE, TruckStatus.ERROR, TruckStatus.CANCELLED}


def result(name: str) -> TargetResult:
    return TargetResult(component=name, version="2", sha256="b" * 64)


def error(code: str = "no_answer", *, retryable: bool = True) -> Error:
    return Error(code=code, retryable=retryable, text="no")


@dataclass
class Ecu:
    """`runs` is old, new or nothing (its bootloader waits). Of two slots: `armed` starts the new image at the
    next reset, `trial` gives it up at the next. `bad`: the new image does not come up.
    """

    name: str
    slots: int
    bad: bool = False
    kept: bool = True
    runs: str = "old"
    holds: str = "old"
    armed: bool = False
    trial: bool = False
    confirmed: bool = False

    def reset(self) -> None:
        if self.slots == 1:
            self.runs = (
                "nothing" if self.holds == "torn" or (self.bad and self.holds == "new") else self.holds
            )
        elif self.armed:
            self.armed = False
            if not self.bad:
                self.runs, self.trial = "new", True
        elif self.trial:
            self.runs, self.trial = "old", False

    def stage(self, what: str, *, cut: bool) -> None:
        if self.slots == 1:
            self.runs, self.holds = "nothing", "torn" if cut else what
        else:
            self.armed = not cut


@dataclass
class World:
    """The hardware, the journal row, and what the office was told."""

    ecus: dict[str, Ecu]
    entry: Entry
    told: list[Status] = field(default_factory=list)
    act: Act = Act.LOOK
    pause: Pause = Pause.NONE
    committed: bool = False
    turned: bool = False

    def apply(self, event: Event) -> None:
        before = self.entry
        move = decide(before, event)
        after = move.entry
        assert after.state is before.state or after.state in UPDATE_MOVES[before.state]
        if before.touched and not before.ended and before.release and before.release.touched:
            assert after.begun or after.ended
            if isinstance(event, CancelAsked | Replaced | TimeOver | Unsafe):
                assert after.state is before.state
        if after.state is UpdateState.CONFIRMING and not self.committed:
            assert isinstance(event, AllProved)
            assert all(one.runs == "new" for one in self.ecus.values())
            self.committed = True
        if self.turned:
            assert after.state is not UpdateState.RESTORING
        if before.state is UpdateState.RESTORING and after.state is UpdateState.FLASHING:
            self.turned = True
        if self.committed:
            assert after.state in {UpdateState.CONFIRMING, UpdateState.DONE}
        if move.report is not None:
            status = Status(
                message_id=f"m{len(self.told)}",
                job_id="job-1",
                attempt=1,
                seq=len(self.told) + 1,
                status=move.report.status,
                step=move.report.step,
                reason=move.report.reason,
                error=move.report.error,
                targets=move.report.targets,
                at=AT,
            )
            self.told.append(status)
            after = replace(after, told=status)
        if after.release is not None:
            # As the journal would bring it back.
            assert release_values.decode(release_values.encode(after.release)) == after.release
        self.entry, self.act, self.pause = after, move.act, move.pause

    @property
    def ecu(self) -> Ecu:
        assert self.entry.release is not None
        assert self.entry.release.at is not None
        return self.ecus[self.entry.release.at]

    def perform(self, trouble: str) -> Event | None:
        """Do the act on the hardware. `trouble` may break it; None: the agent died and the event is lost."""
        event = self._perform(trouble)
        return None if trouble.startswith("crash") else event

    def _perform(self, trouble: str) -> Event:
        failed = Fault(error=error(retryable=trouble != "refused"))
        touched = replace(failed, touched=True)
        match self.act:
            case Act.LOOK:
                return Fits(Release.of(self.entry_plan))
            case Act.DOWNLOAD:
                return Fetched("", tuple((name, f"/{name}") for name in self.ecus))
            case Act.VERIFY:
                return Verified()
            case Act.ASK:
                if trouble != "":
                    return failed
                formers = [(one.name, Former(version="1", sha256="a" * 64, is_kept=one.kept)) for one in self]
                return Ready(formers=tuple(formers))
            case Act.FLASH:
                ecu = self.ecu
                if ecu.runs == "new":
                    return Holds(result(ecu.name))
                if ecu.slots == 1 and ecu.holds == "new":
                    return Staged()
                if trouble in {"before", "crash before", "refused"}:
                    return failed
                ecu.stage("new", cut=trouble != "")
                return Staged() if trouble in {"", "crash after"} else touched
            case Act.ACTIVATE:
                if trouble in {"before", "crash before"}:
                    return touched
                if not self.ecu.trial:
                    self.ecu.reset()
                return Activated() if trouble in {"", "crash after"} else touched
            case Act.CHECK if self.entry.release and self.entry.release.at is None:
                if trouble != "":
                    return replace(failed, component=next(iter(self.ecus)))
                for one in self:
                    if one.runs != "new":
                        return Fault(error=error("rolled_back"), component=one.name)
                return AllProved()
            case Act.CHECK:
                return failed if trouble or self.ecu.runs != "new" else Proved(result(self.ecu.name))
            case Act.CONFIRM:
                assert self.committed
                ecu = self.ecu
                if trouble in {"before", "crash before", "refused"}:
                    return failed
                if ecu.runs != "new":
                    ecu.stage("new", cut=False)
                    ecu.reset()
                ecu.trial, ecu.confirmed = False, True
                return Confirmed(result(ecu.name))
            case Act.RESTORE:
                return self._restore(trouble, failed, touched)
        raise AssertionError(self.act)

    def _restore(self, trouble: str, failed: Fault, touched: Fault) -> Event:
        assert not self.committed
        assert self.entry.release is not None
        if self.entry.release.at is None:
            return Restored()
        ecu = self.ecu
        if trouble in {"before", "crash before", "refused"}:
            return failed
        if ecu.slots == 2:
            ecu.runs, ecu.armed, ecu.trial = "old", False, False
            return Restored()
        if ecu.runs == "old":
            return Restored()
        if not ecu.kept:
            return Fault(error=error("image_missing"), kind=FaultKind.IMAGE)
        ecu.stage("old", cut=trouble not in {"", "crash after"})
        if trouble not in {"", "crash after"}:
            return touched
        ecu.reset()
        return Restored()

    def __iter__(self) -> Any:
        return iter(self.ecus.values())

    @property
    def entry_plan(self) -> ReleasePlan:
        return ReleasePlan(
            targets=tuple(
                PlannedTarget(component=one.name, slots=one.slots, group=number // 2)
                for number, one in enumerate(self)
            )
        )

    def check_end(self) -> None:
        assert self.entry.ended
        assert [one.status in FINAL for one in self.told].count(True) == 1
        assert self.told[-1].status in FINAL
        ends = {one.runs for one in self}
        assert not any(one.armed for one in self)
        if self.entry.state is UpdateState.DONE:
            assert ends == {"new"}
            assert all(one.confirmed and not one.trial for one in self)
            assert self.told[-1].targets == tuple(result(name) for name in self.ecus)
        else:
            assert ends == {"old"}
            assert not any(one.confirmed for one in self)


def new_world(ecus: list[Ecu]) -> World:
    targets = tuple(
        CommandTarget(
            component=one.name, version="2", sha256="b" * 64, length=1, document="{}", url="http://office/1"
        )
        for one in ecus
    )
    command = Command(command_id="c", job_id="job-1", attempt=1, revision=1, kind="install", targets=targets)
    entry = Entry(
        job_id="job-1",
        attempt=1,
        revision=1,
        state=UpdateState.RECEIVED,
        command=command,
        created_at=AT,
        updated_at=AT,
    )
    return World({one.name: one for one in ecus}, entry)


TROUBLES = st.sampled_from(
    [
        *[""] * 12,
        "before",
        "middle",
        "refused",
        "crash before",
        "crash middle",
        "crash after",
        "power of one",
        "power of all",
        "not safe",
        "cancel",
        "replaced",
        "time over",
        "not now",
        "image lost",
    ]
)
ECUS = st.lists(
    st.builds(
        lambda slots, bad: Ecu(name="", slots=slots, bad=bad),
        st.sampled_from([1, 2]),
        st.sampled_from([False, False, False, True]),
    ),
    min_size=2,
    max_size=4,
)


def disturb(world: World, trouble: str) -> None:
    """One turn of the agent with one thing that goes wrong."""
    match trouble:
        case "power of one":
            next(iter(world)).reset()
        case "power of all":
            for one in world:
                one.reset()
            world.apply(Restarted())
        case "not safe":
            world.apply(Unsafe("it moves"))
        case "cancel":
            world.apply(CancelAsked())
        case "replaced":
            world.apply(Replaced())
        case "time over":
            world.apply(TimeOver())
        case "not now":
            world.apply(Fault(error=error("conditions"), kind=FaultKind.NOT_NOW))
        case "image lost":
            world.apply(Fault(error=error("lost"), kind=FaultKind.LINK))
        case _:
            event = world.perform(trouble)
            world.apply(Restarted() if event is None else event)


@settings(max_examples=400, deadline=None)
@given(ECUS, st.lists(TROUBLES, max_size=60))
def test_it_ends_whole_new_or_whole_old(ecus: list[Ecu], troubles: list[str]) -> None:
    world = new_world([replace(one, name=f"ecu-{number}") for number, one in enumerate(ecus)])
    for trouble in troubles:
        if not world.entry.ended:
            disturb(world, trouble)
    for _ in range(200):
        if world.entry.ended:
            break
        disturb(world, "")
    world.check_end()
    if any(one.bad for one in world):
        assert world.entry.state is not UpdateState.DONE


@settings(max_examples=100, deadline=None)
@given(ECUS, st.lists(TROUBLES, max_size=40))
def test_without_the_image_to_return_to_it_goes_forward_or_waits(
    ecus: list[Ecu], troubles: list[str]
) -> None:
    """The kept images vanish from the gateway after the release began: never a third, never a busy loop."""
    world = new_world([replace(one, name=f"ecu-{number}") for number, one in enumerate(ecus)])
    for trouble in troubles:
        if world.entry.ended:
            return
        disturb(world, trouble)
        if world.entry.begun:
            for one in world:
                one.kept = False
    for _ in range(300):
        if world.entry.ended:
            world.check_end()
            return
        disturb(world, "")
    # What is left can neither come up nor go back: tried for ever, with the longest pauses between.
    assert any(one.bad for one in world)
    pauses = []
    for _ in range(12):
        disturb(world, "")
        pauses.append(world.pause)
    assert Pause.BACKOFF in pauses
    assert "stranded" in {one.step for one in world.told}


def begun(*, kept: bool = True) -> World:
    """A two-slot and a single-slot ECU at the first act that touches one."""
    world = new_world([Ecu(name="two", slots=2), Ecu(name="one", slots=1, kept=kept)])
    while world.act is not Act.FLASH:
        disturb(world, "")
    return world


def test_two_slots_first_single_slot_last_and_one_row_commits() -> None:
    world = begun()
    seen = []
    while not world.entry.ended:
        assert world.entry.release is not None
        seen.append((str(world.act), world.entry.release.at))
        disturb(world, "")
    assert seen == [
        ("flash", "two"),
        ("activate", "two"),
        ("check", "two"),
        ("flash", "one"),
        ("activate", "one"),
        ("check", "one"),
        ("check", None),
        ("confirm", "two"),
        ("confirm", "one"),
    ]
    reasons = [(one.step, one.reason) for one in world.told]
    assert ("preparing", "two (1 of 2)") in reasons
    assert ("confirming", "one (2 of 2)") in reasons


def test_groups_change_one_after_the_other() -> None:
    plan = ReleasePlan(
        targets=(
            PlannedTarget(component="a", slots=1),
            PlannedTarget(component="b", slots=2),
            PlannedTarget(component="c", slots=2, group=1),
        )
    )
    assert [f"{part} {name}" for part, name in plan.program()] == [
        "stage b",
        "stage c",
        "activate b",
        "check b",
        "stage a",
        "activate a",
        "check a",
        "activate c",
        "check c",
    ]
    assert plan.way_back() == ("c", "a", "b")
    assert Part.STAGE in dict(plan.program())


@pytest.mark.parametrize(
    "targets",
    [
        (),
        (PlannedTarget(component="a", slots=1), PlannedTarget(component="a", slots=2)),
        (PlannedTarget(component="a", slots=3),),
    ],
    ids=["none", "twice", "three-slots"],
)
def test_a_plan_that_can_not_be_carried_out_is_refused(targets: tuple[PlannedTarget, ...]) -> None:
    with pytest.raises(BadPlan):
        ReleasePlan(targets=targets)


def test_the_plan_of_a_command_is_one_group_in_its_order() -> None:
    world = new_world([Ecu(name="b", slots=2), Ecu(name="a", slots=1)])
    assert world.entry.command is not None
    plan = plan_of(world.entry.command, {"a": 1, "b": 2})
    assert [(one.component, one.slots, one.group) for one in plan.targets] == [("b", 2, 0), ("a", 1, 0)]
    assert all(one.needs_way_back for one in plan.targets)


def test_failures_are_bounded_forward_and_then_it_goes_back() -> None:
    world = begun()
    tries = 0
    while world.entry.state is not UpdateState.RESTORING:
        trouble = "middle" if world.act is Act.FLASH and world.ecu.name == "one" else ""
        tries += trouble != ""
        disturb(world, trouble)
    assert tries == USUAL_ATTEMPTS
    for _ in range(100):
        disturb(world, "middle" if world.ecu.slots == 1 else "")
        assert world.entry.state is UpdateState.RESTORING
        assert world.pause is Pause.BACKOFF
    while not world.entry.ended:
        disturb(world, "")
    world.check_end()
    assert world.told[-1].error is not None
    assert world.told[-1].error.code == "no_answer"


def test_restarts_in_the_middle_are_bounded_and_delay() -> None:
    world = begun()
    pauses = []
    while world.entry.state is not UpdateState.RESTORING:
        disturb(world, "crash middle")
        pauses.append(world.pause)
    assert len(pauses) == FORWARD_RESTARTS + 1
    assert Pause.RESTARTS in pauses
    for _ in range(50):
        disturb(world, "crash before")
        assert world.entry.state is UpdateState.RESTORING
    assert world.pause is Pause.RESTARTS
    while not world.entry.ended:
        disturb(world, "")
    world.check_end()


def test_a_release_that_goes_forward_only_never_turns_back() -> None:
    world = begun(kept=False)
    while not (world.act is Act.FLASH and world.ecu.name == "one"):
        disturb(world, "")
    for _ in range(50):
        disturb(world, "middle" if world.act is Act.FLASH else "")
        assert world.entry.state is not UpdateState.RESTORING
    while not world.entry.ended:
        disturb(world, "")
    world.check_end()
    assert world.entry.state is UpdateState.DONE


@pytest.mark.parametrize("state", sorted(BEGUN))
def test_after_a_restart_every_ecu_is_asked_before_memory_is_believed(state: UpdateState) -> None:
    world = begun()
    while world.entry.state is not state:
        assert not world.entry.ended
        if state is UpdateState.RESTORING and world.act is Act.CHECK:
            world.apply(Fault(error=error(retryable=False), touched=True))
        else:
            disturb(world, "")
    world.apply(Restarted())
    release = world.entry.release
    assert release is not None
    assert world.entry.state is (RECOVERY[state].several or state)
    assert not any(one.reached or one.settled for one in release.states)
    assert world.act in {Act.FLASH, Act.CONFIRM, Act.RESTORE}
