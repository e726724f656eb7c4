"""What can go wrong on the truck's gateway. Each error says whether a repeat can help.

`retryable` decides before an ECU is touched; afterwards everything is tried again (update_machine).
"""

from __future__ import annotations

from shared.errors import OtaError
from shared.trust.document import TrustError


class EdgeError(OtaError):
    """Root of the agent's own errors."""


class StoreFailed(EdgeError):
    """The agent's database can't be read or written: no flash without a journal."""

    code = "store_failed"
    retryable = True
    advice = "Check the free space, the rights and the health of the disk that holds the agent's data."


class StoreBusy(EdgeError):
    """Another agent already runs on this database."""

    code = "store_busy"
    advice = "Stop the other agent: two on one truck would flash against each other."


class StoreMissing(EdgeError):
    """There is no database to look at."""

    code = "store_missing"
    advice = "Start the agent once, or name the right data folder."


class OutboxFull(EdgeError):
    """So many statuses wait for the office that no new work is taken."""

    code = "outbox_full"
    retryable = True
    advice = "See why the office acknowledges nothing; statuses are kept until it does."


class LinkLost(EdgeError):
    """The network is away or too slow: tried again for as long as the command is good."""

    code = "link_lost"
    retryable = True
    advice = "Nothing to do: the download resumes by itself when the link is back."


class UrlExpired(EdgeError):
    """The signed URL is over; the office is asked for a fresh one."""

    code = "url_expired"
    retryable = True
    advice = "Nothing to do: the office sends a fresh URL."


class NoRoom(EdgeError):
    """The image does not fit on the disk."""

    code = "no_room"
    retryable = True
    advice = "Free space on the disk that holds the agent's data."


class OverBudget(EdgeError):
    """The bytes that a job, a day or a link may cost are used: it goes on by itself when there are more."""

    code = "over_budget"
    retryable = True
    advice = "Wait for the next day, or raise the budget in the agent's configuration."


class ImageMissing(EdgeError):
    """An image that was downloaded is gone, or can't be read; it is fetched again."""

    code = "image_missing"
    retryable = True
    advice = "Check the health of the disk that holds the agent's data."


class UnknownComponent(EdgeError):
    """A command names a component that this truck's configuration does not have."""

    code = "unknown_component"
    advice = "Compare the device's components in the office with the agent's configuration."


class DocumentMismatch(TrustError):
    """The signed document and the command that came with it disagree."""

    code = "document_mismatch"
    advice = "The command was altered, or made wrongly: nothing is installed. Look at the office."


class OlderRelease(TrustError):
    """The firmware is older than one that this component ran already."""

    code = "older_release"
    advice = "Sign the wanted firmware with a greater release counter."


class CountersUnknown(TrustError):
    """The file of release counters is damaged, so that nobody can tell an old firmware."""

    code = "counters_unknown"
    advice = "Look at the counters file; when it is proved lost by a fault, remove it by hand."


class NoWayBack(EdgeError):
    """An ECU of a release could not be brought back to what it holds, so the release does not begin."""

    code = "no_way_back"
    advice = (
        "Install what the component holds once through the office (or any firmware alone): the truck keeps "
        "the image from then on. A signed release may also say that it goes forward only."
    )
