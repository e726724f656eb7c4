"""Looks at the interlocks while an image is written, and suspends what may be suspended.

An ECU that runs from its other slot meanwhile is left alone when they are lost: what was written is no
image yet, and nothing needs it. One that was erased is written to its end: whole it is safest, and its
reset waits (update_machine).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from edge_agent.update.update_events import Unsafe
from shared.logs import get_log

log = get_log("edge_agent.watch")

LOOKS_TO_BELIEVE = 2
"""So many looks on end must forbid it: one lost moment must not throw a half-written slot away."""

Look = Callable[[], Awaitable[Unsafe | None]]
Tell = Callable[[Unsafe | None], None]


async def watched(
    stage: Coroutine[Any, Any, None], look: Look, *, every_s: float, may_suspend: bool, tell: Tell
) -> Unsafe | None:
    """Write by `stage`, looking every `every_s`; returns why it was suspended, None when it is written.

    Where it must not be suspended `tell` is called when the interlocks are lost, when other ones are, and
    when none is any more. Raises what `stage` raises.
    """
    writing = asyncio.create_task(stage, name="acts-stage")
    watch = asyncio.create_task(_watch(look, every_s, may_suspend, tell), name="acts-watch")
    try:
        await asyncio.wait({writing, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not writing.done():
            unsafe = watch.result() if watch.exception() is None else None
            if unsafe is None:
                # A look that fails must not cut a flash short; the reset is asked for anew.
                log.error("acts.watch_failed", why=str(watch.exception()))
            else:
                log.warning("acts.suspended", why=unsafe.why)
                writing.cancel()
            await asyncio.wait({writing})
            if writing.cancelled():
                return unsafe
        writing.result()
        return None
    finally:
        for task in (writing, watch):
            task.cancel()
        await asyncio.wait({writing, watch})
        # Taken, so that the loop does not report it: what is under way here counts.
        _ = writing.cancelled() or writing.exception()


async def _watch(look: Look, every_s: float, may_suspend: bool, tell: Tell) -> Unsafe:
    looks = 0
    told: Unsafe | None = None
    while True:
        await asyncio.sleep(every_s)
        unsafe = await look()
        looks = looks + 1 if unsafe is not None else 0
        if unsafe is not None and looks < LOOKS_TO_BELIEVE:
            continue
        if unsafe is not None and may_suspend:
            return unsafe
        if unsafe != told:
            log.warning("acts.goes_on_against", why=None if unsafe is None else unsafe.why)
            tell(unsafe)
            told = unsafe
