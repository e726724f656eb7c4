"""ISO-TP (ISO 15765-2:2016) as a blocking transport: whole payloads in and out of one thread.

Promises: half duplex, as UDS is: what the ECU says while a request is under way answers an earlier one
and is dropped, so that no late answer passes for a new one. A send returns when its last frame is with
the driver, so that time-outs of UDS begin there. Every wait is bounded and takes its time from the
link's clock; an interrupt is seen within a frame or two. Classic CAN, and CAN FD with frames of 64
bytes. Payloads never reach a log.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from firmware_flashers.base import FlashError, NoAnswer
from firmware_flashers.can_link import MOST_11_BITS, CanLink
from firmware_flashers.isotp_frames import (
    AT_ONCE,
    HEADS,
    Ask,
    FlowControl,
    FlowStatus,
    Format,
    Reassembler,
    read_flow_control,
)

MOST_PAYLOAD_BYTES = 4095
SLICE_S = 0.05
"""Longest wait without a look at the interrupt flag."""
MOST_WAIT_FRAMES = 100
"""N_WFTmax of ISO 15765-2 9.7: flow controls in a row that only ask to wait."""


class Interrupted(FlashError):
    """The caller asked to stop in the middle of a step."""

    code = "interrupted"
    advice = "Start the same step again from its beginning."


class NotSent(NoAnswer):
    """The ECU surely did not get the whole payload, so that sending it again is harmless."""


class EcuOverflow(NotSent):
    """The ECU says that the payload is longer than it can take (flow status OVFLW)."""

    code = "ecu_overflow"
    advice = "Set a smaller block size in this ECU's profile."


def too_long(payload: bytes, most_bytes: int) -> FlashError:
    """The error for a payload that is no message."""
    return FlashError(
        f"{len(payload)} bytes are more than the {most_bytes} of one message",
        code="payload_too_long",
        retryable=False,
        advice="Set a smaller block size in this ECU's profile.",
    )


@dataclass(frozen=True, kw_only=True)
class IsoTpAddress:
    """Normal addressing, ISO 15765-2 10.3: one identifier each way, all 11-bit or all 29-bit.

    `functional_id` is the one that all ECUs hear.
    """

    tx_id: int
    rx_id: int
    functional_id: int | None = None

    @property
    def extended(self) -> bool:
        """True for 29-bit identifiers."""
        return max(self.tx_id, self.rx_id) > MOST_11_BITS


class SingleFrames:
    """What every transport sends by the link itself: payloads of one frame that nobody waits for."""

    def __init__(self, link: CanLink, address: IsoTpAddress, layout: Format) -> None:
        self._link = link
        self._address = address
        self._extended = address.extended
        self._format = layout

    def send_single(self, payload: bytes) -> None:
        """Send a payload of one frame that nobody answers, even when interrupted. Raises BusDown."""
        self._send_frame(self._format.single(payload))

    def send_functional(self, payload: bytes) -> None:
        """Send a payload of one frame to all ECUs, even when interrupted; answers are not collected.

        Functional requests are single frames only (ISO 15765-2 8.5). Raises BusDown.
        """
        if self._address.functional_id is None:
            raise ValueError("no functional identifier is set")
        frame = self._format.single(payload)
        self._link.send(self._address.functional_id, frame, extended=self._extended, fd=self._format.fd)

    def _send_frame(self, frame: bytes) -> None:
        self._link.send(self._address.tx_id, frame, extended=self._extended, fd=self._format.fd)


class IsoTpTransport(SingleFrames):
    """One ISO-TP connection over an open link. Not thread-safe; `interrupt` may be set by anyone."""

    def __init__(
        self,
        link: CanLink,
        address: IsoTpAddress,
        *,
        interrupt: threading.Event,
        padding: int,
        flow_control_s: float,
        consecutive_s: float,
        fd: bool = False,
        most_bytes: int = MOST_PAYLOAD_BYTES,
        ask: Ask = AT_ONCE,
    ) -> None:
        """`padding` fills frames up; the two times are N_Bs and N_Cr of ISO 15765-2 9.8.

        `fd` sends CAN FD frames with bit-rate switch. Payloads have up to `most_bytes` each way; those
        over 4095 use the first frame's 32-bit length. `ask` slows the ECU down for a host that is slow.
        """
        super().__init__(link, address, Format(fd=fd, padding=padding))
        self._interrupt = interrupt
        self._flow_control_s = flow_control_s
        self._most_bytes = most_bytes
        self._ask = ask
        self._incoming = Reassembler(
            most_bytes=most_bytes,
            n_cr_s=consecutive_s,
            reply=self._send_flow_control,
            block_size=ask.block_size,
        )

    def send(self, payload: bytes, *, timeout_s: float) -> None:
        """Send one payload; returns when its last frame is with the driver.

        What the ECU said before is forgotten. Raises NotSent when the ECU gives no flow control,
        stops the transfer or `timeout_s` passes, BusDown, Interrupted; FlashError `payload_too_long`.
        """
        if len(payload) > self._most_bytes:
            raise too_long(payload, self._most_bytes)
        self._look_up()
        # What was said to nobody: no old answer may pass for a new one.
        self._incoming.drop()
        self._link.drop_received()
        if len(payload) <= self._format.most_single_bytes:
            self._send_frame(self._format.single(payload))
        else:
            self._send_frames(payload, timeout_s)

    def receive(self, timeout_s: float) -> bytes | None:
        """The next payload from the ECU; None when none came, or one was lost on the way.

        A payload that has begun within `timeout_s` is waited for as long as its frames keep coming.
        Raises BusDown, Interrupted.
        """
        now, receive, interrupted = self._link.clock.now, self._link.receive, self._interrupt.is_set
        incoming, rx_id, extended = self._incoming, self._address.rx_id, self._extended
        at = now()
        deadline = at + timeout_s
        while True:
            if interrupted():
                raise Interrupted("the step was interrupted")
            if incoming.is_open and at >= incoming.due_at:
                incoming.drop()
            # One message may end behind the deadline, but a second can't begin there.
            until = incoming.due_at if incoming.is_open and incoming.begun_at < deadline else deadline
            if at >= until:
                return None
            message = receive(min(until - at, SLICE_S))
            at = now()
            if message is None or message.arbitration_id != rx_id or message.is_extended_id != extended:
                continue
            payload = incoming.feed(message.data, at)
            if payload is not None:
                return payload

    def _send_flow_control(self, status: FlowStatus) -> None:
        self._send_frame(self._format.flow_control(status, self._ask))

    def _look_up(self) -> None:
        if self._interrupt.is_set():
            raise Interrupted("the step was interrupted")

    # -- a payload of several frames

    def _send_frames(self, payload: bytes, timeout_s: float) -> None:
        now = self._link.clock.now
        deadline = now() + timeout_s
        frame, at = self._format.first(payload)
        self._send_frame(frame)
        # On the wire later than handed over: N_Bs begins when the last of these frames has gone.
        frame_s = self._link.frame_s(extended=self._extended, fd=self._format.fd)
        handed_over, frames = now(), 1
        flow: FlowControl | None = None
        while at < len(payload):
            flow = self._next_flow_control(
                handed_over + frames * frame_s + self._flow_control_s, deadline, flow, len(payload)
            )
            begun = at
            size = self._format.consecutive_bytes
            end = len(payload) if flow.block_size == 0 else min(len(payload), at + flow.block_size * size)
            gap_s = flow.st_min_s and flow.st_min_s + frame_s
            at = self._send_run(payload, at, end, gap_s=gap_s, deadline=deadline, flow=flow)
            handed_over, frames = now(), -(-(at - begun) // size)

    def _send_run(
        self, payload: bytes, at: int, end: int, *, gap_s: float, deadline: float, flow: FlowControl
    ) -> int:
        """Send consecutive frames up to `end`, `gap_s` apart; returns `end`."""
        link, clock, interrupted = self._link, self._link.clock, self._interrupt.is_set
        now, send, tx_id = clock.now, link.send, self._address.tx_id
        extended, fd, size = self._extended, self._format.fd, self._format.consecutive_bytes
        total = len(payload)
        number = self._number_at(at)
        while at < end:
            if interrupted():
                raise Interrupted("the step was interrupted")
            if now() >= deadline:
                raise NotSent(f"{at} of {total} bytes could be sent to the ECU in time; {_described(flow)}")
            frame = HEADS[number] + payload[at : at + size]
            at += size
            number = (number + 1) & 0x0F
            if at >= total:
                # What came until now can't answer a payload whose last frame is still here.
                link.drop_received()
                frame = self._format.padded(frame)
            send(tx_id, frame, extended=extended, fd=fd)
            if gap_s and at < end:
                clock.sleep(gap_s)
        return end

    def _number_at(self, at: int) -> int:
        """The sequence number of the consecutive frame that begins with byte `at` (9.6.4)."""
        return (1 + at // self._format.consecutive_bytes) & 0x0F

    def _next_flow_control(
        self, until: float, deadline: float, former: FlowControl | None, total: int
    ) -> FlowControl:
        """The flow control that lets the next frames go; waits until N_Bs is over. Raises NotSent."""
        now = self._link.clock.now
        waits = 0
        while True:
            self._look_up()
            at = now()
            if at >= min(until, deadline):
                raise NotSent(
                    f"sending {total} bytes to the ECU failed: no flow control"
                    + (" in time" if former is None else f" behind a block; {_described(former)}")
                )
            message = self._link.receive(min(until - at, deadline - at, SLICE_S))
            if (
                message is None
                or message.arbitration_id != self._address.rx_id
                or message.is_extended_id != self._extended
            ):
                continue
            flow = read_flow_control(message.data)
            if flow is None:
                continue
            match flow.status:
                case FlowStatus.CLEAR_TO_SEND:
                    return flow
                case FlowStatus.WAIT:
                    waits += 1
                    if waits > MOST_WAIT_FRAMES:
                        raise NotSent(
                            f"sending {total} bytes to the ECU failed: it asked {waits} times to wait"
                        )
                    until = now() + self._flow_control_s
                case FlowStatus.OVERFLOW if former is None:
                    raise EcuOverflow(f"sending {total} bytes to the ECU failed: Overflow, it takes fewer")
                case _:
                    # 9.6.5.2: a reserved status ends the transmission, as OVFLW behind a block does.
                    raise NotSent(f"sending {total} bytes to the ECU failed: its flow control is invalid")


def _described(flow: FlowControl) -> str:
    blocks = f"blocks of {flow.block_size} frames" if flow.block_size else "no blocks"
    return f"the ECU asks for {blocks}, {flow.st_min_s * 1000:g} ms between frames"
