"""Other nodes of the bus that keep quiet while an ECU is flashed, and note no trouble codes of its absence.

A flash shares a bus with what the other ECUs send all the time. The nodes that the profile names (and no
others: never the sender of a signal that an interlock listens to) are asked, each by its own
identifiers, to open an extended session, to stop noting trouble codes (ControlDTCSetting, ISO 14229-1 10.8)
and to stop sending (CommunicationControl, 10.5). A suppressed TesterPresent keeps that; without it
each node returns to normal by itself after S3 (5 s), so that a tester that dies leaves nothing behind.
On every other way out they are asked to return, in bounded time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from firmware_flashers import uds
from firmware_flashers.base import BusDown, FlashError
from firmware_flashers.can_link import MOST_11_BITS, CanLink
from firmware_flashers.isotp import Interrupted
from firmware_flashers.isotp_frames import CLASSIC_BYTES, SHORT_SINGLE_BYTES, Format
from firmware_flashers.uds import UdsClient
from firmware_flashers.uds_profile import QuietNode, UdsProfile
from shared.logs import get_log

log = get_log("firmware_flashers")

SLICE_S = 0.05
MOST_STALE_FRAMES = 1000
RESTORE_MARGIN_S = 0.2
RESTORE_REQUEST_S = 1.0
RESTORE_TRIES = 2
RESTORE_S = 5.0
"""All nodes together; those that are left then are told, not asked."""


class ShortMessages:
    """A uds.Transport for the few short requests that a node gets: single frames only, both ways."""

    def __init__(
        self,
        link: CanLink,
        tx_id: int,
        rx_id: int | None,
        *,
        padding: int,
        fd: bool,
        is_interrupted: Callable[[], bool],
    ) -> None:
        """`rx_id` None: nobody answers."""
        self._link = link
        self._tx_id = tx_id
        self._rx_id = rx_id
        self._format = Format(fd=fd, padding=padding)
        self._extended = tx_id > MOST_11_BITS
        self._fd = fd
        self.is_interrupted = is_interrupted

    def send(self, payload: bytes, *, timeout_s: float) -> None:
        """Forget what came before, then send one frame. Raises BusDown, Interrupted."""
        del timeout_s  # one frame's time is the link's own bound
        for _ in range(MOST_STALE_FRAMES):
            if self._link.receive(0.0) is None:
                break
        self._look_up()
        self.send_single(payload)

    def receive(self, timeout_s: float) -> bytes | None:
        """The next single frame's payload from the node. Raises BusDown, Interrupted."""
        clock = self._link.clock
        deadline = clock.now() + timeout_s
        while (left_s := deadline - clock.now()) > 0:
            self._look_up()
            message = self._link.receive(min(left_s, SLICE_S))
            if (
                message is None
                or message.arbitration_id != self._rx_id
                or message.is_extended_id != self._extended
            ):
                continue
            payload = _single(message.data)
            if payload is not None:
                return payload
        return None

    def send_single(self, payload: bytes) -> None:
        """Send one frame, even when interrupted. Raises BusDown."""
        self._link.send(self._tx_id, self._format.single(payload), extended=self._extended, fd=self._fd)

    def _look_up(self) -> None:
        if self.is_interrupted():
            raise Interrupted("the step was interrupted")


def _single(data: bytes | bytearray) -> bytes | None:
    """The payload of a short single frame (ISO 15765-2 9.6.2); None for any other."""
    size = data[0] if data else 0
    if len(data) > CLASSIC_BYTES and size == 0 and len(data) > 2:
        return bytes(data[2 : 2 + data[1]]) if data[1] <= len(data) - 2 else None
    return bytes(data[1 : 1 + size]) if 0 < size <= min(SHORT_SINGLE_BYTES, len(data) - 1) else None


