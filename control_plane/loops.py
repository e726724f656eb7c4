"""How the office's workers run: a loop that rests, is woken, and outlives an outage.

A worker is one `step`, a function that does a bounded amount of work and returns how long it may
rest. The table is the truth and an event only wakes, so every rest is bounded and a lost wake costs
a moment, not a job.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from control_plane.errors import Unavailable
from shared.backoff import Backoff
from shared.logs import get_log

log = get_log("control_plane.loops")

OUTAGE_BACKOFF = Backoff(first_s=0.2, most_s=5.0, jitter=0.3)


class Wake:
    """Ends a rest early. Set it after a commit, from the loop's own thread; it costs nothing."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        """There may be work."""
        self._event.set()

    async def rest(self, most_s: float) -> None:
        """Return when set, at once if it has been set since the last rest, or after `most_s`."""
        try:
            # Not wait_for: in Python 3.11 it loses a cancellation that comes together with the wake.
            async with asyncio.timeout(most_s):
                await self._event.wait()
        except TimeoutError:
            return
        finally:
            self._event.clear()


@dataclass(kw_only=True)
class Loop:
    """One worker's loop. `healthy` is what `/readyz` asks: did the newest step end well?

    An outage (Unavailable) is logged once and waited out with backoff. An unforeseen error is
    logged with its trace each time and the loop goes on: one bad row must stop neither the other
    loops nor, by a restart that meets it again, the office.
    """

    name: str
    step: Callable[[], Awaitable[float]]
    wake: Wake = field(default_factory=Wake)
    backoff: Backoff = OUTAGE_BACKOFF
    healthy: bool = True

    async def run(self) -> None:
        """Run until cancelled."""
        failures = 0
        while True:
            try:
                rest_s = await self.step()
            except Unavailable as error:
                if failures == 0:
                    log.warning("loop.outage_began", loop=self.name, error=error.message)
                rest_s = self._failed(failures)
                failures += 1
            except Exception:
                log.exception("loop.failed", loop=self.name)
                rest_s = self._failed(failures)
                failures += 1
            else:
                if failures:
                    log.info("loop.outage_ended", loop=self.name, failures=failures)
                failures = 0
                self.healthy = True
            if rest_s > 0:
                await self.wake.rest(rest_s)
            else:
                # Even a loop that always has work lets the others have their turn.
                await asyncio.sleep(0)

    def _failed(self, failures: int) -> float:
        self.healthy = False
        return self.backoff.delay_s(failures)
