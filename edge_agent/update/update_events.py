"""The words of the update machine: what can happen to an update, and what may be done next. Pure values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from edge_agent.store.journal import Entry, Report
from edge_agent.store.release import Former, Release
from shared.causes import Cause, sentence
from shared.messages import Error, TargetResult
from shared.since_310 import StrEnum


class Act(StrEnum):
    """What to do next; named in logs and kill points."""

    NOTHING = "nothing"
    LOOK = "look"  # judge the command and its document; ask the ECU what it holds
    DOWNLOAD = "download"
    VERIFY = "verify"
    ASK = "ask"  # verify again; window and vehicle
    FLASH = "flash"  # load and verify; ask the vehicle and the ECU; stage
    ACTIVATE = "activate"
    CHECK = "check"  # read back; confirm (of several ECUs: no more than read back)
    CONFIRM = "confirm"  # of a committed release: read one ECU back, flash it again if need be, confirm
    RESTORE = "restore"  # bring one ECU back to what it held before


class Pause(StrEnum):
    """How long before the act; a fresher command from the office ends every pause."""

    NONE = "none"
    BACKOFF = "backoff"  # grows with the entry's tries
    LONGEST = "longest"  # a fault that a soon repeat makes worse (an ECU that locks its access)
    LINK = "link"  # until the network may be back
    REFUSED = "refused"  # until the ECU may be willing
    POLL = "poll"  # as often as the vehicle is asked
    RESTARTS = "restarts"  # grows with the restarts that found the attempt unmoved
    URL = "url"  # until the office sends a URL; then it is asked again


class FaultKind(StrEnum):
    """What sort of failure: decides whether it is counted."""

    PLAIN = "plain"
    LINK = "link"  # the network is away
    NOT_NOW = "not_now"  # the ECU refuses for the moment
    IMAGE = "image"  # the file that was verified before is gone or spoiled: local damage


@dataclass(frozen=True, kw_only=True)
class Fault:
    """An act failed. `touched` False: the ECU surely was not changed by it.

    `component` is the ECU that is to blame, where several were asked.
    """

    error: Error
    kind: FaultKind = FaultKind.PLAIN
    touched: bool = False
    component: str | None = None


@dataclass(frozen=True)
class Fits:
    """The documents are good for the components, of which one holds something else or does not answer.

    `release` is there when there are several, or where one is signed as a release; `selection` names what
    the trust chain selected.
    """

    release: Release | None = None
    selection: str | None = None


@dataclass(frozen=True)
class Holds:
    """The component already runs exactly this image: its own answer; `more` are those of further ones."""

    result: TargetResult
    more: tuple[TargetResult, ...] = ()


@dataclass(frozen=True)
class Fetched:
    """The image is on the disk at `path`; of several, each component's path."""

    path: str
    images: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class NeedsUrl:
    """The URL is over."""


@dataclass(frozen=True)
class Verified:
    """Document and image are as they must be."""


@dataclass(frozen=True)
class Unsafe:
    """Flashing is not allowed at this moment; `why` in English, `causes` for any language."""

    why: str
    causes: tuple[Cause, ...] = ()

    @classmethod
    def by(cls, *causes: Cause) -> Unsafe:
        """For these causes, in their own words."""
        return cls(sentence(causes), causes)


@dataclass(frozen=True)
class Ready:
    """Verified again, in time and safe. `takes_over`: an earlier update may have touched this ECU.

    `formers`: of several ECUs, all of which answered, what each holds.
    """

    takes_over: bool = False
    formers: tuple[tuple[str, Former], ...] = ()


@dataclass(frozen=True)
class Staged:
    """The image is in the ECU, proved by it."""


@dataclass(frozen=True)
class Activated:
    """The ECU was told to run it, and answers."""


@dataclass(frozen=True)
class Proved:
    """The ECU runs it: its own answer, read back."""

    result: TargetResult


@dataclass(frozen=True)
class AllProved:
    """Every ECU of the release was asked at the end, and runs its new image."""


@dataclass(frozen=True)
class Confirmed:
    """The ECU runs its new image for good: its own answer, read back."""

    result: TargetResult


@dataclass(frozen=True)
class Restored:
    """The ECU runs what it ran before the release."""


@dataclass(frozen=True)
class CancelAsked:
    """The office wants it stopped."""


@dataclass(frozen=True)
class Replaced:
    """A newer job for the component was received."""


@dataclass(frozen=True)
class TakenOver:
    """A newer job begins to flash the component at this moment: `by` is its job_id."""

    by: str


@dataclass(frozen=True)
class TimeOver:
    """The command's `expires_at` has passed."""


@dataclass(frozen=True)
class Restarted:
    """The agent began to run and found the entry as it is."""


Event: TypeAlias = (
    Fits
    | Holds
    | Fetched
    | NeedsUrl
    | Verified
    | Unsafe
    | Ready
    | Staged
    | Activated
    | Proved
    | AllProved
    | Confirmed
    | Restored
    | Fault
    | CancelAsked
    | Replaced
    | TakenOver
    | TimeOver
    | Restarted
)


@dataclass(frozen=True, kw_only=True)
class Move:
    """`entry` is to be written together with `report`; then `pause`, then `act`."""

    entry: Entry
    report: Report | None
    act: Act
    pause: Pause = Pause.NONE
