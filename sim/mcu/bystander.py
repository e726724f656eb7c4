"""A neighbour on the bus of the ECU that is flashed: sends a periodic frame, and can be told to be silent.

It knows sessions, TesterPresent, CommunicationControl and ControlDTCSetting, comes back to life by itself
when its tester is silent for S3, and writes down what was done to it.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import can

from sim.mcu.faults import Faults, FaultState
from sim.mcu.host import Host
from sim.mcu.isotp import Receiver, SendFailed, Transport, send_message
from sim.mcu.memory import FlashMap
from sim.mcu.pending import Pending
from sim.mcu.profile import Session, Sid, Timing
from sim.mcu.server import Served
from sim.mcu.uds_sessions import SESSIONS, SUB_FUNCTIONS, SessionServer

MOST_EVENTS = 1000
_NO_FLASH = FlashMap(sectors=(1024,))


@dataclass(frozen=True, kw_only=True)
class BystanderSettings:
    """One neighbour; identifiers over 0x7FF are 29-bit ones."""

    request_id: int = 0x7E1
    response_id: int = 0x7E9
    functional_id: int = 0x7DF
    periodic_id: int = 0x1A0
    period_s: float = 0.02
    fd: bool = False
    timing: Timing = field(default_factory=Timing)


@dataclass(frozen=True, kw_only=True)
class Event:
    """What changed: "extended", "default", "silenced", "audible", "dtcs_off", "dtcs_on"; when, in seconds of
    the node's clock.
    """

    at: float
    word: str


_SUB_FUNCTIONS = {**SUB_FUNCTIONS, Sid.SESSION: frozenset({Session.DEFAULT, Session.EXTENDED})}


class BystanderDevice:
    """See Device."""

    def __init__(self, settings: BystanderSettings, faults: FaultState, events: deque[Event]) -> None:
        self._settings = settings
        self._faults = faults
        self._events = events
        self._heard = frozenset({settings.request_id, settings.functional_id})
        self._host: Host
        self.node: SessionServer | None = None
        self.sent = 0

    def accepts(self, message: can.Message) -> bool:
        """See Device."""
        extended = message.arbitration_id > 0x7FF
        return (
            message.arbitration_id in self._heard
            and message.is_extended_id == extended
            and (self._settings.fd or not message.is_fd)
        )

    def run(self, host: Host, booted: Callable[[], None]) -> None:
        """See Device."""
        self._host = host
        settings = self._settings
        receiver = Receiver(self._send, clock=host.now, transport=Transport())
        self.node = node = SessionServer(
            sessions=SESSIONS,
            sub_functions=_SUB_FUNCTIONS,
            pending=Pending(host.wait, every_s=settings.timing.pending_every_s),
            timing=settings.timing,
            faults=self._faults,
            clock=host.now,
        )
        booted()
        due_at = host.now()
        while True:
            if host.now() >= due_at:
                due_at += settings.period_s
                if not node.quiet:
                    host.send(
                        settings.periodic_id,
                        self.sent.to_bytes(8, "big"),
                        extended=settings.periodic_id > 0x7FF,
                    )
                    self.sent += 1
            message = host.receive(max(0.0, due_at - host.now()))
            before = _words_of(node)
            node.tick()
            if message is not None:
                functional = message.arbitration_id == settings.functional_id
                request = receiver.feed(bytes(message.data), functional=functional)
                if request is not None:
                    node.handle(request, functional=functional, reply=self._reply)
            for word in _words_of(node):
                if word not in before:
                    self._events.append(Event(at=host.now(), word=word))

    def _send(self, data: bytes) -> None:
        settings = self._settings
        self._host.send(settings.response_id, data, extended=settings.response_id > 0x7FF, fd=settings.fd)

    def _reply(self, response: bytes) -> None:
        if self._faults.response.due():
            return
        try:
            # All its answers are single frames.
            send_message(response, self._send, lambda: None, self._host.wait, fd=self._settings.fd)
        except SendFailed:
            return


def _words_of(node: SessionServer) -> tuple[str, ...]:
    return (
        node.session.name.lower(),
        "silenced" if node.quiet else "audible",
        "dtcs_off" if node.dtcs_off else "dtcs_on",
    )


class Bystander(Served[BystanderDevice]):
    """The node on a bus; see Served. It has no flash to keep."""

    def __init__(
        self, bus: can.BusABC, settings: BystanderSettings | None = None, *, faults: Faults | None = None
    ) -> None:
        given = settings or BystanderSettings()
        self._events: deque[Event] = deque(maxlen=MOST_EVENTS)
        self._stack = ExitStack()
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="quarry-node-")))
        super().__init__(
            lambda _, state: BystanderDevice(given, state, self._events),
            bus,
            flash_file=folder / "flash.bin",
            memory=_NO_FLASH,
            faults=faults,
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            super().__exit__(kind, error, trace)

    @property
    def is_silenced(self) -> bool:
        """Whether it sends no normal messages now."""
        return self.device.node is not None and self.device.node.quiet

    @property
    def are_dtcs_off(self) -> bool:
        """Whether it stores no trouble codes now."""
        return self.device.node is not None and self.device.node.dtcs_off

    @property
    def sent(self) -> int:
        """Periodic frames since it last booted."""
        return self.device.sent

    @property
    def events(self) -> tuple[Event, ...]:
        """What was done to it, oldest first."""
        return tuple(self._events)
