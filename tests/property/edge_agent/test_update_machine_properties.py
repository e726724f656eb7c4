"""Whatever happens in whatever order: no move outside the table, no touched ECU abandoned, no flash
without a verified image and a safe vehicle."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from edge_agent.store.journal import BEGUN, Entry
from edge_agent.update.update_events import (
    Act,
    Activated,
    CancelAsked,
    Event,
    Fault,
    FaultKind,
    Fetched,
    Fits,
    Holds,
    NeedsUrl,
    Pause,
    Proved,
    Ready,
    Replaced,
    Restarted,
    Staged,
    TakenOver,
    TimeOver,
    Unsafe,
    Verified,
)
from edge_agent.update.update_machine import (
    ACT_OF,
    FREE_RESTARTS,
    MOST_RESTARTS,
    MOST_TRIES,
    RECOVERY,
    STRANDED_AFTER,
    decide,
)
from shared.messages import Error, Status, TargetResult
from shared.states import UPDATE_MOVES, UPDATE_TERMINAL, TruckStatus, UpdateState

AT = datetime(2027, 1, 1, tzinfo=UTC)
RESULT = TargetResult(component="brakes", version="2", sha256="a" * 64)
NEW = Entry(job_id="job-1", attempt=1, revision=1, state=UpdateState.RECEIVED, created_at=AT, updated_at=AT)
FAULTS = st.builds(
    Fault,
    error=st.builds(Error, code=st.sampled_from(["a", "b"]), retryable=st.booleans(), text=st.just("no")),
    kind=st.sampled_from(FaultKind),
    touched=st.booleans(),
)
EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.sampled_from(
        [
            Fits(),
            Holds(RESULT),
            Fetched("/image"),
            NeedsUrl(),
            Verified(),
            Staged(),
            Activated(),
            Proved(RESULT),
            CancelAsked(),
            Replaced(),
            TakenOver("job-2"),
            TimeOver(),
            Restarted(),
        ]
    ),
    st.builds(Unsafe, st.sampled_from(["moves", "engine"])),
    st.builds(Ready, takes_over=st.booleans()),
    FAULTS,
)
GOOD: dict[Act, Event] = {
    Act.LOOK: Fits(),
    Act.DOWNLOAD: Fetched("/image"),
    Act.VERIFY: Verified(),
    Act.ASK: Ready(),
    Act.FLASH: Staged(),
    Act.ACTIVATE: Activated(),
    Act.CHECK: Proved(RESULT),
}
ONE_ECU = [one for one in UpdateState if one not in {UpdateState.CONFIRMING, UpdateState.RESTORING}]
"""The other two belong to releases of several ECUs (test_release_properties)."""
STATES = st.builds(
    lambda state, touched, tries: replace(NEW, state=state, touched=touched and state in BEGUN, tries=tries),
    st.sampled_from(ONE_ECU),
    st.booleans(),
    st.integers(0, 10),
)


class AnyHistory(RuleBasedStateMachine):
    """Feed events, those that fit the planned act and those that do not, and write what is decided."""

    def __init__(self) -> None:
        super().__init__()
        self.entry = NEW
        self.act = Act.LOOK
        self.was_touched = False
        self.verified = False
        self.seq = 0

    @rule(event=EVENTS)
    def happens(self, event: Event) -> None:
        before = self.entry
        move = decide(before, event)
        after = move.entry
        assert after.state is before.state or after.state in UPDATE_MOVES[before.state]
        if isinstance(event, Verified) and before.state is UpdateState.VERIFYING:
            self.verified = True
        if after.state is UpdateState.DOWNLOADING:
            self.verified = False
        if after.state in BEGUN and before.state not in BEGUN:
            assert isinstance(event, Ready)
            assert self.verified
        if before.touched:
            self.was_touched = True
            assert after.touched
            if after.ended and not before.ended:
                assert isinstance(event, Proved | TakenOver)
        if before.begun and isinstance(event, CancelAsked | Replaced | TimeOver | Unsafe | Fault):
            assert not after.ended or (isinstance(event, Fault) and not before.touched and not event.touched)
        if before.ended:
            assert (after, move.report, move.act) == (before, None, Act.NOTHING)
        if after.ended and not before.ended:
            assert move.report is not None
            assert move.report.status in {TruckStatus.DONE, TruckStatus.ERROR, TruckStatus.CANCELLED}
        if after.state is UpdateState.DONE and not before.ended:
            assert move.report is not None
            assert move.report.targets == (RESULT,)
        if move.report is not None:
            self.seq += 1
            after = replace(
                after,
                told=Status(
                    message_id=f"m{self.seq}",
                    job_id="job-1",
                    attempt=1,
                    seq=self.seq,
                    status=move.report.status,
                    step=move.report.step,
                    reason=move.report.reason,
                    error=move.report.error,
                    at=AT,
                ),
            )
        self.entry, self.act = after, move.act

    @rule()
    def the_act_succeeds(self) -> None:
        if self.act in GOOD:
            self.happens(GOOD[self.act])

    @invariant()
    def an_act_that_changes_an_ecu_is_of_a_begun_update(self) -> None:
        if self.act in {Act.FLASH, Act.ACTIVATE, Act.CHECK}:
            assert self.entry.begun
        assert (self.act is Act.NOTHING) == self.entry.ended

    @invariant()
    def only_a_begun_update_is_touched(self) -> None:
        if self.entry.touched and not self.entry.ended:
            assert self.entry.state in BEGUN


TestAnyHistory = AnyHistory.TestCase
TestAnyHistory.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@given(STATES, EVENTS)
def test_every_state_has_an_answer_to_every_event(entry: Entry, event: Event) -> None:
    move = decide(entry, event)
    assert move.entry.key == entry.key
    assert move.act is ACT_OF[move.entry.state] or (
        move.act is Act.DOWNLOAD and move.entry.state is UpdateState.FLASHING
    )


@given(STATES, FAULTS, st.integers(0, 30))
def test_a_retried_failure_always_pauses(entry: Entry, fault: Fault, tries: int) -> None:
    move = decide(replace(entry, tries=tries), fault)
    if not move.entry.ended and fault.kind is not FaultKind.IMAGE:
        assert move.pause is not Pause.NONE


@pytest.mark.parametrize("state", UpdateState)
def test_recovery_names_an_act_for_every_state(state: UpdateState) -> None:
    recovery = RECOVERY[state]
    assert recovery.act is ACT_OF[state]
    move = decide(replace(NEW, state=state), Restarted())
    assert (move.entry.state, move.report) == (state, None)
    assert move.act is recovery.act
    assert move.entry.touched == (state in BEGUN)


@pytest.mark.parametrize("state", [one for one in UpdateState if one not in BEGUN | UPDATE_TERMINAL])
def test_before_the_touch_cancel_time_and_a_newer_job_end_it(state: UpdateState) -> None:
    entry = replace(NEW, state=state)
    assert decide(entry, CancelAsked()).entry.state is UpdateState.CANCELLED
    for event, code in ((Replaced(), "replaced"), (TimeOver(), "command_expired")):
        move = decide(entry, event)
        assert move.entry.state is UpdateState.ERROR
        assert move.report is not None
        assert move.report.error is not None
        assert move.report.error.code == code


@pytest.mark.parametrize("state", sorted(BEGUN & set(ONE_ECU)))
@pytest.mark.parametrize("retryable", [True, False])
def test_a_touched_ecu_is_tried_for_ever_and_said_to_be_stranded(state: UpdateState, retryable: bool) -> None:
    entry = replace(NEW, state=state, touched=True)
    fault = Fault(error=Error(code="no_answer", retryable=retryable, text="no"), touched=True)
    steps: list[str] = []
    for _ in range(500):
        move = decide(entry, fault)
        entry = move.entry
        assert entry.state is UpdateState.FLASHING
        assert move.act is Act.FLASH
        assert move.pause is (Pause.BACKOFF if retryable else Pause.LONGEST)
        if move.report is not None:
            steps.append(move.report.step)
            entry = replace(
                entry,
                told=Status(
                    message_id="m",
                    job_id="job-1",
                    attempt=1,
                    seq=1,
                    status=move.report.status,
                    step=move.report.step,
                    error=move.report.error,
                    at=AT,
                ),
            )
    assert entry.tries == 500 > STRANDED_AFTER
    assert steps == ["retrying", "stranded"]


def test_before_the_touch_repeats_are_bounded_but_a_lost_link_is_not_counted_out() -> None:
    entry = replace(NEW, state=UpdateState.DOWNLOADING)
    plain = Fault(error=Error(code="no_room", retryable=True))
    for number in range(1, MOST_TRIES + 1):
        entry = decide(entry, plain).entry
        assert entry.ended == (number == MOST_TRIES)
    entry = replace(NEW, state=UpdateState.DOWNLOADING)
    link = Fault(error=Error(code="link_lost", retryable=True), kind=FaultKind.LINK)
    for _ in range(1000):
        entry = decide(entry, link).entry
    assert entry.state is UpdateState.DOWNLOADING


@pytest.mark.parametrize("state", [one for one in ONE_ECU if one not in UPDATE_TERMINAL])
def test_restarts_without_a_move_delay_and_end_only_what_a_command_itself_breaks(state: UpdateState) -> None:
    entry = replace(NEW, state=state)
    pauses = []
    for _ in range(MOST_RESTARTS):
        move = decide(entry, Restarted())
        entry = move.entry
        pauses.append(move.pause)
    assert pauses == [Pause.NONE] * FREE_RESTARTS + [Pause.RESTARTS] * (MOST_RESTARTS - FREE_RESTARTS)
    ends = decide(entry, Restarted()).entry.ended
    assert ends == (state in {UpdateState.RECEIVED, UpdateState.VERIFYING})


def test_a_move_forgets_earlier_restarts() -> None:
    entry = replace(NEW, restarts=7)
    assert decide(entry, Fits()).entry.restarts == 0
