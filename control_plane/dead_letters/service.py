"""Keeping what could not be handled until a person replays or drops it.

A room that makes dead letters registers itself as the one that resolves them, so that this room
knows none of them.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Protocol

from control_plane.db import Connection, Database
from control_plane.dead_letters import store
from control_plane.dead_letters.store import DeadLetter
from control_plane.errors import Conflict, NotFound
from shared.ids import new_id
from shared.logs import get_log

__all__ = ["DeadLetter", "DeadLetterService", "Resolver"]

log = get_log("control_plane.dead_letters")

MOST_OPEN_PER_DEVICE = 1000
MOST_REASON = 2000


class Resolver(Protocol):
    """What the source of a dead letter does when a person decides, in the decision's transaction."""

    async def replay(self, connection: Connection, letter: DeadLetter) -> None:
        """Handle it once more. Raises Conflict when that is no longer possible."""
        ...

    async def drop(self, connection: Connection, letter: DeadLetter) -> None:
        """Give it up, and let go what waited behind it."""
        ...


class DeadLetterService:
    """Dead letters of every source."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._resolvers: dict[str, Resolver] = {}

    def register(self, source: str, resolver: Resolver) -> None:
        """Letters of `source` are resolved by `resolver`."""
        self._resolvers[source] = resolver

    async def add(
        self,
        connection: Connection,
        *,
        source: str,
        device_id: str | None,
        job_id: str | None,
        message_id: str | None,
        reason: str,
        raw: bytes,
        reference: dict[str, Any],
    ) -> str | None:
        """Keep a letter, in the caller's transaction; returns its id.

        A repeat (same source, device and message_id) adds nothing, and neither does a device that has
        MOST_OPEN_PER_DEVICE open ones: then None.
        """
        dead_letter_id = await store.add(
            connection,
            dead_letter_id=new_id(),
            source=source,
            device_id=device_id,
            job_id=job_id,
            message_id=message_id,
            # PostgreSQL's text holds every character but this one; the bytes keep it.
            reason=reason.replace("\x00", "\N{REPLACEMENT CHARACTER}")[:MOST_REASON],
            raw=raw,
            reference=reference,
            most_open_per_device=MOST_OPEN_PER_DEVICE,
        )
        if dead_letter_id is not None:
            log.warning(
                "dead_letters.letter_added",
                dead_letter_id=dead_letter_id,
                source=source,
                device_id=device_id,
                job_id=job_id,
                reason=reason[:200],
            )
        return dead_letter_id

    async def get(self, dead_letter_id: str) -> DeadLetter:
        """One letter with its bytes. Raises NotFound."""
        async with self._db.transaction() as connection:
            return _found(await store.get(connection, dead_letter_id, lock=False), dead_letter_id)

    async def page(
        self,
        *,
        source: str | None = None,
        device_id: str | None = None,
        resolved_too: bool = False,
        before: tuple[datetime, str] | None = None,
        limit: int = 50,
    ) -> list[DeadLetter]:
        """Letters from the newest to the oldest, without their bytes."""
        async with self._db.transaction() as connection:
            return await store.page(
                connection,
                source=source,
                device_id=device_id,
                resolved_too=resolved_too,
                before=before,
                limit=limit,
            )

    async def replay(self, dead_letter_id: str, *, by: str) -> DeadLetter:
        """Handle a letter once more. Raises NotFound or Conflict."""
        return await self._resolve(dead_letter_id, "replayed", by)

    async def drop(self, dead_letter_id: str, *, by: str) -> DeadLetter:
        """Give a letter up; its row stays as a record. Raises NotFound or Conflict."""
        return await self._resolve(dead_letter_id, "dropped", by)

    async def _resolve(self, dead_letter_id: str, resolution: str, by: str) -> DeadLetter:
        async def act(connection: Connection) -> DeadLetter:
            letter = _found(await store.get(connection, dead_letter_id, lock=True), dead_letter_id)
            if letter.resolution is not None:
                raise Conflict(
                    f"this dead letter was {letter.resolution} by {letter.resolved_by} already",
                    code="already_resolved",
                )
            resolver = self._resolvers.get(letter.source)
            if resolution == "replayed":
                if resolver is None:
                    raise Conflict(
                        f"a dead letter of {letter.source} can't be replayed",
                        code="not_replayable",
                        advice="Read its reason and its bytes, then drop it.",
                    )
                await resolver.replay(connection, letter)
            elif resolver is not None:
                await resolver.drop(connection, letter)
            await store.resolve(connection, dead_letter_id, resolution, by)
            return _found(await store.get(connection, dead_letter_id, lock=False), dead_letter_id)

        letter = await self._db.run(act)
        log.info("dead_letters.letter_resolved", dead_letter_id=dead_letter_id, resolution=resolution, by=by)
        return letter


def _found(letter: DeadLetter | None, dead_letter_id: str) -> DeadLetter:
    if letter is None:
        raise NotFound(f"there is no dead letter {dead_letter_id[:80]}", code="unknown_dead_letter")
    return letter
