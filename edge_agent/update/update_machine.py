"""PURE: what an update does next. (journal entry, event) -> (entry, what to report, what to do).

The rules of CONTRACTS ("On the truck"):

- Before an ECU is touched an error ends the update, unless a repeat can help: then a bounded number of
  repeats; a lost link and an ECU that refuses for the moment are waited out for as long as the command
  is good. A cancel and the end of the command's time are honoured.
- Once an ECU may have been touched nothing abandons it: every failure is repeated with growing delays
  for ever; a cancel is answered `too_late`; a vehicle that is not safe delays. The one way out is a
  newer job whose verified firmware takes the ECU over at the moment when it begins to flash.
- `flashing` is entered only from `waiting`, which only a verified image reaches, and only on `Ready`.

An update of several ECUs goes the same way up to `flashing`, and from there by `release_machine`: it ends
whole or goes back whole.

Every move is checked against shared.states.UPDATE_MOVES. RECOVERY says what a restarted agent does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from edge_agent.store.journal import Entry
from edge_agent.update import release_machine
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
from edge_agent.update.update_moves import (
    ACT_OF,
    FREE_RESTARTS,
    MOST_TRIES,
    STRANDED_AFTER,
    done,
    end,
    failed_before,
    fault,
    make_move,
    needs_url,
    refused,
    report_of,
    stay,
    try_again,
    wait,
)
from shared.causes import Cause, sentence
from shared.errors import OtaError
from shared.since_310 import assert_never
from shared.states import UPDATE_MOVES, Step, UpdateState

__all__ = ["ACT_OF", "FREE_RESTARTS", "MOST_RESTARTS", "MOST_TRIES", "RECOVERY", "STRANDED_AFTER", "decide"]

MOST_RESTARTS = 8
"""Such starts after which an attempt that only judges its command is given up."""


class ForbiddenMove(OtaError):
    """The machine made a move outside its table: a fault of the agent itself."""

    code = "forbidden_move"


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """What a restarted agent does; `touched` whether it must take the ECU for touched.

    `several` is the state from which a release of several ECUs goes on, where that is another one: its first
    act asks every ECU anew what it runs.
    """

    act: Act
    touched: bool
    why: str
    several: UpdateState | None = None


RECOVERY: Mapping[UpdateState, Recovery] = {
    UpdateState.RECEIVED: Recovery(act=Act.LOOK, touched=False, why="looking changes nothing"),
    UpdateState.DOWNLOADING: Recovery(act=Act.DOWNLOAD, touched=False, why="it resumes where the file ends"),
    UpdateState.VERIFYING: Recovery(act=Act.VERIFY, touched=False, why="it begins with the first byte"),
    UpdateState.WAITING: Recovery(act=Act.ASK, touched=False, why="the vehicle's state is asked anew"),
    UpdateState.FLASHING: Recovery(
        act=Act.FLASH, touched=True, why="the state was written before the act: it may have begun to erase"
    ),
    UpdateState.ACTIVATING: Recovery(
        act=Act.ACTIVATE,
        touched=True,
        why="a second reset into the new image changes nothing",
        several=UpdateState.FLASHING,
    ),
    UpdateState.CHECKING: Recovery(
        act=Act.CHECK,
        touched=True,
        why="reading back changes nothing",
        several=UpdateState.FLASHING,
    ),
    UpdateState.CONFIRMING: Recovery(
        act=Act.CONFIRM, touched=True, why="the release is committed: only forward, each ECU asked anew"
    ),
    UpdateState.RESTORING: Recovery(
        act=Act.RESTORE, touched=True, why="the release goes back: each touched ECU is asked anew"
    ),
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
    if new is not old and not entry.begun:
        return replace(move, entry=replace(move.entry, restarts=0))
    return move


def _decide(entry: Entry, event: Event) -> Move:
    if entry.ended:
        return stay(entry)
    match event:
        case CancelAsked():
            return _cancelled(entry)
        case Replaced():
            if entry.begun:
                return stay(entry)
            return end(entry, fault("replaced", "a newer job for this component was received"))
        case TakenOver(by=by):
            # Later states hold the whole image: they end done, or fall back to flashing.
            if entry.state is not UpdateState.FLASHING:
                return stay(entry)
            return end(entry, fault("replaced", f"job {by} flashes this component now"))
        case TimeOver():
            if entry.begun:
                return stay(entry)
            return end(entry, fault("command_expired", "the command's time was over before it could begin"))
        case Restarted():
            return _restarted(entry)
    if entry.release is not None and entry.begun:
        return release_machine.decide(entry, event)
    return _BY_STATE[entry.state](entry, event)


def _received(entry: Entry, event: Event) -> Move:
    match event:
        case Fits(release=release, selection=selection):
            known = replace(entry, release=release, selection=selection)
            return _go(known, UpdateState.DOWNLOADING, step=Step.DOWNLOADING)
        case Holds(result=result, more=more):
            whose = "every component runs its" if more else "the component runs this"
            return done(entry, (result, *more), f"{whose} firmware already")
        case Fault():
            return failed_before(entry, event)
    return stay(entry)


def _downloading(entry: Entry, event: Event) -> Move:
    match event:
        case Fetched():
            return _go(release_machine.fetched(entry, event), UpdateState.VERIFYING, step=Step.VERIFYING)
        case NeedsUrl():
            return needs_url(entry)
        case Fault():
            return failed_before(entry, event)
    return stay(entry)


def _verifying(entry: Entry, event: Event) -> Move:
    match event:
        case Verified():
            # Silent: why it waits, or that it begins, is told a moment later.
            return make_move(replace(entry, state=UpdateState.WAITING, tries=0), None)
        case Fault(kind=FaultKind.IMAGE):
            return _fetch_again(entry, event)
        case Fault():
            return failed_before(entry, event)
    return stay(entry)


def _waiting(entry: Entry, event: Event) -> Move:
    match event:
        case Unsafe():
            return wait(entry, event)
        case Ready() if entry.release is not None:
            return release_machine.begin(entry, event)
        case Ready(takes_over=takes_over):
            flashing = replace(entry, state=UpdateState.FLASHING, touched=takes_over)
            if entry.told is not None and entry.told.step == Step.WAITING and entry.told.error is not None:
                # The ECU refused before and may again: its own progress tells when it goes on.
                return make_move(flashing, None)
            return make_move(flashing, report_of(flashing, Step.PREPARING))
        case Fault(kind=FaultKind.IMAGE):
            return _fetch_again(entry, event)
        case Fault():
            return failed_before(entry, event)
    return stay(entry)


def _flashing(entry: Entry, event: Event) -> Move:
    match event:
        case Staged():
            return _go(replace(entry, touched=True), UpdateState.ACTIVATING, step=Step.ACTIVATING)
        case Holds():
            return _go(replace(entry, touched=True), UpdateState.CHECKING, step=Step.READING_BACK)
        case Unsafe():
            back = entry if entry.touched else replace(entry, state=UpdateState.WAITING)
            return wait(back, event)
        case Fetched():
            return stay(release_machine.fetched(entry, event))
        case NeedsUrl():
            return replace(needs_url(entry), act=Act.DOWNLOAD)
        case Fault():
            return _failed_flashing(entry, event)
    return stay(entry)


def _activating(entry: Entry, event: Event) -> Move:
    match event:
        case Activated():
            return _go(entry, UpdateState.CHECKING, step=Step.READING_BACK)
        case Unsafe():
            return wait(entry, event)
        case Fault(kind=FaultKind.NOT_NOW):
            return refused(entry, event)
        case Fault():
            return _failed_after(entry, event)
    return stay(entry)


def _checking(entry: Entry, event: Event) -> Move:
    match event:
        case Proved(result=result):
            return done(entry, (result,), None)
        case Fault(kind=FaultKind.NOT_NOW):
            return refused(entry, event)
        case Fault():
            return _failed_after(entry, event)
    return stay(entry)


def _ended(entry: Entry, _: Event) -> Move:
    return stay(entry)


_BY_STATE: Mapping[UpdateState, Callable[[Entry, Event], Move]] = {
    UpdateState.RECEIVED: _received,
    UpdateState.DOWNLOADING: _downloading,
    UpdateState.VERIFYING: _verifying,
    UpdateState.WAITING: _waiting,
    UpdateState.FLASHING: _flashing,
    UpdateState.ACTIVATING: _activating,
    UpdateState.CHECKING: _checking,
    # Only releases of several ECUs come here (release_machine).
    UpdateState.CONFIRMING: _ended,
    UpdateState.RESTORING: _ended,
    UpdateState.DONE: _ended,
    UpdateState.ERROR: _ended,
    UpdateState.CANCELLED: _ended,
}


# --- what several states do alike ---------------------------------------------------------------


def _go(entry: Entry, state: UpdateState, *, step: Step) -> Move:
    # Tries count on through flashing, activating and checking: together they tell a stranded ECU.
    tries = entry.tries if state in {UpdateState.ACTIVATING, UpdateState.CHECKING} else 0
    going = replace(entry, state=state, tries=tries)
    return make_move(going, report_of(going, step))


def _cancelled(entry: Entry) -> Move:
    if entry.begun:
        causes = (Cause("too_late"),)
        return make_move(entry, report_of(entry, Step.TOO_LATE, reason=sentence(causes), causes=causes))
    ended = replace(entry, state=UpdateState.CANCELLED)
    return make_move(ended, report_of(ended, Step.FINISHED, reason="cancelled before flashing began"))


def _restarted(entry: Entry) -> Move:
    recovery = RECOVERY[entry.state]
    again = replace(entry, touched=entry.touched or recovery.touched, restarts=entry.restarts + 1)
    if again.release is not None and again.begun:
        return release_machine.restarted(again, recovery.several or entry.state)
    if again.restarts > MOST_RESTARTS and entry.state in {UpdateState.RECEIVED, UpdateState.VERIFYING}:
        # These take seconds and touch nothing: the command itself ends the agent each time.
        why = f"the agent was restarted {again.restarts} times while it judged this command"
        return end(again, fault("too_many_restarts", why))
    pause = Pause.RESTARTS if again.restarts > FREE_RESTARTS else Pause.NONE
    return Move(entry=again, report=None, act=recovery.act, pause=pause)


def _fetch_again(entry: Entry, event: Fault) -> Move:
    """What was good is spoiled: local damage, so the image is fetched once more, in bounds."""
    if entry.tries + 1 >= MOST_TRIES:
        return end(entry, event.error)
    again = replace(entry, state=UpdateState.DOWNLOADING, image=None, tries=entry.tries + 1)
    return make_move(again, report_of(again, Step.DOWNLOADING, reason=event.error.text), Pause.BACKOFF)


def _failed_flashing(entry: Entry, event: Fault) -> Move:
    if not entry.touched and not event.touched:
        # The ECU runs what it ran: back to where a cancel is honoured and the vehicle is asked again.
        return failed_before(replace(entry, state=UpdateState.WAITING), event)
    touched = replace(entry, touched=True)
    match event.kind:
        case FaultKind.NOT_NOW:
            return refused(touched, event)
        case FaultKind.LINK:
            return make_move(touched, None, Pause.LINK)
        case FaultKind.IMAGE:
            return replace(make_move(replace(touched, image=None), None), act=Act.DOWNLOAD)
        case FaultKind.PLAIN:
            return _failed_after(touched, event)
        case _:
            assert_never(event.kind)


def _failed_after(entry: Entry, event: Fault) -> Move:
    """A failure after the first touch: once more from the beginning of the flash, for ever."""
    return try_again(replace(entry, state=UpdateState.FLASHING), event)
