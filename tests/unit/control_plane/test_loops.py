"""A loop rests, is woken, outlives what goes wrong in it, and always ends when it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from control_plane.errors import Unavailable
from control_plane.loops import Loop, Wake
from shared.backoff import Backoff

QUICK = Backoff(first_s=0.001, most_s=0.004)


async def run_until(loop: Loop, condition: Callable[[], bool]) -> None:
    task = asyncio.create_task(loop.run())
    try:
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.001)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()


@pytest.mark.parametrize("error", [Unavailable("away"), ValueError("a bug")])
async def test_it_goes_on_after_a_failure_and_says_so(error: Exception) -> None:
    health: list[bool] = []
    steps = 0

    async def step() -> float:
        nonlocal steps
        steps += 1
        health.append(loop.healthy)
        if steps <= 3:
            raise error
        return 0.0

    loop = Loop(name="test", step=step, backoff=QUICK)
    await run_until(loop, lambda: steps >= 6)
    assert health[:6] == [True, False, False, False, True, True]


async def test_a_wake_ends_the_rest_and_none_is_lost() -> None:
    wake = Wake()
    steps = 0

    async def step() -> float:
        nonlocal steps
        steps += 1
        if steps < 10:
            # Set while the step runs: the rest that follows must not sleep over it.
            wake.set()
        return 3600.0

    await run_until(Loop(name="test", step=step, wake=wake), lambda: steps == 10)


async def test_a_busy_loop_lets_others_have_their_turn() -> None:
    async def step() -> float:
        return 0.0

    task = asyncio.create_task(Loop(name="busy", step=step).run())
    async with asyncio.timeout(20):
        for _ in range(100):
            await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_cancellation_together_with_a_wake_is_not_lost() -> None:
    wake = Wake()

    async def step() -> float:
        return 3600.0

    task = asyncio.create_task(Loop(name="test", step=step, wake=wake).run())
    for _ in range(5):
        await asyncio.sleep(0)
    wake.set()
    await asyncio.sleep(0)
    task.cancel()
    done, _ = await asyncio.wait({task}, timeout=20)
    assert done


async def test_rest_is_bounded_and_the_set_is_used_up() -> None:
    wake = Wake()
    wake.set()
    await asyncio.wait_for(wake.rest(3600.0), 20)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(wake.rest(3600.0), 0.02)
    rested: Awaitable[None] = wake.rest(0.001)
    await asyncio.wait_for(rested, 20)
