"""PURE: what a release of several ECUs does once it may have touched one. Ends whole-new or whole-old.

- Forward, part by part (release_plan), each ECU asked before it is changed. A failure begins again from the
  first ECU, in bounds; then, or when no repeat can help, the release goes back.
- The commit is the entry's step into `confirming`, written when every ECU was proved at the end. Only
  behind it images are confirmed, counters rise and kept images are replaced; it goes forward for ever.
- Back is `restoring`: every touched ECU, the last one started first, for ever. It ends `error`, with the
  reason for going back, when each ECU runs what it ran before.
- The one turn-round: an image to return to is lost from the gateway. Then only forward is left, for good.

Nothing here gives an ECU up. A cancel, a lost interlock and restarts delay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from edge_agent.store.journal import Entry
from edge_agent.store.release import Reached, Release
from edge_agent.store.release_plan import USUAL_ATTEMPTS, Part
from edge_agent.update.update_events import (
    Act,
    Activated,
    AllProved,
    Confirmed,
    Event,
    Fault,
    FaultKind,
    Fetched,
    Holds,
    Move,
    NeedsUrl,
    Pause,
    Proved,
    Ready,
    Restored,
    Staged,
    Unsafe,
)
from edge_agent.update.update_moves import (
    FREE_RESTARTS,
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
from shared.messages import Error
from shared.states import Step, UpdateState

FORWARD_RESTARTS = 8
"""Starts of the agent in the middle of a release from which on it goes back."""

_ON_THE_WAY: Mapping[Part, tuple[UpdateState, Step]] = {
    Part.STAGE: (UpdateState.FLASHING, Step.PREPARING),
    Part.ACTIVATE: (UpdateState.ACTIVATING, Step.ACTIVATING),
    Part.CHECK: (UpdateState.CHECKING, Step.READING_BACK),
}


def fetched(entry: Entry, event: Fetched) -> Entry:
    """The entry with the paths of its images."""
    if entry.release is None:
        return replace(entry, image=event.path)
    release = entry.release
    for component, path in event.images:
        release = release.having(component, image=path)
    return replace(entry, release=release)


def begin(entry: Entry, event: Ready) -> Move:
    """All ECUs answered, everything is verified, and it is safe: the first of them may be changed."""
    release = _of(entry)
    for component, former in event.formers:
        # Who takes an ECU over takes it as it was left.
        release = release.having(component, former=former, touched=event.takes_over)
    move = _onward(replace(entry, restarts=0), release.doubted())
    if entry.told is not None and entry.told.step == Step.WAITING and entry.told.error is not None:
        # An ECU refused before and may again: its own progress tells when it goes on.
        return replace(move, report=None)
    return move


def decide(entry: Entry, event: Event) -> Move:
    """What `event` makes of a release that has begun; an event that does not belong changes nothing."""
    match event:
        case Unsafe():
            return _delayed(entry, event)
        case Fetched():
            return stay(fetched(entry, event))
        case NeedsUrl():
            return replace(needs_url(entry), act=Act.DOWNLOAD)
        case Fault(kind=FaultKind.LINK):
            return make_move(entry, None, Pause.LINK)
        case Fault(kind=FaultKind.NOT_NOW) if event.touched or _of(entry).touched:
            return refused(_blamed(entry, event), event)
    return _BY_STATE[entry.state](entry, event)


def restarted(entry: Entry, state: UpdateState) -> Move:
    """The agent began to run: nothing that was seen is believed, and the ECUs are asked anew."""
    release = _of(entry)
    if entry.state is UpdateState.FLASHING and release.at is not None:
        release = release.having(release.at, touched=True)
    release = release.doubted()
    forward = state is UpdateState.FLASHING
    if forward and entry.restarts > FORWARD_RESTARTS and release.may_go_back:
        why = f"the agent was restarted {entry.restarts} times in the middle of the release"
        return _go_back(replace(entry, release=release), fault("too_many_restarts", why))
    at = _first_at(release, state)
    pause = Pause.RESTARTS if entry.restarts > FREE_RESTARTS else Pause.NONE
    again = replace(entry, state=state, release=replace(release, at=at), touched=release.touched)
    return make_move(again, None, pause)


# --- forward ------------------------------------------------------------------------------------


def _flashing(entry: Entry, event: Event) -> Move:
    release = _of(entry)
    match event:
        case Staged():
            return _onward(entry, _seen(release, Reached.STAGED, touched=True))
        case Holds(result=result) if release.at is not None:
            former = release.state(release.at).former
            # It runs the new image and did not before: somebody changed it, and that was this release.
            changed = former is not None and former.sha256 != result.sha256
            return _onward(entry, _seen(release, Reached.ACTIVE, touched=changed))
        case Fault():
            return _failed(entry, event)
    return stay(entry)


def _activating(entry: Entry, event: Event) -> Move:
    match event:
        case Activated():
            return _onward(entry, _seen(_of(entry), Reached.ACTIVE))
        case Fault():
            return _failed(entry, event)
    return stay(entry)


def _checking(entry: Entry, event: Event) -> Move:
    release = _of(entry)
    match event:
        case Proved() if release.at is not None:
            return _onward(entry, _seen(release, Reached.PROVED))
        case AllProved() if release.at is None:
            return _commit(entry)
        case Fault():
            return _failed(entry, event)
    return stay(entry)


def _onward(entry: Entry, release: Release) -> Move:
    """To the next part of the way; when all are proved, to the look at all of them."""
    part = release.next_part()
    if part is None:
        state, step, at = UpdateState.CHECKING, Step.READING_BACK, None
    else:
        (state, step), at = _ON_THE_WAY[part[0]], part[1]
    going = replace(entry, state=state, release=replace(release, at=at), touched=release.touched)
    return make_move(going, report_of(going, step, reason=release.where(at)))


def _failed(entry: Entry, event: Fault) -> Move:
    blamed = _blamed(entry, event)
    release = _of(blamed)
    if not release.touched and blamed.state is UpdateState.FLASHING:
        # Every ECU runs what it ran: back to where a cancel is honoured and the vehicle is asked again.
        return failed_before(replace(blamed, state=UpdateState.WAITING), event)
    if event.kind is FaultKind.IMAGE:
        return replace(make_move(blamed, None), act=Act.DOWNLOAD)
    at = event.component or release.at
    if at is not None:
        release = release.having(at, failures=release.state(at).failures + 1)
        blamed = replace(blamed, release=release)
    if release.may_go_back and (not event.error.retryable or _is_enough(release, at, blamed.tries + 1)):
        return _go_back(blamed, event.error)
    doubted = release.doubted()
    at = _first_at(doubted, UpdateState.FLASHING)
    again = replace(blamed, state=UpdateState.FLASHING, release=replace(doubted, at=at))
    return replace(try_again(again, event), entry=replace(again, tries=again.tries + 1))


def _is_enough(release: Release, at: str | None, tries: int) -> bool:
    """Whether one ECU had its attempts; where nobody is to blame, all tries count."""
    if at is None:
        return tries >= USUAL_ATTEMPTS
    return release.state(at).failures >= release.plan.target(at).attempts


def _commit(entry: Entry) -> Move:
    """The row that decides: before it everything goes back, behind it forward."""
    release = _of(entry).doubted()
    release = replace(release, at=release.next_to_confirm())
    return _next(replace(entry, state=UpdateState.CONFIRMING, tries=0, restarts=0), release, Step.CONFIRMING)


# --- behind the commit --------------------------------------------------------------------------


def _confirming(entry: Entry, event: Event) -> Move:
    release = _of(entry)
    match event:
        case Confirmed(result=result) if release.at is not None:
            release = release.having(release.at, settled=True, result=result)
            at = release.next_to_confirm()
            going = replace(entry, release=replace(release, at=at), tries=0)
            if at is not None:
                return _next(going, _of(going), Step.CONFIRMING)
            results = {one.component: one.result for one in release.states}
            named = (results[target.component] for target in entry.targets)
            return done(going, tuple(one for one in named if one is not None), None)
        case Fault(kind=FaultKind.IMAGE):
            return replace(make_move(entry, None), act=Act.DOWNLOAD)
        case Fault():
            return try_again(entry, event)
    return stay(entry)


# --- back ---------------------------------------------------------------------------------------


def _go_back(entry: Entry, error: Error) -> Move:
    release = replace(_of(entry).doubted(), failure=error)
    release = replace(release, at=release.next_to_restore())
    back = replace(entry, state=UpdateState.RESTORING, release=release, tries=0, restarts=0)
    why = f"{error.text}; going back: {release.where(release.at)}"
    return make_move(back, report_of(back, Step.GOING_BACK, reason=why, error=error))


def _restoring(entry: Entry, event: Event) -> Move:
    release = _of(entry)
    match event:
        case Restored():
            if release.at is not None:
                release = release.having(release.at, settled=True)
            at = release.next_to_restore()
            going = replace(entry, release=replace(release, at=at), tries=0)
            if at is not None:
                return _next(going, _of(going), Step.GOING_BACK)
            error = release.failure or fault("internal", "the release went back for an unknown reason")
            reason = f"every component runs what it ran before: {error.text}"
            return end(going, error, reason=reason)
        case Fault(kind=FaultKind.IMAGE):
            return _turn_round(entry, event)
        case Fault():
            return try_again(entry, event)
    return stay(entry)


def _turn_round(entry: Entry, event: Fault) -> Move:
    """What an ECU ran before is lost: the new image is the only whole one that every ECU can have."""
    release = replace(_of(entry).doubted(), only_forward=True, failure=None)
    at = _first_at(release, UpdateState.FLASHING)
    again = replace(entry, state=UpdateState.FLASHING, release=replace(release, at=at))
    return try_again(again, event)


# --- what they share ----------------------------------------------------------------------------


def _of(entry: Entry) -> Release:
    assert entry.release is not None, "only releases come here"
    return entry.release


def _seen(release: Release, reached: Reached, *, touched: bool = False) -> Release:
    if release.at is None:
        return release
    state = release.state(release.at)
    return release.having(release.at, reached=reached, touched=state.touched or touched)


def _blamed(entry: Entry, event: Fault) -> Entry:
    """The entry with the ECU marked that a failed act may have changed."""
    release = _of(entry)
    at = event.component or release.at
    if event.touched and at is not None:
        release = release.having(at, touched=True)
    return replace(entry, release=release, touched=release.touched)


def _first_at(release: Release, state: UpdateState) -> str | None:
    match state:
        case UpdateState.CONFIRMING:
            return release.next_to_confirm()
        case UpdateState.RESTORING:
            return release.next_to_restore()
    part = release.next_part()
    return None if part is None else part[1]


def _next(entry: Entry, release: Release, step: Step) -> Move:
    going = replace(entry, release=release)
    return make_move(going, report_of(going, step, reason=release.where(release.at)))


def _delayed(entry: Entry, unsafe: Unsafe) -> Move:
    if entry.state is UpdateState.FLASHING and not _of(entry).touched:
        return wait(replace(entry, state=UpdateState.WAITING), unsafe)
    return wait(entry, unsafe)


_BY_STATE: Mapping[UpdateState, Callable[[Entry, Event], Move]] = {
    UpdateState.FLASHING: _flashing,
    UpdateState.ACTIVATING: _activating,
    UpdateState.CHECKING: _checking,
    UpdateState.CONFIRMING: _confirming,
    UpdateState.RESTORING: _restoring,
}
