"""The time that a conversation on a bus lives in: the machine's, or a simulated wire's.

Code that talks on a bus takes its times from the link's clock, so that the same code runs on a real
bus and on a model of one, where a minute of the wire passes in a second.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Clock(Protocol):
    """Seconds that only go forward, from an arbitrary beginning."""

    def now(self) -> float: ...

    def sleep(self, seconds: float) -> None: ...

    def attending(self) -> AbstractContextManager[None]:
        """Entered by a thread for as long as it converses: simulated time waits for it meanwhile."""
        ...


class _Monotonic:
    def now(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def attending(self) -> AbstractContextManager[None]:
        return nullcontext()


MONOTONIC: Clock = _Monotonic()
"""The machine's own clock."""
