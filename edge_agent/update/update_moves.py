"""PURE: what moves of the update machines have in common: waiting, refusing, ending, telling it once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from edge_agent.store.journal import MOST_TEXT, Entry, Report, status_word
from edge_agent.update.update_events import Act, Fault, FaultKind, Move, Pause, Unsafe
from shared.causes import SENTENCES, Cause, sentence
from shared.messages import Error, TargetResult
from shared.since_310 import assert_never
from shared.states import Step, TruckStatus, UpdateState

MOST_TRIES = 8
"""Tries of a failing act before an ECU is touched: with the usual delays about four minutes."""
FREE_RESTARTS = 3
"""Starts of the agent that find an attempt where the one before left it and go on with it at once; later
ones wait longer and longer."""
STRANDED_AFTER = 5
"""Failed tries after the first touch from which on the office is told `stranded`."""

ACT_OF: Mapping[UpdateState, Act] = {
    UpdateState.RECEIVED: Act.LOOK,
    UpdateState.DOWNLOADING: Act.DOWNLOAD,
    UpdateState.VERIFYING: Act.VERIFY,
    UpdateState.WAITING: Act.ASK,
    UpdateState.FLASHING: Act.FLASH,
    UpdateState.ACTIVATING: Act.ACTIVATE,
    UpdateState.CHECKING: Act.CHECK,
    UpdateState.CONFIRMING: Act.CONFIRM,
    UpdateState.RESTORING: Act.RESTORE,
    UpdateState.DONE: Act.NOTHING,
    UpdateState.ERROR: Act.NOTHING,
    UpdateState.CANCELLED: Act.NOTHING,
}
"""The act that a state names; every one may be repeated from its start."""

_STEP: Mapping[UpdateState, Step] = {
    UpdateState.RECEIVED: Step.RECEIVED,
    UpdateState.DOWNLOADING: Step.DOWNLOADING,
    UpdateState.VERIFYING: Step.VERIFYING,
    UpdateState.WAITING: Step.WAITING,
}
"""How a state before the first touch is told."""


def make_move(entry: Entry, report: Report | None, pause: Pause = Pause.NONE) -> Move:
    """The entry, and the act that its state names."""
    return Move(entry=entry, report=report, act=ACT_OF[entry.state], pause=pause)


def stay(entry: Entry) -> Move:
    """Nothing new."""
    return make_move(entry, None)


def report_of(
    entry: Entry,
    step: Step,
    *,
    reason: str | None = None,
    causes: tuple[Cause, ...] = (),
    error: Error | None = None,
) -> Report:
    """A status of the entry's state."""
    return Report(status=status_word(entry.state), step=step, reason=reason, causes=causes, error=error)


def news(
    entry: Entry, step: Step, why: str, error: Error | None = None, causes: tuple[Cause, ...] = ()
) -> Report | None:
    """Tell why it does not go on, when that is news; not with every try."""
    told = entry.told
    if told is not None and told.step == step and told.reason == why[:MOST_TEXT]:
        return None
    return report_of(entry, step, reason=why, causes=causes, error=error)


def done(entry: Entry, results: tuple[TargetResult, ...], reason: str | None) -> Move:
    """Ended well, with what was read back."""
    ended = replace(entry, state=UpdateState.DONE)
    report = Report(status=TruckStatus.DONE, step=Step.FINISHED, progress=100, reason=reason, targets=results)
    return make_move(ended, report)


def end(entry: Entry, error: Error, *, reason: str | None = None) -> Move:
    """Ended with an error."""
    ended = replace(entry, state=UpdateState.ERROR)
    return make_move(ended, report_of(ended, Step.FINISHED, reason=reason or error.text, error=error))


def fault(code: str, text: str) -> Error:
    """An error that no repeat of the same attempt mends."""
    return Error(code=code, retryable=False, advice="Start a new job when it is still wanted.", text=text)


def wait(entry: Entry, unsafe: Unsafe) -> Move:
    """Not allowed at this moment."""
    report = news(entry, Step.WAITING, unsafe.why, causes=unsafe.causes)
    return make_move(entry, report, Pause.POLL)


def refused(entry: Entry, fault: Fault) -> Move:
    """The ECU, or the budget of data, says not now: no failure, so it counts nothing."""
    error = fault.error
    code = error.code if error.code in SENTENCES else "ecu_refuses"
    report = news(entry, Step.WAITING, error.text, error, (Cause(code, error.text),))
    return make_move(entry, report, Pause.REFUSED)


def needs_url(entry: Entry) -> Move:
    """The office is asked for a fresh URL."""
    causes = (Cause("url_expired"),)
    report = report_of(entry, Step.URL_EXPIRED, reason=sentence(causes), causes=causes)
    return make_move(entry, report, Pause.URL)


def failed_before(entry: Entry, fault: Fault) -> Move:
    """A failure before the first touch."""
    again = replace(entry, tries=entry.tries + 1)
    match fault.kind:
        case FaultKind.LINK:
            # Links are gone for hours; the file resumes. Only the command's time or a cancel ends this.
            return make_move(entry, None, Pause.LINK)
        case FaultKind.NOT_NOW:
            return refused(entry, fault)
        case FaultKind.PLAIN | FaultKind.IMAGE:
            if not fault.error.retryable or again.tries >= MOST_TRIES:
                return end(entry, fault.error)
            return make_move(
                again, news(again, _STEP[again.state], fault.error.text, fault.error), Pause.BACKOFF
            )
        case _:
            assert_never(fault.kind)


def try_again(entry: Entry, fault: Fault) -> Move:
    """A failure after the first touch: once more, for ever; `entry` says where it goes on."""
    again = replace(entry, touched=True, tries=entry.tries + 1)
    step = Step.STRANDED if again.tries >= STRANDED_AFTER else Step.RETRYING
    told = entry.told
    same = told is not None and told.step == step and told.error == fault.error
    report = None if same else report_of(again, step, reason=fault.error.text, error=fault.error)
    return make_move(again, report, Pause.BACKOFF if fault.error.retryable else Pause.LONGEST)
