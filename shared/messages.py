"""Every message between truck and centre, and the event that travels on the bus.

Versioned JSON. An unknown field is kept (see wire.Wire); an unknown *requirement* is refused: a
command lists in `requires` what the agent must be able to do, and an agent that lacks one of
them answers `error: unsupported` and does nothing. Golden files of each message stand in
`tests/unit/shared/golden`, so that the oldest agent in the field stays readable for ever.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from shared.errors import BadMessage
from shared.ids import ID_PATTERN
from shared.since_310 import StrEnum
from shared.states import TruckStatus
from shared.wire import Wire, decode_json

Id = Annotated[str, Meta(pattern=ID_PATTERN, max_length=64)]
Name = Annotated[str, Meta(min_length=1, max_length=64)]
Version = Annotated[str, Meta(pattern=r"^[0-9A-Za-z][0-9A-Za-z.+_-]{0,63}$", max_length=64)]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$", max_length=64)]
Text = Annotated[str, Meta(max_length=2000)]
Url = Annotated[str, Meta(min_length=1, max_length=4000)]
Counter = Annotated[int, Meta(ge=0, le=2**53)]
Time = Annotated[datetime, Meta(tz=True)]

MOST_CAUSES = 16
MOST_DETAIL = 200
"""Causes in a status, and characters of what one is about."""
MOST_STATUSES = 200
"""Statuses in one message at most; a truck with more sends them in several batches."""


class Feature(StrEnum):
    """What an agent may be able to do; commands require these by name."""

    INSTALL = "install"
    CANCEL = "cancel"
    FRESH_URL = "fresh-url"
    DOC_ED25519 = "doc-ed25519"  # firmware documents of shared.trust, signed with Ed25519
    RELEASE = "release"  # several components a job, which end together
    UPTANE = "uptane"  # a command only triggers: what is installed stands in metadata of shared.trust.uptane
    UDS = "uds"  # flashes by ISO 14229 over ISO 15765-2
    # Told at hello, never required: deltas of this form may be offered (shared.delta.FORMAT).
    DELTA = "quarry-delta-1"


class CommandKind(StrEnum):
    """What the centre asks of a truck about a job."""

    INSTALL = "install"
    CANCEL = "cancel"
    URL = "url"
    DIAG = "diag"


class Delta(Wire, frozen=True, kw_only=True):
    """A shorter way to an image for a truck that holds `base_sha256`: see shared.delta.

    `length` and `sha256` are of the delta's own file. It proves nothing: what comes out is compared with
    the image's signed hash, and a truck that can't use it fetches the whole image.
    """

    base_sha256: Sha256
    url: Url
    length: Annotated[int, Meta(gt=0, le=2**40)]
    sha256: Sha256
    format: Name = "quarry-delta-1"


class CommandTarget(Wire, frozen=True, kw_only=True):
    """One component to bring to one firmware.

    `document` is the signed firmware document, byte for byte (see shared.trust): it decides;
    `version`, `sha256` and `length` only select and must agree with it. It is empty where the truck has it
    from signed metadata, or needs none (a command that requires `uptane`). `url` is http(s), or `file:` for
    what an operator brought to the truck.
    """

    component: Name
    version: Version
    sha256: Sha256
    length: Annotated[int, Meta(gt=0, le=2**40)]
    document: Annotated[str, Meta(max_length=64 * 1024)]
    url: Url
    delta: Delta | None = None


class Window(Wire, frozen=True, kw_only=True):
    """When flashing may begin (UTC); the truck waits outside it."""

    opens_at: Time
    closes_at: Time


class Command(Wire, frozen=True, kw_only=True):
    """`commands/{device_id}/ota`. A greater `revision` of a job replaces every smaller one.

    `targets` is empty for cancel and diag. After `expires_at` a truck does not begin the job.
    """

    v: Literal[1] = 1
    command_id: Id
    job_id: Id
    attempt: Annotated[int, Meta(ge=1)]
    revision: Annotated[int, Meta(ge=1)]
    # A plain word, not the enum: an agent must be able to refuse a kind that it never heard of.
    kind: Name
    requires: tuple[Name, ...] = ()
    expires_at: Time | None = None
    window: Window | None = None
    targets: Annotated[tuple[CommandTarget, ...], Meta(max_length=64)] = ()


class Error(Wire, frozen=True, kw_only=True):
    """Why something failed: for programs (`code`, `retryable`) and for people."""

    code: Name
    retryable: bool = False
    advice: Text = ""
    text: Text = ""


class TargetResult(Wire, frozen=True, kw_only=True):
    """What a component's own answer was after the update: read back, never assumed."""

    component: Name
    version: Version
    sha256: Sha256


class ToldCause(Wire, frozen=True, kw_only=True):
    """Why an update waits, by its code; shared.causes has the words. A newer agent's code is kept."""

    code: Name
    detail: Annotated[str, Meta(max_length=MOST_DETAIL)] | None = None
    word: Name | None = None


class WantedTarget(Wire, frozen=True, kw_only=True):
    """What a component is to get, by the word of a truck that began the job itself."""

    component: Name
    version: Version
    sha256: Sha256


