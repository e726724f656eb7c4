"""responsePending (NRC 0x78, ISO 14229-1:2020 clause 8.7): tells the tester that an answer takes time."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from sim.mcu.profile import Nrc

Reply = Callable[[bytes], None]

UNNOTICED_S = 0.02
"""What fits into P2 (50 ms) with the rest of an answer needs no word."""


class Pending:
    """The time that the present request takes. `wait` passes seconds."""

    def __init__(self, wait: Callable[[float], None], *, every_s: float) -> None:
        self._wait = wait
        self._every_s = every_s
        self._sid = 0
        self._reply: Reply = lambda _: None
        self.said = False

    def begin(self, sid: int, reply: Reply) -> None:
        """A new request is served."""
        self._sid, self._reply, self.said = sid, reply, False

    def say(self) -> None:
        """Answer that the answer will come; from here on it must."""
        self._reply(bytes([0x7F, self._sid, Nrc.RESPONSE_PENDING]))
        self.said = True

    def say_for_ever(self) -> NoReturn:
        """Never come to an answer: only a power cut ends it."""
        while True:
            self.say()
            self._wait(self._every_s)

    def take(self, seconds: float) -> None:
        """Let the time of an act pass; the tester hears of it before P2 is over, and then well within P2*."""
        if seconds > UNNOTICED_S and not self.said:
            self.say()
        while seconds > 0:
            step = min(seconds, self._every_s)
            self._wait(step)
            seconds -= step
            if seconds > 0:
                self.say()
