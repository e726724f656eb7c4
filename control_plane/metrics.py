"""What the office counts, for Prometheus: one object a process, handed to whoever counts.

Names follow PRODUCT.md where it gives one (`outbox_pending_total`, `outbox_errors_total`).
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest


class Metrics:
    """The counters of one office process in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.outbox_pending_total = Gauge(
            "outbox_pending_total", "Events that wait in the outbox, dead ones too.", registry=self.registry
        )
        self.outbox_errors_total = Counter(
            "outbox_errors_total", "Events that the bus refused or could not take.", registry=self.registry
        )
        self.jobs_created_total = Counter("jobs_created_total", "Jobs created.", registry=self.registry)
        self.jobs_finished_total = Counter(
            "jobs_finished_total", "Jobs that ended, by final state.", ["state"], registry=self.registry
        )
        self.commands_sent_total = Counter(
            "commands_sent_total", "Commands published to trucks, by kind.", ["kind"], registry=self.registry
        )
        self.deltas_offered_total = Counter(
            "deltas_offered_total", "Targets whose first command offered a delta.", registry=self.registry
        )
        self.delta_bytes_spared_total = Counter(
            "delta_bytes_spared_total",
            "Bytes by which offered deltas are shorter than their images; a truck may still take the image.",
            registry=self.registry,
        )
        self.statuses_total = Counter(
            "statuses_total",
            "Statuses from trucks, by what became of them (applied, late, duplicate, rejected).",
            ["outcome"],
            registry=self.registry,
        )
        self.mqtt_messages_total = Counter(
            "mqtt_messages_total", "Messages from trucks, by kind.", ["kind"], registry=self.registry
        )
        self.director_signed_total = Counter(
            "director_signed_total", "Times that the director signed for a truck.", registry=self.registry
        )
        self.director_manifests_total = Counter(
            "director_manifests_total",
            "Vehicle manifests, by what became of them (taken, repeated, refused).",
            ["outcome"],
            registry=self.registry,
        )
        self.director_time_tokens_total = Counter(
            "director_time_tokens_total",
            "Answers to trucks that asked what time it is.",
            registry=self.registry,
        )
        self.director_alarms_total = Counter(
            "director_alarms_total", "Sights of alarms, by alarm.", ["alarm"], registry=self.registry
        )
        self.mqtt_connected = Gauge(
            "mqtt_connected", "1 while the office is connected to the MQTT broker.", registry=self.registry
        )

    def as_text(self) -> bytes:
        """The Prometheus text exposition of everything counted."""
        return generate_latest(self.registry)
