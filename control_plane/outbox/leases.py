"""One holder at a time: a slot of a role, held by a lease in the database until it expires."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from control_plane.db import Database
from control_plane.outbox import store
from shared.ids import new_id


@dataclass(kw_only=True)
class Lease:
    """One process's claim on a slot. A holder that stands still loses it after `for_s` seconds."""

    db: Database
    name: str
    slot: int = 0
    for_s: float = 6.0
    holder: str = field(default_factory=new_id)
    _until: float = 0.0

    async def hold(self) -> float | None:
        """Take or renew it. Returns the loop time until which it surely holds; None: another has it.

        It is renewed when less than half is left. The time is counted from before the question, so
        it ends here before it ends in the database.
        """
        now = asyncio.get_running_loop().time()
        if self._until - now < self.for_s / 2:
            async with self.db.transaction() as connection:
                held = await store.take_lease(connection, self.name, self.slot, self.holder, self.for_s)
            self._until = now + self.for_s if held else 0.0
        return self._until or None

    async def give_back(self) -> None:
        """Let the next one in at once."""
        self._until = 0.0
        async with self.db.transaction() as connection:
            await store.drop_lease(connection, self.name, self.slot, self.holder)
