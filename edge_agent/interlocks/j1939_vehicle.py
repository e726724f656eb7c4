"""Reads the vehicle's state from its J1939 bus: pinned senders, their four messages, and nothing else.

Promises: it never sends. Frames that are not wanted are dropped by the kernel, or by python-can's driver,
before they are decoded. A thread of its own empties the bus in a steady beat, so that neither a busy bus
nor a slow one holds the event loop. A frame counts as old as it may be: it is dated at the look before
the one that found it, so that a thread that got no time finds stale signals, never fresh ones. A bus that
fails, floods or goes bus-off makes the state unknown, and is opened anew.

Whoever talks diagnostics on the bus is a foreign tester, unless the identifier is one of this agent's own
components. SocketCAN tells frames of this machine from others' (MSG_DONTROUTE, Linux
Documentation/networking/can.rst 4.1.7), so that there a stranger is seen on our own identifiers too.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import can

from edge_agent.clock import Clock
from edge_agent.interlocks.heartbeat import Beats, Pulse, Sender
from edge_agent.interlocks.j1939 import GROUPS, Group, Spn, decode, make_id
from edge_agent.interlocks.safety import VehicleState
from edge_agent.interlocks.signals import Signals, Tracker
from firmware_flashers.can_driver import filters_in_driver
from firmware_flashers.can_link import BUS_OFF
from firmware_flashers.can_wait import receive
from shared.backoff import Backoff
from shared.logs import get_log
from shared.since_310 import Self

log = get_log("edge_agent.vehicle")

BEAT_S = 0.05
"""Half of the shortest period."""
MOST_FRAMES = 2000
"""In one beat: more than a full bus of 1 Mbit/s can carry in five; a bus that brings more is unknown."""
FOREIGN_FOR_S = 10.0
"""Twice S3 (ISO 14229-2): so long a tester that was heard is taken to be there."""
OPEN_BACKOFF = Backoff(first_s=0.5, most_s=30.0, jitter=0.3)
TELLS_OWN = frozenset({"socketcan"})
"""Interfaces that tell frames of this machine from others'."""
STOP_WITHIN_S = 5.0

_ANY_PRIORITY = 0x03FFFFFF
_DIAGNOSTIC_PGNS = (0xDA00, 0xDB00)
"""ISO 15765-2 normal fixed addressing: physical and functional (0x18DAxxxx, 0x18DBxxxx)."""
_FUNCTIONAL_11 = 0x7DF
_PHYSICAL_11 = range(0x7E0, 0x7F0)

Filters = list[can.typechecking.CanFilter]


@dataclass(frozen=True, kw_only=True)
class BusSource:
    """Which bus, and who is believed on it: source addresses for each message, by its PGN.

    `own_tx` and `own_rx` are the identifiers that this agent's own components are asked and answer with
    on this very bus; those over 0x7FF have 29 bits.
    """

    interface: str
    channel: str
    bitrate: int | None = None
    fd: bool = False
    senders: Mapping[int, tuple[int, ...]]
    own_tx: frozenset[int] = frozenset()
    own_rx: frozenset[int] = frozenset()


def filters_of(source: BusSource, beats: Iterable[Sender] = ()) -> Filters:
    """What is to be heard at all; `beats` are heartbeats that are listened for at the moment."""
    deaf = source.own_rx if source.interface in TELLS_OWN else source.own_rx | source.own_tx
    pinned = [make_id(pgn, sender) for pgn, senders in source.senders.items() for sender in senders]
    short = [one for one in (_FUNCTIONAL_11, *_PHYSICAL_11) if one not in deaf]
    filters: Filters = [{"can_id": one, "can_mask": _ANY_PRIORITY, "extended": True} for one in pinned]
    filters += [{"can_id": one, "can_mask": 0x7FF, "extended": False} for one in short]
    filters += [{"can_id": pgn << 8, "can_mask": 0x03FF0000, "extended": True} for pgn in _DIAGNOSTIC_PGNS]
    filters += [
        {"can_id": one.pgn << 8 | one.source, "can_mask": one.mask, "extended": True} for one in beats
    ]
    return filters


class Listening:
    """A heartbeat that the thread notes; see health.Hearing."""

    def __init__(self, pulse: Pulse, lock: threading.Lock, clock: Clock) -> None:
        self.pulse = pulse
        self._lock = lock
        self._clock = clock

    def beats(self) -> Beats:
        """What was heard so far."""
        with self._lock:
            return self.pulse.beats(self._clock.boot_s())


