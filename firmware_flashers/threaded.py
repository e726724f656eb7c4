"""What all flashers over CAN have in common: one thread for one ECU, and errors that keep their promise.

A flasher is an async context manager: its conversation is opened when the block is entered and closed
when it is left, on every path. Its steps run in its own thread, one at a time; a step may be cancelled
and stops within a frame or two; whatever goes wrong leaves as a FlashError that says `touched`.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Generic, TypeVar

from firmware_flashers.base import FlashError, OnProgress, Progress
from firmware_flashers.can_link import CanLink, Link, nothing_touched
from firmware_flashers.worker import Worker
from shared.errors import OtaError
from shared.logs import get_log
from shared.since_310 import Self
from shared.states import Step

log = get_log("firmware_flashers")
S = TypeVar("S")
T = TypeVar("T")

Report = Callable[[Step, int, int], None]
"""Called in the flasher's thread: a step, bytes done, bytes in all."""


class ThreadedFlasher(ABC, Generic[S]):
    """`S` is the blocking object whose methods are the steps; it is made and used in the thread only."""

    def __init__(self, *, component: str, link: Link, rx_ids: tuple[int, ...] | None, idle_s: float) -> None:
        """`rx_ids` are the identifiers to hear (None: all), `idle_s` parts two `_keep_alive`."""
        self._component = component
        self._link = link
        self._rx_ids = rx_ids
        self._can: CanLink | None = None
        self._steps: S | None = None
        self._stack = ExitStack()
        self._worker = Worker(
            f"flasher-{component}", idle_s=idle_s, when_idle=self._rest, at_end=self._stack.close
        )

    @abstractmethod
    def _converse(self, can_link: CanLink) -> S:
        """Make the steps over an open conversation."""

    def _keep_alive(self, steps: S) -> None:
        """Called in the thread while no step runs."""

    async def __aenter__(self) -> Self:
        """Open the conversation. Raises BusDown."""
        self._worker.start()
        try:
            await self._worker.call(self._open)
        except BaseException:
            await self._worker.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the conversation and end the thread."""
        await self._worker.stop()

    def _open(self) -> None:
        with nothing_touched():
            can_link = self._link.connect(self._rx_ids)
            self._stack.callback(can_link.close)
            self._can = can_link
            self._steps = self._converse(can_link)

    def _rest(self) -> None:
        if self._steps is None:
            return
        try:
            self._keep_alive(self._steps)
        except FlashError as error:
            log.warning("flasher.session_not_kept", component=self._component, error=error.message)

    async def _step(self, act: Callable[[S], T], *, touched: Callable[[S], bool] | bool = True) -> T:
        """Run one step in the thread. `touched` says, after a failure, what may have been erased.

        Raises FlashError and nothing else.
        """

        def is_touched(steps: S) -> bool:
            return touched if isinstance(touched, bool) else touched(steps)

        def guarded() -> T:
            steps, can_link = self._steps, self._can
            # The worker runs only between __aenter__, which made them, and __aexit__.
            assert steps is not None
            assert can_link is not None
            try:
                with can_link.clock.attending():
                    return act(steps)
            except FlashError as error:
                error.touched = is_touched(steps)
                raise
            except Exception as error:
                log.exception("flasher.step_failed_unexpectedly", component=self._component)
                raise FlashError(
                    f"{self._component}: {type(error).__name__}: {error}",
                    code="internal",
                    advice=OtaError.advice,
                    touched=is_touched(steps),
                ) from error

        return await self._worker.call(guarded)

    def _reporter(self, progress: OnProgress) -> Report:
        """Carries a thread's reports to `progress` on the event loop."""
        loop = asyncio.get_running_loop()

        def report(step: Step, done_bytes: int, total_bytes: int) -> None:
            if loop.is_closed():
                return
            loop.call_soon_threadsafe(
                progress, Progress(step=step, done_bytes=done_bytes, total_bytes=total_bytes)
            )

        return report
