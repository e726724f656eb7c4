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


class NotGiven(LinkLost):
    """Whoever was reached does not give this file. `gone`: there is none (404, 410), else it may pass."""

    code = "not_given"
    advice = "Nothing to do: it is tried again; if it stays so, publish the image again."

    def __init__(self, message: str, *, gone: bool) -> None:
        super().__init__(message)
        self.gone = gone


class TooSlow(LinkLost):
    """An image comes so slowly that it would keep the truck from anything newer."""

    code = "slow_retrieval"
    advice = "It goes on by itself. If the link is not that slow, look who answers in the office's place."


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


class NotSelected(EdgeError):
    """A command came, and the director selects nothing for this truck."""

    code = "not_selected"
    retryable = True
    advice = "Look at the truck's selection in the office: it says why nothing is selected."


class NothingSelected(TrustError):
    """An update that the trust chain never selected, from before it was switched on."""

    code = "nothing_selected"
    advice = "Start a new job: since the trust chain was switched on a command alone installs nothing."


class BadBundle(EdgeError):
    """A folder is no bundle for this truck."""

    code = "bad_bundle"
    advice = "Give the folder that `quarry release usb` has made for this truck, whole."


class GatewayOnly(TrustError):
    """An ECU without a check of its own, and a release that does not permit to rely on the gateway alone."""

    code = "gateway_only"
    advice = "Sign a release whose safety policy says may_flash_gateway_only, if its owner accepts that."


class HealthUnknown(EdgeError):
    """A release asks an ECU to prove what can't be asked on this truck: it does not begin."""

    code = "health_unknown"
    advice = (
        "Configure the vehicle's J1939 bus and the component's address on it, or ask in the release for what "
        "this ECU can tell."
    )


class NoWayBack(EdgeError):
    """An ECU of a release could not be brought back to what it holds, so the release does not begin."""

    code = "no_way_back"
    advice = (
        "Install what the component holds once through the office: the truck keeps the image from then on. "
        "A signed release may also say that it goes forward only (may_go_without_way_back)."
    )