class J1939Vehicle:
    """A Vehicle and HearsBeats; its thread runs for the time of the `with` block."""

    def __init__(
        self, source: BusSource, clock: Clock, *, backoff: Backoff = OPEN_BACKOFF, beat_s: float = BEAT_S
    ) -> None:
        self._source = source
        self._clock = clock
        self._backoff = backoff
        self._beat_s = beat_s
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._trackers = self._fresh_trackers()
        self._pulses: tuple[Pulse, ...] = ()
        self._refilter = threading.Event()
        self._dark = True
        self._foreign_at: float | None = None
        self._told: str | None = None
        self._thread = threading.Thread(target=self._run, name="vehicle-j1939", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(STOP_WITHIN_S)

    async def state(self) -> VehicleState:
        """What was heard so far; takes no time."""
        now = self._clock.boot_s()
        with self._lock:
            if self._dark:
                return VehicleState(dark=True)
            foreign_at = self._foreign_at
            readings = tuple(
                one.reading(now) for by_spn in self._trackers.values() for one in by_spn.values()
            )
        foreign = foreign_at is not None and now - foreign_at < FOREIGN_FOR_S
        return VehicleState(signals=Signals(readings=readings, foreign_tester=foreign), age_s=0.0)

    @contextmanager
    def hearing(self, sender: Sender, *, every_s: float) -> Iterator[Listening]:
        """Listen for a heartbeat as well, from the thread's next look on; see health.HearsBeats."""
        # Two looks: the one that dates a frame, and the one at which the answer is asked for.
        pulse = Pulse(sender, every_s + 2 * self._beat_s)
        self._hear((*self._pulses, pulse))
        try:
            yield Listening(pulse, self._lock, self._clock)
        finally:
            self._hear(tuple(one for one in self._pulses if one is not pulse))

    def _hear(self, pulses: tuple[Pulse, ...]) -> None:
        with self._lock:
            self._pulses = pulses
        self._refilter.set()

    def _fresh_trackers(self) -> dict[int, dict[Spn, Tracker]]:
        """By the identifier without its priority."""
        return {
            make_id(pgn, sender, priority=0): {spn: Tracker(spn, sender) for spn in GROUPS[pgn].places}
            for pgn, senders in self._source.senders.items()
            for sender in senders
        }

    # --- the thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        failures = 0
        while not self._stop.is_set():
            bus: can.BusABC | None = None
            began = self._clock.boot_s()
            try:
                bus = self._open()
                self._listen(bus)
            # Drivers raise whatever their vendors' libraries do; all of it means: nothing is known.
            except Exception as error:
                # A bus that breaks as soon as it is open is no better than one that does not open.
                failures = 0 if self._clock.boot_s() - began > self._backoff.most_s else failures + 1
                self._go_dark(f"{type(error).__name__}: {error}")
            finally:
                if bus is not None:
                    with suppress(can.CanError, OSError):
                        bus.shutdown()
            self._stop.wait(self._backoff.delay_s(max(0, failures - 1)))

    def _open(self) -> can.BusABC:
        source = self._source
        more: dict[str, Any] = {"fd": True} if source.fd else {}
        if source.bitrate is not None:
            more["bitrate"] = source.bitrate
        bus = can.Bus(
            source.channel,
            interface=source.interface,
            ignore_config=True,
            can_filters=self._filters(),
            **more,
        )
        if not filters_in_driver(bus):
            # python-can would look at foreign frames one by one, and end a look that does not wait at each.
            bus.set_filters(None)
        return bus

    def _filters(self) -> Filters:
        self._refilter.clear()
        return filters_of(self._source, (one.sender for one in self._pulses))

    def _listen(self, bus: can.BusABC) -> None:
        in_driver = filters_in_driver(bus)
        with self._lock:
            self._trackers = self._fresh_trackers()
            for pulse in self._pulses:
                pulse.forget()
            self._dark = False
        self._told = None
        log.info("vehicle.bus_opened", interface=self._source.interface, channel=self._source.channel)
        looked_at = self._clock.boot_s()
        while not self._stop.wait(self._beat_s):
            now = self._clock.boot_s()
            if in_driver and self._refilter.is_set():
                bus.set_filters(self._filters())
            for _ in range(MOST_FRAMES):
                message = receive(bus, 0.0)
                if message is None:
                    break
                self._take(message, looked_at)
            else:
                raise can.CanOperationError(f"over {MOST_FRAMES} frames in a beat: nobody can follow")
            looked_at = now

    def _take(self, message: can.Message, at: float) -> None:
        if message.is_error_frame:
            if message.arbitration_id & BUS_OFF:
                raise can.CanOperationError("the controller went bus-off")
            return
        if message.is_remote_frame:
            return
        one = message.arbitration_id
        pulses = [pulse for pulse in self._pulses if message.is_extended_id and pulse.sender.is_of(one)]
        if pulses:
            with self._lock:
                for pulse in pulses:
                    pulse.note(at)
        by_spn = self._trackers.get(one & _ANY_PRIORITY) if message.is_extended_id else None
        if by_spn is not None:
            decoded = decode(_group_of(one), bytes(message.data))
            with self._lock:
                for spn, tracker in by_spn.items():
                    tracker.note(at, decoded[spn])
        elif self._is_foreign(message):
            with self._lock:
                # Dated at its latest: a stranger must not be forgotten early.
                self._foreign_at = self._clock.boot_s()

    def _is_foreign(self, message: can.Message) -> bool:
        one, extended = message.arbitration_id, message.is_extended_id
        if extended:
            diagnostic = one >> 8 & 0x3FF00 in _DIAGNOSTIC_PGNS
        else:
            diagnostic = one == _FUNCTIONAL_11 or one in _PHYSICAL_11
        if not diagnostic or one in self._source.own_rx:
            return False
        if one in self._source.own_tx:
            return self._source.interface in TELLS_OWN and message.is_rx
        return True

    def _go_dark(self, why: str) -> None:
        with self._lock:
            self._dark = True
            for pulse in self._pulses:
                pulse.forget()
        if why != self._told:
            self._told = why
            log.warning("vehicle.bus_lost", interface=self._source.interface, why=why[:500])


def _group_of(arbitration_id: int) -> Group:
    return GROUPS[arbitration_id >> 8 & 0x3FFFF]


def address_of(tx_id: int) -> int | None:
    """The J1939 address of an ECU that is asked by normal fixed addressing; None for other identifiers."""
    is_physical = tx_id > 0x7FF and tx_id >> 8 & 0x3FF00 == _DIAGNOSTIC_PGNS[0]
    return tx_id >> 8 & 0xFF if is_physical else None
