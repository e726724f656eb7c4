"""Writing events in the transaction of what they tell of, and deciding about dead ones."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from control_plane.db import Connection
from control_plane.dead_letters.service import DeadLetter
from control_plane.errors import Conflict
from control_plane.outbox import store
from control_plane.outbox.store import NewEvent
from shared.ids import new_id
from shared.messages import Event
from shared.topics import DEVICE_COMMANDS, JOB_EVENTS, BusTopic

SOURCE = "outbox"
"""The source of this room's dead letters."""


def job_event(
    event_type: str, *, job_id: str, device_id: str, version: int, data: dict[str, Any], topic: BusTopic
) -> NewEvent:
    """An event about a job, keyed as its topic asks: job.events by type, device.commands by device."""
    event = Event(
        event_id=new_id(),
        event_type=event_type,
        job_id=job_id,
        device_id=device_id,
        version=version,
        at=datetime.now(UTC),
        data=data,
    )
    key = {JOB_EVENTS.name: event_type, DEVICE_COMMANDS.name: device_id}[topic.name]
    return NewEvent(
        event_id=event.event_id,
        job_id=job_id,
        job_version=version,
        topic=topic.name,
        key=key,
        event_type=event_type,
        payload=event.to_json(),
    )


class OutboxService:
    """The outbox for other rooms. Stateless; every method joins its caller's transaction."""

    async def add(self, connection: Connection, events: Sequence[NewEvent]) -> None:
        """Write events that leave if, and only if, the caller's transaction commits.

        The caller holds the lock of each event's job, so that a job's events are numbered in the
        order of its versions. Wake the worker after the commit.
        """
        await store.add(connection, events)

    async def replay(self, connection: Connection, letter: DeadLetter) -> None:
        """A dead event tries again, and its job's later ones behind it. Raises Conflict."""
        if not await store.replay(connection, str(letter.reference.get("event_id"))):
            raise Conflict("this event is not in the outbox any more")

    async def drop(self, connection: Connection, letter: DeadLetter) -> None:
        """A dead event is given up; its job's later ones go on."""
        await store.drop(connection, str(letter.reference.get("event_id")))
