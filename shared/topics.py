"""Names of topics and their keys: MQTT between truck and centre, the event bus inside the centre.

All of them exist from the first version on, even where a kind of message is only refused
politely: adding a topic later would mean changing every broker's rights.
"""

from __future__ import annotations

from dataclasses import dataclass

from shared.errors import BadMessage
from shared.ids import check_id

HOUR_S = 3600
DAY_S = 24 * HOUR_S

# --- MQTT 3.1.1, QoS 1 -----------------------------------------------------------------------

STATUS_KINDS = ("update", "hello", "manifest")


def commands(device_id: str) -> str:
    """Centre to truck: install, cancel, url, diag."""
    return f"commands/{check_id(device_id, 'device_id')}/ota"


def acks(device_id: str) -> str:
    """Centre to truck: which statuses are safe in the centre's database."""
    return f"acks/{check_id(device_id, 'device_id')}"


def status(device_id: str, kind: str) -> str:
    """Truck to centre; `kind` is update, hello or manifest."""
    if kind not in STATUS_KINDS:
        raise ValueError(f"no status topic of kind {kind!r}")
    return f"status/{check_id(device_id, 'device_id')}/{kind}"


def telemetry(device_id: str) -> str:
    """Truck to centre: samples."""
    return f"telemetry/{check_id(device_id, 'device_id')}"


def truck_reads(device_id: str) -> tuple[str, ...]:
    """Every topic that this truck, and no other, may subscribe to."""
    return (commands(device_id), acks(device_id))


def truck_writes(device_id: str) -> tuple[str, ...]:
    """Every topic that this truck, and no other, may publish on."""
    return (*(status(device_id, kind) for kind in STATUS_KINDS), telemetry(device_id))


CENTRE_READS = (*(f"status/+/{kind}" for kind in STATUS_KINDS), "telemetry/+")


@dataclass(frozen=True, kw_only=True)
class FromTruck:
    """Who wrote on a topic, and what kind of message: update, hello, manifest or telemetry."""

    device_id: str
    kind: str


def parse_from_truck(topic: str) -> FromTruck:
    """Read a topic that the centre subscribes to. Raises BadMessage for any other."""
    match topic.split("/"):
        case ["status", device_id, kind] if kind in STATUS_KINDS:
            return FromTruck(device_id=check_id(device_id, "device_id"), kind=kind)
        case ["telemetry", device_id]:
            return FromTruck(device_id=check_id(device_id, "device_id"), kind="telemetry")
    raise BadMessage(f"no truck writes on topic {topic[:200]!r}")


# --- The event bus (Kafka's names and numbers; the in-process bus keeps the same) -------------


@dataclass(frozen=True, kw_only=True)
class BusTopic:
    """One topic of the bus: its partitions, retention (seconds) and what its key is."""

    name: str
    partitions: int
    retention_s: int
    key: str


JOB_EVENTS = BusTopic(name="job.events", partitions=3, retention_s=7 * DAY_S, key="event_type")
DEVICE_COMMANDS = BusTopic(name="device.commands", partitions=20, retention_s=DAY_S, key="device_id")
DEVICE_STATUS = BusTopic(name="device.status", partitions=50, retention_s=3 * DAY_S, key="device_id")
DEVICE_TELEMETRY = BusTopic(name="device.telemetry", partitions=30, retention_s=DAY_S, key="device_id")
JOB_DLQ = BusTopic(name="job.dlq", partitions=1, retention_s=14 * DAY_S, key="event_id")
DEVICE_STATUS_DLQ = BusTopic(name="device.status.dlq", partitions=1, retention_s=14 * DAY_S, key="device_id")

BUS_TOPICS = (
    JOB_EVENTS,
    DEVICE_COMMANDS,
    DEVICE_STATUS,
    DEVICE_TELEMETRY,
    JOB_DLQ,
    DEVICE_STATUS_DLQ,
)
