"""Work that is never left half-done behind a cancelled task's back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def finish_in_thread(act: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run blocking `act` in a thread; a cancellation waits for its end and only then goes on.

    For acts on local files, which end by themselves: a thread can't be stopped, and one that goes on
    writing a file that the next task has opened again would spoil it.
    """
    return await finish(asyncio.to_thread(act, *args, **kwargs))


async def finish(act: Coroutine[Any, Any, T]) -> T:
    """Await `act`, which must be bounded in time; a cancellation waits for its end and then goes on."""
    work = asyncio.ensure_future(act)
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait({work})
        # Taken, so that the loop does not report it: the cancellation is what counts.
        _ = work.cancelled() or work.exception()
        raise