class Status(Wire, frozen=True, kw_only=True):
    """One step of one attempt, as the truck saw it.

    `seq` grows by one per status within a store; `progress` is 0..100; `at` is the truck's clock
    and orders nothing. `targets` comes with `done`. `causes` are those of `reason`, for whoever reads another
    language. `wanted` comes with each status of a job that began at the truck (shared.ids.LOCAL_JOB), which
    the centre has ordered nothing for.
    """

    message_id: Id
    job_id: Id
    attempt: Annotated[int, Meta(ge=1)]
    seq: Annotated[int, Meta(ge=1, le=2**53)]
    status: TruckStatus
    # A Step, or a newer agent's word: it informs people and decides nothing.
    step: Name
    progress: Annotated[int, Meta(ge=0, le=100)] | None = None
    reason: Text | None = None
    causes: Annotated[tuple[ToldCause, ...], Meta(max_length=MOST_CAUSES)] | None = None
    error: Error | None = None
    targets: Annotated[tuple[TargetResult, ...], Meta(max_length=64)] | None = None
    wanted: Annotated[tuple[WantedTarget, ...], Meta(max_length=64)] | None = None
    at: Time


class StatusBatch(Wire, frozen=True, kw_only=True):
    """`status/{device_id}/update`: statuses of one store, ascending by `seq`."""

    v: Literal[1] = 1
    store_id: Id
    statuses: Annotated[tuple[Status, ...], Meta(min_length=1, max_length=MOST_STATUSES)]


class Hello(Wire, frozen=True, kw_only=True):
    """`status/{device_id}/hello`, retained: on every connect; the last will says offline.

    `revisions` gives the highest revision that the truck knows of each live job.
    """

    v: Literal[1] = 1
    online: bool
    store_id: Id
    agent_version: Version
    features: tuple[Name, ...] = ()
    revisions: dict[Id, Counter] = {}
    metadata_versions: dict[Name, Counter] = {}


class Installed(Wire, frozen=True, kw_only=True):
    """What one component says of itself."""

    component: Name
    kind: Name
    hardware: Name
    version: Version | None = None
    sha256: Sha256 | None = None
    in_bootloader: bool = False


class Manifest(Wire, frozen=True, kw_only=True):
    """`status/{device_id}/manifest`: what is installed and what runs, per component."""

    v: Literal[1] = 1
    store_id: Id
    seq: Counter
    components: Annotated[tuple[Installed, ...], Meta(max_length=64)]
    at: Time


class Sample(Wire, frozen=True, kw_only=True):
    """One measured value; `unit` by its SI or field name."""

    name: Name
    value: float
    unit: Name
    at: Time


class Telemetry(Wire, frozen=True, kw_only=True):
    """`telemetry/{device_id}`: samples; the oldest are dropped first when a link is too slow."""

    v: Literal[1] = 1
    store_id: Id
    samples: Annotated[tuple[Sample, ...], Meta(min_length=1, max_length=1000)]


class Rejected(Wire, frozen=True, kw_only=True):
    """A status that can't be applied; its raw bytes are in the centre's dead letters."""

    message_id: Id
    reason: Text


class Ack(Wire, frozen=True, kw_only=True):
    """`acks/{device_id}`: sent after the centre's database commit, for duplicates too."""

    v: Literal[1] = 1
    accepted: tuple[Id, ...] = ()
    rejected: tuple[Rejected, ...] = ()


class Event(Wire, frozen=True, kw_only=True):
    """What travels on the bus about a job: a wake-up call; the job's row is the truth.

    Consumers drop an event whose `version` is not above what they have of that job.
    """

    v: Literal[1] = 1
    event_id: Id
    event_type: Name
    job_id: Id | None = None
    device_id: Id | None = None
    version: Counter = 0
    at: Time
    data: dict[str, Any] = {}


class FromDevice(Wire, frozen=True, kw_only=True):
    """A truck's message on the bus: who sent it, of which kind, and its exact bytes as text.

    `payload` is the MQTT payload decoded as latin-1, which keeps every byte of it, so that a bad
    message can be stored as it came.
    """

    v: Literal[1] = 1
    device_id: Id
    kind: Name
    payload: str
    received_at: Time


MESSAGES: tuple[type[Wire], ...] = (
    Command,
    StatusBatch,
    Hello,
    Manifest,
    Telemetry,
    Ack,
    Event,
    FromDevice,
)


def salvage_statuses(raw: bytes) -> tuple[str, list[Status], list[tuple[str | None, str, bytes]]]:
    """Read a status batch one status at a time, so that a bad one does not take the rest along.

    Returns the store id, the good statuses in their order, and for each bad one its message_id
    (None when even that can't be read), the reason, and its bytes. Raises BadMessage when the
    envelope itself can't be read.
    """
    obj = decode_json(raw)
    if not isinstance(obj, dict):
        raise BadMessage(f"StatusBatch: expected an object, got {type(obj).__name__}")
    items = obj.get("statuses")
    if not isinstance(items, list) or not 1 <= len(items) <= MOST_STATUSES:
        raise BadMessage(f"StatusBatch: statuses must be a list of 1 to {MOST_STATUSES}")
    probe = Envelope.from_obj({k: v for k, v in obj.items() if k != "statuses"})
    good: list[Status] = []
    bad: list[tuple[str | None, str, bytes]] = []
    for item in items:
        try:
            good.append(Status.from_obj(item))
        except BadMessage as error:
            message_id = item.get("message_id") if isinstance(item, dict) else None
            try:
                known: str | None = msgspec.convert(message_id, Id)
            except msgspec.ValidationError:
                known = None
            bad.append((known, error.message, msgspec.json.encode(item)))
    return probe.store_id, good, bad


class Envelope(Wire, frozen=True, kw_only=True):
    """The part of a status batch that every version has."""

    v: Literal[1] = 1
    store_id: Id
