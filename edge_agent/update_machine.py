"""PURE: what an update does next. (journal entry, event) -> (entry, what to report, what to do).

The rules of CONTRACTS ("On the truck"):

- Before an ECU is touched an error ends the update, unless a repeat can help: then a bounded number of
  repeats; a lost link and an ECU that refuses for the moment are waited out for as long as the command
  is good. A cancel and the end of the command's time are honoured.
- Once an ECU may have been touched nothing abandons it: every failure is repeated with growing delays
  for ever; a cancel is answered `too_late`; a vehicle that is not safe delays. The one way out is a
  newer job whose verified firmware takes the ECU over at the moment when it begins to flash.
- `flashing` is entered only from `waiting`, which only a verified image reaches, and only on `Ready`.

Every move is checked against shared.states.UPDATE_MOVES. RECOVERY says what a restarted agent does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import assert_never

from edge_agent.journal import MOST_TEXT, Entry, Report, status_word
from edge_agent.update_events import (
    Act,
    Activated,
    CancelAsked,
    Event,
    Fault,
    FaultKind,
    Fetched,
    Fits,
    Holds,
    Move,
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
from shared.errors import OtaError
from shared.messages import Error, TargetResult
from shared.states import UPDATE_MOVES, Step, TruckStatus, UpdateState

MOST_TRIES = 8
"""Tries of a failing act before an ECU is touched: with the usual delays about four minutes."""
STRANDED_AFTER = 5
"""Failed tries after the first touch from which on the office is told `stranded`."""


class ForbiddenMove(OtaError):
    """The machine made a move outside its table: a fault of the agent itself."""

    code = "forbidden_move"


ACT_OF: Mapping[UpdateState, Act] = {
    UpdateState.RECEIVED: Act.LOOK,
    UpdateState.DOWNLOADING: Act.DOWNLOAD,
    UpdateState.VERIFYING: Act.VERIFY,
    UpdateState.WAITING: Act.ASK,
    UpdateState.FLASHING: Act.FLASH,
    UpdateState.ACTIVATING: Act.ACTIVATE,
    UpdateState.CHECKING: Act.CHECK,
    UpdateState.DONE: Act.NOTHING,
    UpdateState.ERROR: Act.NOTHING,
    UpdateState.CANCELLED: Act.NOTHING,
}
"""The act that a state names; every one may be repeated from its start."""


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """What a restarted agent does; `touched` whether it must take the ECU for touched."""

    act: Act
    touched: bool
    why: str


RECOVERY: Mapping[UpdateState, Recovery] = {
    UpdateState.RECEIVED: Recovery(act=Act.LOOK, touched=False, why="looking changes nothing"),
    UpdateState.DOWNLOADING: Recovery(act=Act.DOWNLOAD, touched=False, why="it resumes where the file ends"),
    UpdateState.VERIFYING: Recovery(act=Act.VERIFY, touched=False, why="it begins with the first byte"),
    UpdateState.WAITING: Recovery(act=Act.ASK, touched=False, why="the vehicle's state is asked anew"),
    UpdateState.FLASHING: Recovery(
        act=Act.FLASH, touched=True, why="the state was written before the act: it may have begun to erase"
    ),
    UpdateState.ACTIVATING: Recovery(
        act=Act.ACTIVATE, touched=True, why="a second reset into the new image changes nothing"
    ),
    UpdateState.CHECKING: Recovery(act=Act.CHECK, touched=True, why="reading back changes nothing"),
    UpdateState.DONE: Recovery(act=Act.NOTHING, touched=False, why="ended"),
    UpdateState.ERROR: Recovery(act=Act.NOTHING, touched=False, why="ended"),
    UpdateState.CANCELLED: Recovery(act=Act.NOTHING, touched=False, why="ended"),
}


def decide(entry: Entry, event: Event) -> Move:
    """What `event` makes of `entry`. An event that does not belong to the state changes nothing."""
    move = _decide(entry, event)
    old, new = entry.state, move.entry.state
    if new is not old and new not in UPDATE_MOVES[old]:
        raise ForbiddenMove(f"{old} -> {new} on {type(event).__name__}")
    return move


def _decide(entry: Entry, event: Event) -> Move:
    if entry.ended:
        return _stay(entry)
    match event:
        case CancelAsked():
            return _cancelled(entry)
        case Replaced():
            if entry.begun:
                return _stay(entry)
            return _end(entry, _fault("replaced", "a newer job for this component was received"))
        case TakenOver(by=by):
            # Later states hold the whole image: they end done, or fall back to flashing.
            if entry.state is not UpdateState.FLASHING:
                return _stay(entry)
            return _end(entry, _fault("replaced", f"job {by} flashes this component now"))
        case TimeOver():
            if entry.begun:
                return _stay(entry)
            return _end(entry, _fault("command_expired", "the command's time was over before it could begin"))
        case Restarted():
            return _restarted(entry)
    return _BY_STATE[entry.state](entry, event)


def _received(entry: Entry, event: Event) -> Move:
    match event:
        case Fits():
            return _go(entry, UpdateState.DOWNLOADING, step=Step.DOWNLOADING)
        case Holds(result=result):
            return _done(entry, result, "the component runs this firmware already")
        case Fault():
            return _failed_before(entry, event)
    return _stay(entry)


def _downloading(entry: Entry, event: Event) -> Move:
    match event:
        case Fetched(path=path):
            return _go(replace(entry, image=path), UpdateState.VERIFYING, step=Step.VERIFYING)
        case NeedsUrl():
            return _needs_url(entry)
        case Fault():
            return _failed_before(entry, event)
    return _stay(entry)


def _verifying(entry: Entry, event: Event) -> Move:
    match event:
        case Verified():
            # Silent: why it waits, or that it begins, is told a moment later.
            return _move(replace(entry, state=UpdateState.WAITING, tries=0), None)
        case Fault(kind=FaultKind.IMAGE):
            return _fetch_again(entry, event)
        case Fault():
            return _failed_before(entry, event)
    return _stay(entry)


def _waiting(entry: Entry, event: Event) -> Move:
    match event:
        case Unsafe(why=why):
            return _wait(entry, why)
        case Ready(takes_over=takes_over):
            flashing = replace(entry, state=UpdateState.FLASHING, touched=takes_over)
            if entry.told is not None and entry.told.step == Step.WAITING and entry.told.error is not None:
                # The ECU refused before and may again: its own progress tells when it goes on.
                return _move(flashing, None)
            return _move(flashing, _report(flashing, Step.PREPARING))
        case Fault(kind=FaultKind.IMAGE):
            return _fetch_again(entry, event)
        case Fault():
            return _failed_before(entry, event)
    return _stay(entry)


def _flashing(entry: Entry, event: Event) -> Move:
    match event:
        case Staged():
            return _go(replace(entry, touched=True), UpdateState.ACTIVATING, step=Step.ACTIVATING)
        case Holds():
            return _go(replace(entry, touched=True), UpdateState.CHECKING, step=Step.READING_BACK)
        case Unsafe(why=why):
            back = entry if entry.touched else replace(entry, state=UpdateState.WAITING)
            return _wait(back, why)
        case Fetched(path=path):
            return _stay(replace(entry, image=path))
        case NeedsUrl():
            return replace(_needs_url(entry), act=Act.DOWNLOAD)
        case Fault():
            return _failed_flashing(entry, event)
    return _stay(entry)


def _activating(entry: Entry, event: Event) -> Move:
    match event:
        case Activated():
            return _go(entry, UpdateState.CHECKING, step=Step.READING_BACK)
        case Unsafe(why=why):
            return _wait(entry, why)
        case Fault(kind=FaultKind.NOT_NOW):
            return _refused(entry, event)
        case Fault():
            return _failed_after(entry, event)
    return _stay(entry)


def _checking(entry: Entry, event: Event) -> Move:
    match event:
        case Proved(result=result):
            return _done(entry, result, None)
        case Fault(kind=FaultKind.NOT_NOW):
            return _refused(entry, event)
        case Fault():
            return _failed_after(entry, event)
    return _stay(entry)


def _ended(entry: Entry, _: Event) -> Move:
    return _stay(entry)


_BY_STATE: Mapping[UpdateState, Callable[[Entry, Event], Move]] = {
    UpdateState.RECEIVED: _received,
    UpdateState.DOWNLOADING: _downloading,
    UpdateState.VERIFYING: _verifying,
    UpdateState.WAITING: _waiting,
    UpdateState.FLASHING: _flashing,
    UpdateState.ACTIVATING: _activating,
    UpdateState.CHECKING: _checking,
    UpdateState.DONE: _ended,
    UpdateState.ERROR: _ended,
    UpdateState.CANCELLED: _ended,
}


_STEP: Mapping[UpdateState, Step] = {
    UpdateState.RECEIVED: Step.RECEIVED,
    UpdateState.DOWNLOADING: Step.DOWNLOADING,
    UpdateState.VERIFYING: Step.VERIFYING,
    UpdateState.WAITING: Step.WAITING,
}
"""How a state before the first touch is told."""


# --- what several states do alike ---------------------------------------------------------------


def _move(entry: Entry, report: Report | None, pause: Pause = Pause.NONE) -> Move:
    return Move(entry=entry, report=report, act=ACT_OF[entry.state], pause=pause)


def _stay(entry: Entry) -> Move:
    return _move(entry, None)


def _report(entry: Entry, step: Step, *, reason: str | None = None, error: Error | None = None) -> Report:
    return Report(status=status_word(entry.state), step=step, reason=reason, error=error)


def _go(entry: Entry, state: UpdateState, *, step: Step) -> Move:
    # Tries count on through flashing, activating and checking: together they tell a stranded ECU.
    tries = entry.tries if state in {UpdateState.ACTIVATING, UpdateState.CHECKING} else 0
    going = replace(entry, state=state, tries=tries)
    return _move(going, _report(going, step))


def _done(entry: Entry, result: TargetResult, reason: str | None) -> Move:
    done = replace(entry, state=UpdateState.DONE)
    report = Report(
        status=TruckStatus.DONE, step=Step.FINISHED, progress=100, reason=reason, targets=(result,)
    )
    return _move(done, report)


def _fault(code: str, text: str) -> Error:
    return Error(code=code, retryable=False, advice="Start a new job when it is still wanted.", text=text)


def _end(entry: Entry, error: Error) -> Move:
    ended = replace(entry, state=UpdateState.ERROR)
    return _move(ended, _report(ended, Step.FINISHED, reason=error.text, error=error))


def _cancelled(entry: Entry) -> Move:
    if entry.begun:
        reason = "the ECU is being flashed: it is finished, since a stop would strand it"
        return _move(entry, _report(entry, Step.TOO_LATE, reason=reason))
    ended = replace(entry, state=UpdateState.CANCELLED)
    return _move(ended, _report(ended, Step.FINISHED, reason="cancelled before flashing began"))


def _restarted(entry: Entry) -> Move:
    recovery = RECOVERY[entry.state]
    return Move(
        entry=replace(entry, touched=entry.touched or recovery.touched), report=None, act=recovery.act
    )


def _changed(entry: Entry, step: Step, why: str, error: Error | None = None) -> Report | None:
    """Tell why it does not go on, when that is news; not with every try."""
    told = entry.told
    if told is not None and told.step == step and told.reason == why[:MOST_TEXT]:
        return None
    return _report(entry, step, reason=why, error=error)


def _wait(entry: Entry, why: str) -> Move:
    return _move(entry, _changed(entry, Step.WAITING, why), Pause.POLL)


def _refused(entry: Entry, fault: Fault) -> Move:
    """The ECU itself says not now: no failure, so it counts nothing."""
    return _move(entry, _changed(entry, Step.WAITING, fault.error.text, fault.error), Pause.REFUSED)


def _needs_url(entry: Entry) -> Move:
    return _move(entry, _report(entry, Step.URL_EXPIRED, reason="the signed URL is over"), Pause.URL)


def _fetch_again(entry: Entry, fault: Fault) -> Move:
    """What was good is spoiled: local damage, so the image is fetched once more, in bounds."""
    if entry.tries + 1 >= MOST_TRIES:
        return _end(entry, fault.error)
    again = replace(entry, state=UpdateState.DOWNLOADING, image=None, tries=entry.tries + 1)
    return _move(again, _report(again, Step.DOWNLOADING, reason=fault.error.text), Pause.BACKOFF)


def _failed_before(entry: Entry, fault: Fault) -> Move:
    """A failure before the first touch."""
    again = replace(entry, tries=entry.tries + 1)
    match fault.kind:
        case FaultKind.LINK:
            # Links are gone for hours; the file resumes. Only the command's time or a cancel ends this.
            return _move(entry, None, Pause.LINK)
        case FaultKind.NOT_NOW:
            return _refused(entry, fault)
        case FaultKind.PLAIN | FaultKind.IMAGE:
            if not fault.error.retryable or again.tries >= MOST_TRIES:
                return _end(entry, fault.error)
            report = _changed(again, _STEP[again.state], fault.error.text, fault.error)
            return _move(again, report, Pause.BACKOFF)
        case _:
            assert_never(fault.kind)


def _failed_flashing(entry: Entry, fault: Fault) -> Move:
    if not entry.touched and not fault.touched:
        # The ECU runs what it ran: back to where a cancel is honoured and the vehicle is asked again.
        return _failed_before(replace(entry, state=UpdateState.WAITING), fault)
    touched = replace(entry, touched=True)
    match fault.kind:
        case FaultKind.NOT_NOW:
            return _refused(touched, fault)
        case FaultKind.LINK:
            return _move(touched, None, Pause.LINK)
        case FaultKind.IMAGE:
            return replace(_move(replace(touched, image=None), None), act=Act.DOWNLOAD)
        case FaultKind.PLAIN:
            return _failed_after(touched, fault)
        case _:
            assert_never(fault.kind)


def _failed_after(entry: Entry, fault: Fault) -> Move:
    """A failure after the first touch: once more from the beginning of the flash, for ever."""
    again = replace(entry, state=UpdateState.FLASHING, touched=True, tries=entry.tries + 1)
    step = Step.STRANDED if again.tries >= STRANDED_AFTER else Step.RETRYING
    told = entry.told
    same = told is not None and told.step == step and told.error == fault.error
    report = None if same else _report(again, step, reason=fault.error.text, error=fault.error)
    return _move(again, report, Pause.BACKOFF if fault.error.retryable else Pause.LONGEST)
