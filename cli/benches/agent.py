"""`quarry bench agent`: what the truck's gateway costs at rest and at work."""

from __future__ import annotations

from cli.benches import agent_delta, agent_idle, agent_process, agent_queue, agent_verify
from cli.benches.report import Case

CASES = [
    Case(name="idle.rss", unit="MiB", goal="< limit", measure=agent_process.idle_rss),
    Case(name="idle.cpu", unit="% of a core", goal="< limit", measure=agent_process.idle_cpu),
    Case(name="idle.cpu_j1939", unit="% of a core", goal="< limit", measure=agent_idle.idle_cpu_j1939),
    Case(
        name="journal.bytes_per_1000_statuses",
        unit="B",
        goal="none",
        measure=agent_queue.bytes_per_1000_statuses,
    ),
    Case(name="start.first_status", unit="s", goal="none", measure=agent_process.start),
    Case(name="backlog.drain", unit="statuses/s", goal=">= limit", measure=agent_queue.backlog_drain),
    Case(name="queue.year_offline", unit="MiB", goal="<= limit", measure=agent_queue.year_offline),
    Case(name="delta.ratio", unit="of the image", goal="< limit", measure=agent_delta.ratio),
    Case(name="delta.seconds", unit="s", goal="< limit", measure=agent_delta.seconds),
    Case(name="verify.release", unit="s", goal="none", measure=agent_verify.verify_release),
]
