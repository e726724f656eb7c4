"""Time that moves only when everybody who works in it waits: a minute of a wire passes in a second.

A thread *works* in this time for as long as it is inside `working`. While one of them does anything but
wait here, time stands still, however slow the machine is; when all wait, time jumps to what comes
next: what the world has due (a frame's end, say), or the first time-out. It moves only while somebody
*attends* (a tester does, a simulated part does not), so that parts don't grow old between two steps.

Threads that don't work in it may wait here too: their time-outs are those of the real clock.

Cheap by construction: one lock, a gate for each thread, and the thread that waits last moves the time
itself, so that threads change only when another one has something to do.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf
from typing import Protocol

STALL_S = 60.0
"""Real seconds after which an attending thread asks who keeps the time from moving."""
_OVER = -inf
"""Stands for a time-out that has come."""


class World(Protocol):
    """What happens in the time by itself. Called with the time's lock held."""

    def next_at(self) -> float:
        """When something happens next, infinity for never; may wake threads on the way."""
        ...

    def happen(self) -> None:
        """Let it happen: the time has come."""
        ...


class Stalled(Exception):
    """Time stands still because a thread that works in it neither waits in it nor ends."""


class _Seat:
    """A thread in this time."""

    __slots__ = ("attends", "blocked", "gate", "name", "until", "works")

    def __init__(self) -> None:
        self.name = ""
        self.gate = threading.Lock()
        self.gate.acquire()
        self.blocked = False
        self.until = inf
        self.works = 0
        self.attends = 0


@dataclass(eq=False)
class Place:
    """Something to wait for. `nudged`: the next wait here ends at once."""

    waiters: list[_Seat] = field(default_factory=list)
    nudged: bool = False


class VirtualTime:
    """The time; `now` is in seconds from 0.

    Everything but `working` and `held` is called with `lock` held. `running` counts the working threads
    that don't wait.
    """

    def __init__(self, world: World) -> None:
        self.lock = threading.Lock()
        self.now = 0.0
        self.running = 0
        self._world = world
        self._attending = 0
        self._holds = 0
        self.ended = False
        self._seats: dict[int, _Seat] = {}
        self._workers: list[_Seat] = []
        self._mover: _Seat | None = None
        self._moving = False
        self._moves = 0
        # Woken, and not told yet: a thread that is told while this one still runs only gets in its way.
        self._woken: list[_Seat] = []

    @contextmanager
    def working(self, *, attends: bool) -> Iterator[None]:
        """The calling thread works in this time during the block, and with `attends` lets it move."""
        with self.lock:
            seat = self._seat()
            seat.works += 1
            if seat.works == 1:
                seat.name = threading.current_thread().name
                self.running += 1
                self._workers.append(seat)
            if attends:
                seat.attends += 1
                self._attending += 1
        try:
            yield
        finally:
            with self.lock:
                seat.works -= 1
                if seat.works == 0:
                    self.running -= 1
                    self._workers.remove(seat)
                if attends:
                    seat.attends -= 1
                    self._attending -= 1
                self.move()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Time stands still during the block, whoever attends."""
        with self.lock:
            self._holds += 1
        try:
            yield
        finally:
            with self.lock:
                self._holds -= 1
                self.move()

    def end(self) -> None:
        """Nobody waits here any more, now and later."""
        self.ended = True
        for seat in self._seats.values():
            self._wake(seat)
        self._tell()

    # --- waiting ---------------------------------------------------------------------------------

    def wait(self, place: Place, seconds: float | None) -> bool:
        """Wait at a place until it is woken (True); False after `seconds` or when it was nudged.

        Raises Stalled.
        """
        if self._take_nudge(place) or self.ended:
            return False
        seat = self._seat()
        works = bool(seat.works)
        seat.blocked = True
        seat.until = inf if seconds is None or not works else self.now + seconds
        place.waiters.append(seat)
        if works:
            self.running -= 1
        try:
            self._move(seat)
            if self._is_blocked(seat):
                self._stand(seat, inf if works or seconds is None else seconds)
        finally:
            self._tell()
            place.waiters.remove(seat)
            if self._is_blocked(seat):
                seat.blocked = False
                seat.until = _OVER
                if works:
                    self.running += 1
            # Whoever woke it between a real time-out and now has opened its gate.
            seat.gate.acquire(blocking=False)
        return not self._take_nudge(place) and seat.until != _OVER

    def wake(self, place: Place) -> None:
        """Let all go on that wait there."""
        for seat in place.waiters:
            self._wake(seat)
        if not self._moving:
            self._tell()

    def nudge(self, place: Place) -> None:
        """End the present or next wait there without what it waits for."""
        place.nudged = True
        self.wake(place)

    def _wake(self, seat: _Seat) -> None:
        if not seat.blocked:
            return
        seat.blocked = False
        if seat.works:
            self.running += 1
        if seat is not self._mover:
            self._woken.append(seat)

    def _tell(self) -> None:
        for seat in self._woken:
            seat.gate.release()
        self._woken.clear()

    def _stand(self, seat: _Seat, real_s: float) -> None:
        """Until somebody wakes this thread or `real_s` are over; the lock is given away meanwhile."""
        while True:
            moves = self._moves
            self._tell()
            self.lock.release()
            try:
                woken = seat.gate.acquire(timeout=min(real_s, STALL_S))
            finally:
                self.lock.acquire()
            if woken or real_s <= STALL_S:
                return
            real_s -= STALL_S
            if seat.attends and self._moves == moves and self.running and not self._holds:
                names = ", ".join(one.name for one in self._workers if not one.blocked)
                raise Stalled(f"simulated time has not moved for {STALL_S:g} s: it waits for {names}")

    # --- moving ----------------------------------------------------------------------------------

    def move(self) -> None:
        """Let time pass for as long as nobody has anything to do at its present moment."""
        self._move(None)
        self._tell()

    def _all_wait(self) -> bool:
        return self.running == 0

    def _move(self, mover: _Seat | None) -> None:
        self._moving, self._mover = True, mover
        while self._all_wait() and self._attending and not self._holds and not self.ended:
            at = self._world.next_at()
            if not self._all_wait():
                break
            first = min([seat.until for seat in self._workers], default=inf)
            if at <= first:
                if at == inf:
                    break
                self.now = at
                self._world.happen()
            else:
                self.now = first
                for seat in self._workers:
                    if seat.until <= first:
                        self._wake(seat)
                        seat.until = _OVER
            self._moves += 1
        self._moving, self._mover = False, None

    @staticmethod
    def _take_nudge(place: Place) -> bool:
        nudged, place.nudged = place.nudged, False
        return nudged

    @staticmethod
    def _is_blocked(seat: _Seat) -> bool:
        return seat.blocked

    def _seat(self) -> _Seat:
        me = threading.get_ident()
        seat = self._seats.get(me)
        if seat is None:
            seat = self._seats[me] = _Seat()
        return seat