class QuietNodes:
    """The nodes of one profile, on the link of its ECU; from one thread."""

    def __init__(
        self,
        link: CanLink,
        profile: UdsProfile,
        *,
        fd: bool,
        functional_id: int | None,
        is_interrupted: Callable[[], bool],
    ) -> None:
        """`functional_id` is the identifier that all nodes hear, where the bus has one."""
        self._clock = link.clock
        self._timing = profile.timing
        self._dtc_off = profile.dtc_off
        self._interrupted = is_interrupted
        speak = partial(ShortMessages, link, padding=profile.padding, fd=fd, is_interrupted=self._look_up)
        self._transports = {node: speak(node.tx_id, node.rx_id) for node in profile.quiet_nodes}
        self._to_all = None if functional_id is None else speak(functional_id, None)
        self._held: list[QuietNode] = []
        self._due = 0.0

    @contextmanager
    def held(self, *, needed: bool) -> Iterator[None]:
        """All nodes are quiet for the time of the block, and asked back on every way out of it.

        When a node does not do as asked: with `needed` what it said is raised, before the block begins;
        else the block runs with what could be had.
        """
        try:
            for node in self._transports:
                try:
                    self._silence(node)
                except (BusDown, Interrupted):
                    raise
                except FlashError as error:
                    if needed:
                        raise
                    log.warning("flasher.node_not_quiet", node=hex(node.tx_id), error=error.message)
            yield
        finally:
            self._restore()

    def keep(self) -> None:
        """Send what keeps the nodes' sessions, when it is due."""
        if not self._held or self._clock.now() < self._due:
            return
        self._due = self._clock.now() + self._timing.tester_present_s
        request = bytes([uds.TESTER_PRESENT, uds.SUPPRESS_ANSWER])
        if self._to_all is not None:
            self._to_all.send_single(request)
        else:
            for node in self._held:
                self._transports[node].send_single(request)

    def _look_up(self) -> bool:
        self.keep()
        return self._interrupted()

    def _silence(self, node: QuietNode) -> None:
        client = UdsClient(self._transports[node], self._timing, clock=self._clock, who=_name(node))
        if not self._held:
            self._due = self._clock.now() + self._timing.tester_present_s
        # From its first request on: what was answered may be lost, and is undone all the same.
        self._held.append(node)
        client.change_session(uds.EXTENDED_SESSION)
        if self._dtc_off:
            client.set_dtcs(uds.DTC_OFF)
        client.set_communication(uds.ENABLE_RX_AND_DISABLE_TX)

    def _restore(self) -> None:
        """Ask every node back to normal; whatever it says, it returns by itself after S3."""
        held, self._held = self._held, []
        timing = replace(
            self._timing,
            margin_s=RESTORE_MARGIN_S,
            request_s=RESTORE_REQUEST_S,
            session_s=RESTORE_REQUEST_S,
            silent_tries=RESTORE_TRIES,
            busy_tries=RESTORE_TRIES,
        )
        until = self._clock.now() + RESTORE_S
        for node in held:
            transport = self._transports[node]
            if self._clock.now() >= until:
                self._send_back(transport)
                continue
            # A step that was cancelled must still clean up behind itself.
            transport.is_interrupted = lambda: False
            client = UdsClient(transport, timing, clock=self._clock, who=_name(node))
            try:
                client.set_communication(uds.ENABLE_RX_AND_TX)
                if self._dtc_off:
                    client.set_dtcs(uds.DTC_ON)
                client.change_session(uds.DEFAULT_SESSION)
            except BusDown as error:
                log.warning("flasher.nodes_not_restored", error=error.message)
                return
            except FlashError as error:
                log.warning("flasher.node_not_restored", node=hex(node.tx_id), error=error.message)
                self._send_back(transport)
            finally:
                transport.is_interrupted = self._look_up

    @staticmethod
    def _send_back(transport: ShortMessages) -> None:
        """The default session ends all of it; whether that arrived is not asked any more."""
        try:
            transport.send_single(bytes([uds.SESSION_CONTROL, uds.DEFAULT_SESSION]))
        except BusDown as error:
            log.warning("flasher.nodes_not_restored", error=error.message)


def _name(node: QuietNode) -> str:
    return f"node {node.tx_id:#x}, which is to keep quiet,"


class KeptInterrupt(threading.Event):
    """A step's interrupt as transports look at it between frames: the moment to keep nodes quiet, too.

    So they are kept however long the ECU takes with one block or one answer.
    """

    def __init__(self, interrupt: threading.Event, quiet: QuietNodes) -> None:
        super().__init__()
        self._interrupt = interrupt
        self._quiet = quiet

    def is_set(self) -> bool:
        """Whether the step is to stop."""
        self._quiet.keep()
        return self._interrupt.is_set()
