"""One thread that does a flasher's blocking work, one act at a time, off the event loop.

An act can be interrupted: it is expected to look at `interrupt` often and to give up. A caller that is
cancelled sets it and waits until the act has ended, so that no act outlives its caller unnoticed;
both waits are bounded, should a driver hang.
"""

from __future__ import annotations

import asyncio
import queue
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from firmware_flashers.base import FlashError
from shared.errors import OtaError
from shared.logs import get_log

log = get_log("firmware_flashers")
T = TypeVar("T")

MOST_WAITING = 8
SHARE_EVERY_S = 0.0005
STOP_S = 10.0


def share_interpreter_often() -> None:
    """Let Python's threads take turns every half millisecond instead of every five.

    For programs that do other work beside a flasher: a flasher that got its frame waits for the
    interpreter until whoever has it gives way, and a ROM loader's every 8 bytes are such a wait. The
    setting is the whole process's, so a program makes it, not the library.
    """
    sys.setswitchinterval(SHARE_EVERY_S)


class WorkerHung(FlashError):
    """The thread does not come back from the driver."""

    code = "worker_hung"
    advice = "Restart the program; if it repeats, look at the CAN adapter and its driver."


class Worker:
    """Started by `start`, ended by `stop`; `call` from the event loop between them.

    `when_idle` runs in the thread after each `idle_s` seconds without an act, `at_end` as its last act.
    """

    def __init__(
        self, name: str, *, idle_s: float, when_idle: Callable[[], None], at_end: Callable[[], None]
    ) -> None:
        self.interrupt = threading.Event()
        self._idle_s = idle_s
        self._when_idle = when_idle
        self._at_end = at_end
        self._open = False
        self._hung = False
        self._acts: queue.Queue[tuple[Callable[[], Any], Future[Any]] | None] = queue.Queue(MOST_WAITING)
        self._ended: Future[None] = Future()
        self._turn = asyncio.Lock()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._open = True
        self._thread.start()

    async def call(self, act: Callable[[], T]) -> T:
        """Run `act` in the thread and return what it returns; callers take turns.

        Raises WorkerHung when an earlier act was interrupted and has not ended yet, FlashError when the
        worker does not run.
        """
        async with self._turn:
            if not self._open:
                raise FlashError(
                    f"{self._thread.name} is not open",
                    code="not_open",
                    retryable=False,
                    advice=OtaError.advice,
                    touched=False,
                )
            if self._hung:
                raise WorkerHung(f"{self._thread.name} hangs in the CAN driver")
            done: Future[T] = Future()
            self._acts.put_nowait((act, done))
            waiting = asyncio.wrap_future(done)
            try:
                return await asyncio.shield(waiting)
            except asyncio.CancelledError:
                # An act that has not begun never will; one that has is interrupted.
                if not done.cancel():
                    self.interrupt.set()
                    self._hung = True
                    await asyncio.wait({waiting}, timeout=STOP_S)
                    self._hung = not waiting.done()
                    if waiting.done() and not waiting.cancelled():
                        waiting.exception()  # the caller is gone: nobody else will ask for it
                raise

    async def stop(self) -> None:
        """Interrupt what runs, end the thread and wait for its end (bounded)."""
        self._open = False
        self.interrupt.set()
        self._acts.put_nowait(None)
        ended = asyncio.wrap_future(self._ended)
        await asyncio.wait({ended}, timeout=STOP_S)
        if not ended.done():
            log.error("flasher.worker_hung", thread=self._thread.name)
            return
        # Its last act was to say so: the thread itself is over within microseconds.
        self._thread.join(1.0)

    def _run(self) -> None:
        try:
            while True:
                try:
                    act = self._acts.get(timeout=self._idle_s)
                except queue.Empty:
                    self._idle()
                    continue
                if act is None:
                    return
                self._do(*act)
        finally:
            try:
                self._at_end()
            finally:
                self._ended.set_result(None)

    def _idle(self) -> None:
        try:
            self._when_idle()
        except Exception:
            # The thread must live for the next act, which meets the fault itself and says so.
            log.exception("flasher.idle_failed", thread=self._thread.name)

    def _do(self, act: Callable[[], Any], done: Future[Any]) -> None:
        # Cleared before the act counts as begun, so that no interrupt meant for it is lost.
        self.interrupt.clear()
        if not done.set_running_or_notify_cancel():
            return
        try:
            result = act()
        except BaseException as error:
            done.set_exception(error)
        else:
            done.set_result(result)
