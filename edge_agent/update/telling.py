"""Progress of a long act, told to the office while it runs; it can fail without stopping the act.

Each step's first word is a status that is never dropped; its further words are thin and paced.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from edge_agent.errors import StoreFailed
from edge_agent.store.journal import Entry, Report, status_word
from edge_agent.store.store import Store
from edge_agent.update.update_events import Unsafe
from shared.causes import Cause, sentence
from shared.logs import get_log
from shared.since_310 import timeout

log = get_log("edge_agent.telling")

MOST_STEPS = 32
"""Different steps of one act that are told; a flasher has fewer."""


class Teller:
    """Takes steps from an act, from any thread, and writes them as statuses."""

    def __init__(self, store: Store, entry: Entry, *, every_s: float) -> None:
        self._store = store
        self._entry = entry
        self._every_s = every_s
        self._loop = asyncio.get_running_loop()
        self._told: set[str] = {entry.told.step} if entry.told is not None else set()
        self._waiting: dict[str, Report] = {}
        self._at: tuple[str, int, int] | None = None
        self._against: tuple[Cause, ...] = ()
        self._something = asyncio.Event()
        self._urgent = asyncio.Event()
        self._stopping = False

    def __call__(self, step: str, done: int, total: int) -> None:
        """`done` of `total` bytes of `step`. Safe to call from another thread."""
        self._loop.call_soon_threadsafe(self._take, step, done, total)

    def goes_on_against(self, unsafe: Unsafe | None) -> None:
        """What forbids the act, which goes on all the same; told with the step that it is at, and paced like
        it. Safe to call from another thread.
        """
        self._loop.call_soon_threadsafe(self._take_against, unsafe)

    def _take_against(self, unsafe: Unsafe | None) -> None:
        self._against = () if unsafe is None else (*unsafe.causes, Cause("written_on"))
        if self._at is not None:
            self._take(*self._at)

    def _take(self, step: str, done: int, total: int) -> None:
        self._at = (step, done, total)
        first = step not in self._told and step not in self._waiting
        if first and len(self._told | self._waiting.keys()) >= MOST_STEPS:
            return
        # Steps of a repeated flash were told before: weeks of repeats must not fill the outbox.
        thin = step in self._told or self._entry.tries > 0
        percent = min(100, max(0, done * 100 // total)) if total > 0 else None
        release = self._entry.release
        where = release.where(release.at) if release is not None and self._entry.begun else None
        reasons = [one for one in (where, sentence(self._against)) if one]
        self._waiting[step] = Report(
            status=status_word(self._entry.state),
            step=step,
            progress=percent,
            reason="; ".join(reasons) or None,
            causes=self._against,
            thin=thin,
        )
        self._something.set()
        if first:
            self._urgent.set()

    async def run(self) -> None:
        """Write what comes until `stop`, and then what is left."""
        while True:
            await self._something.wait()
            self._something.clear()
            self._urgent.clear()
            await self._flush()
            if self._stopping and not self._waiting:
                return
            with suppress(TimeoutError):
                async with timeout(self._every_s):
                    await self._urgent.wait()

    def stop(self) -> None:
        """The act is over."""
        self._stopping = True
        self._something.set()
        self._urgent.set()

    async def _flush(self) -> None:
        while self._waiting:
            step, report = next(iter(self._waiting.items()))
            del self._waiting[step]
            self._told.add(step)
            try:
                await self._store.tell(self._entry.job_id, self._entry.attempt, report)
            except StoreFailed as error:
                log.warning("telling.failed", job_id=self._entry.job_id, why=error.message)


@asynccontextmanager
async def telling(store: Store, entry: Entry, *, every_s: float) -> AsyncIterator[Teller]:
    """A teller that runs beside an act; at the act's end what is left is written."""
    teller = Teller(store, entry, every_s=every_s)
    task = asyncio.create_task(teller.run(), name="telling")
    try:
        yield teller
        # What the act said last still waits in the loop's queue.
        await asyncio.sleep(0)
        teller.stop()
        await task
        with suppress(StoreFailed):
            await store.flush_attempt(entry.job_id, entry.attempt)
    finally:
        task.cancel()
        await asyncio.wait({task})
