"""Several of the agent's parts ask the ECUs what they hold, at the same time at the start."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from edge_agent.update.ecus import ComponentAccess, Ecus, Limits
from firmware_flashers.base import Identity


class Ecu:
    """Answers once it is told to."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.asked = asyncio.Event()
        self.may_answer = asyncio.Event()
        self.answers = 0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Any]:
        yield self

    async def identify(self) -> Identity:
        self.asked.set()
        await self.may_answer.wait()
        self.answers += 1
        return Identity(
            kind=self.kind, hardware="rev-b", version="1.0.0", sha256="5e" * 32, in_bootloader=False
        )


async def test_whoever_asks_second_hears_of_every_ecu_too() -> None:
    """Else the first manifest after a start is empty, and stays the last one until something is flashed."""
    parts = {"brake": Ecu("brake-controller"), "body": Ecu("body-controller")}
    ecus = Ecus(
        {
            name: ComponentAccess(kind=ecu.kind, hardware="rev-b", open=ecu.open)
            for name, ecu in parts.items()
        },
        Limits(),
    )
    first = asyncio.create_task(ecus.installed())
    await parts["brake"].asked.wait()
    second = asyncio.create_task(ecus.installed())
    recent = asyncio.create_task(ecus.installed(oldest_s=60.0))
    await asyncio.sleep(0)
    for ecu in parts.values():
        ecu.may_answer.set()
    async with asyncio.timeout(10):
        for asked in (first, second, recent):
            assert [one.component for one in await asked] == ["brake", "body"]
    assert parts["brake"].answers == 2, "what was said a moment ago is asked for again"
