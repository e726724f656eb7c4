"""The values of the journal: one update as the truck remembers it, and what it tells of it.

Pure; `store` keeps them, `update_machine` decides on them, `updater` acts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from edge_agent.store.release import Release
from shared.causes import Cause
from shared.errors import OtaError
from shared.messages import Command, CommandTarget, Error, Status, TargetResult
from shared.since_310 import StrEnum
from shared.states import UPDATE_TERMINAL, TruckStatus, UpdateState

MOST_TEXT = 2000
"""Characters of a sentence in a status (shared.messages.Text)."""


class Asked(StrEnum):
    """What the office's newest word wants of an update that is under way."""

    CANCEL = "cancel"
    REPLACE = "replace"  # a newer job for the same component was received


@dataclass(frozen=True, kw_only=True)
class Report:
    """A status before it has an id, a number and a time. `causes` are those of `reason`.

    `thin`: only the newest of its kind counts.
    """

    status: TruckStatus
    step: str
    progress: int | None = None
    reason: str | None = None
    causes: tuple[Cause, ...] = ()
    error: Error | None = None
    targets: tuple[TargetResult, ...] | None = None
    thin: bool = False


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One attempt of one job: a row of the journal.

    `command` is the newest one with targets (None for a tombstone: a cancel that came before its
    install). `touched` says that the ECU may have been erased by an earlier try. `image` is the path
    of the downloaded file. `told` is the newest status of it. Times are UTC.

    `release` is there when the command names several targets, or what the trust chain selected for it is a
    release of one: then `touched` speaks of any of their ECUs and `image` is not used. `selection` names what
    was selected. `restarts` counts starts of the agent since the attempt last went on.
    """

    job_id: str
    attempt: int
    revision: int
    state: UpdateState
    command: Command | None = None
    tries: int = 0
    touched: bool = False
    asked: Asked | None = None
    image: str | None = None
    told: Status | None = None
    release: Release | None = None
    selection: str | None = None
    restarts: int = 0
    created_at: datetime
    updated_at: datetime

    @property
    def key(self) -> tuple[str, int]:
        """What names it."""
        return (self.job_id, self.attempt)

    @property
    def ended(self) -> bool:
        """No event moves it any more."""
        return self.state in UPDATE_TERMINAL

    @property
    def begun(self) -> bool:
        """The ECU may have been touched, or may be at this moment: only forward from here."""
        return not self.ended and (self.touched or self.state in BEGUN)

    @property
    def target(self) -> CommandTarget:
        """What to bring where, for an entry of one target."""
        if self.command is None:
            raise ValueError(f"job {self.job_id} is a tombstone and has no target")
        return self.command.targets[0]

    @property
    def targets(self) -> tuple[CommandTarget, ...]:
        """All that is to be brought; nothing for a tombstone."""
        return () if self.command is None else self.command.targets

    @property
    def components(self) -> frozenset[str]:
        """The components that it is about."""
        return frozenset(one.component for one in self.targets)

    @property
    def is_release(self) -> bool:
        """Whether it goes the way of releases: it brings several ECUs, or what it brings is signed as one."""
        return self.release is not None or len(self.targets) > 1

    @property
    def is_of_several(self) -> bool:
        """Whether it brings several ECUs."""
        return len(self.targets) > 1


BEGUN = frozenset(
    {
        UpdateState.FLASHING,
        UpdateState.ACTIVATING,
        UpdateState.CHECKING,
        UpdateState.CONFIRMING,
        UpdateState.RESTORING,
    }
)


@dataclass(frozen=True, kw_only=True)
class Change:
    """What the updater writes in one transaction: the entry as it is now, and the status that tells it.

    `answers`: the wish that the entry carries is answered by it.
    """

    entry: Entry
    report: Report | None = None
    answers: bool = False


def error_of(error: OtaError) -> Error:
    """The error as it travels, cut to what a status may carry."""
    return Error(
        code=error.code[:64],
        retryable=error.retryable,
        advice=error.advice[:MOST_TEXT],
        text=error.message[:MOST_TEXT],
    )


_STATUS: Mapping[UpdateState, TruckStatus] = {
    UpdateState.RECEIVED: TruckStatus.DOWNLOADING,
    UpdateState.DOWNLOADING: TruckStatus.DOWNLOADING,
    UpdateState.VERIFYING: TruckStatus.DOWNLOADING,
    UpdateState.WAITING: TruckStatus.DOWNLOADING,
    UpdateState.FLASHING: TruckStatus.FLASHING,
    UpdateState.ACTIVATING: TruckStatus.FLASHING,
    UpdateState.CHECKING: TruckStatus.FLASHING,
    UpdateState.CONFIRMING: TruckStatus.FLASHING,
    UpdateState.RESTORING: TruckStatus.FLASHING,
    UpdateState.DONE: TruckStatus.DONE,
    UpdateState.ERROR: TruckStatus.ERROR,
    UpdateState.CANCELLED: TruckStatus.CANCELLED,
}


def status_word(state: UpdateState) -> TruckStatus:
    """How a state of the journal is told to the office."""
    return _STATUS[state]
