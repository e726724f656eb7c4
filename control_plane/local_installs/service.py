"""Keeps what trucks report of jobs that people began at them.

No job of the office: such a row has no revision, no command and no place as a device's one live job; a truck
writes into its own rows only, whatever id it gives, and has at most MOST_PER_DEVICE of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from control_plane.db import Connection, Database
from control_plane.jobs.service import Outcome, Report
from control_plane.local_installs import store
from control_plane.local_installs.model import LocalInstall, Said, merge_words
from shared.logs import get_log
from shared.states import JOB_TERMINAL, JobState

__all__ = ["LocalInstall", "LocalInstallService"]

log = get_log("control_plane.local_installs")

MOST_PER_DEVICE = 100
"""The newest are kept. Of a row that had to go a repeated status makes a new one, within the same bound."""


class LocalInstallService:
    """Local installs: written by the event processor, read by people."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def apply(self, connection: Connection, reports: Sequence[Report]) -> list[Outcome]:
        """Take statuses of such jobs over, in the caller's transaction; one outcome a report, in order.

        The devices must be there. Idempotent by the merge, which is a total order of statuses.
        """
        places: dict[store.Key, list[int]] = {}
        for place, report in enumerate(reports):
            places.setdefault((report.device_id, report.status.job_id), []).append(place)
        outcomes: dict[int, Outcome] = {}
        grown: set[str] = set()
        keys = sorted(places)
        rows = await store.lock(connection, keys) if keys else {}
        for key in keys:
            words = [(reports[place].store_no, reports[place].status) for place in places[key]]
            row = rows.get(key)
            if row is None:
                said, verdicts = merge_words(None, words)
                row = await store.insert_or_lock(connection, key, said)
                grown.add(key[0])
            before = None if row is None else row.said
            if row is not None:
                said, verdicts = merge_words(row.said, words)
                if said is not row.said:
                    await store.update(connection, key, said)
            entered = _entered(before, said)
            if entered in JOB_TERMINAL:
                log.info(
                    "local_installs.install_ended", device_id=key[0], job_id=key[1], state=said.now.state
                )
            for place, verdict in zip(places[key], verdicts, strict=True):
                outcomes[place] = Outcome(report=reports[place], verdict=verdict)
        for device_id in sorted(grown):
            gone = await store.prune(connection, device_id, MOST_PER_DEVICE)
            if gone:
                log.warning("local_installs.oldest_forgotten", device_id=device_id, rows=gone)
        return [outcomes[place] for place in range(len(reports))]

    async def page(
        self,
        *,
        device_id: str | None = None,
        job_id: str | None = None,
        state: JobState | None = None,
        before: tuple[datetime, str] | None = None,
        limit: int = 50,
    ) -> list[LocalInstall]:
        """From the newest to the oldest."""
        async with self._db.transaction() as connection:
            return await store.page(
                connection, device_id=device_id, job_id=job_id, state=state, before=before, limit=limit
            )


def _entered(before: Said | None, after: Said) -> JobState | None:
    """The state that was entered, None when it is as it was."""
    if before is not None and before.now.state is after.now.state:
        return None
    return after.now.state
