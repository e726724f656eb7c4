"""The states of a job (as the centre keeps it) and of an update (as the truck keeps it).

One table of allowed moves each. The words are the ones that operators read; they are spelled
alike in code, databases, on the wire and on the page.
"""

from __future__ import annotations

from collections.abc import Mapping

from shared.since_310 import StrEnum


class JobState(StrEnum):
    """Where a job is, seen from the centre."""

    SCHEDULED = "scheduled"  # waits for its time
    READY = "ready"  # its time has come; a command is due
    DISPATCHED = "dispatched"  # a command went out; no status seen yet
    DOWNLOADING = "downloading"
    FLASHING = "flashing"
    SILENT = "silent"  # overdue: nothing heard from the truck; not an end
    CANCELLING = "cancelling"  # asked to stop; the truck has not answered; not an end
    DONE = "done"
    ERROR = "error"
    CANCELLED = "cancelled"
    ABANDONED = "abandoned"  # an operator gave it up without the truck's word


class TruckStatus(StrEnum):
    """What a truck reports of a job; finer steps travel beside it (see Step)."""

    DOWNLOADING = "downloading"
    FLASHING = "flashing"
    DONE = "done"
    ERROR = "error"
    CANCELLED = "cancelled"


class Step(StrEnum):
    """The finer step inside a truck's status."""

    RECEIVED = "received"
    DOWNLOADING = "downloading"
    URL_EXPIRED = "url_expired"  # asks the centre for a fresh URL
    VERIFYING = "verifying"
    WAITING = "waiting"  # not allowed to flash now; the reason goes with it
    PREPARING = "preparing"
    ERASING = "erasing"
    WRITING = "writing"
    CHECKING = "checking"
    ACTIVATING = "activating"
    READING_BACK = "reading_back"
    RETRYING = "retrying"  # a try failed after the first erase; another follows
    STRANDED = "stranded"  # several tries failed after the first erase; still trying
    TOO_LATE = "too_late"  # a cancel came after flashing had begun
    GOING_BACK = "going_back"  # a release of several ECUs failed; each returns to what it ran
    CONFIRMING = "confirming"  # the release is committed; each ECU makes its image permanent
    FINISHED = "finished"


class UpdateState(StrEnum):
    """Where an update is, seen from the truck: the state that its journal holds.

    A state is written before the act that it names, so after a power cut it says what may have
    been begun, never what was surely finished.
    """

    RECEIVED = "received"
    DOWNLOADING = "downloading"
    VERIFYING = "verifying"
    WAITING = "waiting"
    FLASHING = "flashing"  # from here on the ECU may be erased: only forward
    ACTIVATING = "activating"
    CHECKING = "checking"
    CONFIRMING = "confirming"  # of several ECUs: this row is the commit; from here on only forward
    RESTORING = "restoring"  # of several ECUs: back to what each ran
    DONE = "done"
    ERROR = "error"
    CANCELLED = "cancelled"


JOB_TERMINAL = frozenset({JobState.DONE, JobState.ERROR, JobState.CANCELLED, JobState.ABANDONED})
JOB_LIVE = frozenset(JobState) - JOB_TERMINAL
UPDATE_TERMINAL = frozenset({UpdateState.DONE, UpdateState.ERROR, UpdateState.CANCELLED})

STATUS_TO_JOB: Mapping[TruckStatus, JobState] = {
    TruckStatus.DOWNLOADING: JobState.DOWNLOADING,
    TruckStatus.FLASHING: JobState.FLASHING,
    TruckStatus.DONE: JobState.DONE,
    TruckStatus.ERROR: JobState.ERROR,
    TruckStatus.CANCELLED: JobState.CANCELLED,
}

_REPORTED = frozenset(STATUS_TO_JOB.values())
_BY_HAND = frozenset({JobState.CANCELLING, JobState.ABANDONED})

# A truck's newer word moves a live job anywhere it says: a gateway that lost its database begins
# again from downloading, a restored centre may still think that nothing was sent. Before the
# dispatch the centre may cancel by itself; afterwards only the truck (or `abandon`) ends a job.
JOB_MOVES: Mapping[JobState, frozenset[JobState]] = {
    JobState.SCHEDULED: _REPORTED | {JobState.READY, JobState.ABANDONED},
    JobState.READY: _REPORTED | {JobState.DISPATCHED, JobState.ABANDONED},
    JobState.DISPATCHED: _REPORTED | _BY_HAND | {JobState.SILENT},
    JobState.DOWNLOADING: _REPORTED | _BY_HAND | {JobState.SILENT},
    JobState.FLASHING: _REPORTED | _BY_HAND | {JobState.SILENT},
    JobState.SILENT: _REPORTED | _BY_HAND,
    JobState.CANCELLING: _REPORTED | {JobState.ABANDONED},
    JobState.DONE: frozenset(),
    JobState.ERROR: frozenset(),
    JobState.CANCELLED: frozenset(),
    # A truck that comes back after four weeks is believed, but an operator's word stands.
    JobState.ABANDONED: frozenset(),
}

# ACTIVATING and CHECKING may fall back to FLASHING: an ECU that does not come up healthy is flashed
# again, since after its first erase nothing abandons it. FLASHING may fall back to WAITING as long as
# the ECU is surely untouched (it refused for the moment, the vehicle moved, it did not answer), goes to
# CHECKING when the ECU turns out to run the image already, and to ERROR when an untouched ECU refuses
# for good, or when a newer job's verified firmware takes the ECU over at that moment.
# An update of several ECUs goes through these states once an ECU: from CHECKING to the next one's
# ACTIVATING or FLASHING, to CONFIRMING when all are healthy (the commit), or to RESTORING, which ends in
# ERROR when each runs what it ran before. RESTORING turns to FLASHING only where the image to return to
# is lost: then forward is the one way to a whole truck.
UPDATE_MOVES: Mapping[UpdateState, frozenset[UpdateState]] = {
    UpdateState.RECEIVED: frozenset(
        {UpdateState.DOWNLOADING, UpdateState.ERROR, UpdateState.CANCELLED, UpdateState.DONE}
    ),
    UpdateState.DOWNLOADING: frozenset({UpdateState.VERIFYING, UpdateState.ERROR, UpdateState.CANCELLED}),
    UpdateState.VERIFYING: frozenset(
        {UpdateState.WAITING, UpdateState.DOWNLOADING, UpdateState.ERROR, UpdateState.CANCELLED}
    ),
    UpdateState.WAITING: frozenset(
        {
            UpdateState.FLASHING,
            UpdateState.DOWNLOADING,
            UpdateState.DONE,
            UpdateState.ERROR,
            UpdateState.CANCELLED,
        }
    ),
    UpdateState.FLASHING: frozenset(
        {
            UpdateState.ACTIVATING,
            UpdateState.CHECKING,
            UpdateState.WAITING,
            UpdateState.ERROR,
            UpdateState.RESTORING,
        }
    ),
    UpdateState.ACTIVATING: frozenset({UpdateState.CHECKING, UpdateState.FLASHING, UpdateState.RESTORING}),
    UpdateState.CHECKING: frozenset(
        {
            UpdateState.DONE,
            UpdateState.FLASHING,
            UpdateState.ACTIVATING,
            UpdateState.CONFIRMING,
            UpdateState.RESTORING,
        }
    ),
    UpdateState.CONFIRMING: frozenset({UpdateState.DONE}),
    UpdateState.RESTORING: frozenset({UpdateState.ERROR, UpdateState.FLASHING}),
    UpdateState.DONE: frozenset(),
    UpdateState.ERROR: frozenset(),
    UpdateState.CANCELLED: frozenset(),
}
