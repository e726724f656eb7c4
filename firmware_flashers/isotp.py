"""ISO-TP (ISO 15765-2) as a blocking transport: whole payloads in and out of one worker thread.

It drives the state machines of can-isotp itself instead of starting that package's threads: an error
of the bus then ends the call that met it, a send returns when its last frame is with the driver (so
that time-outs of UDS begin there), and nothing is left running afterwards.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import isotp

from firmware_flashers.base import FlashError, NoAnswer
from firmware_flashers.can_link import MOST_11_BITS, CanLink

MOST_PAYLOAD_BYTES = 4095  # 12-bit length of a first frame, ISO 15765-2 9.6.3
FRAME_BYTES = 8
SLICE_S = 0.05
"""Longest wait without a look at the interrupt flag."""
MOST_STALE_FRAMES = 20_000
STALE_LOOK_S = 0.005
"""Where frames are filtered in software, a look of no length sees only the first waiting frame."""
MOST_WAIT_FRAMES = 100
FLOW_CONTROL = 3
LONGEST_STMIN = 0x7F

# Its debug lines show payloads, and so seeds and keys; its warnings are our errors already.
_silent = logging.getLogger("firmware_flashers.isotp")
_silent.setLevel(logging.CRITICAL)


class Interrupted(FlashError):
    """The caller asked to stop in the middle of a step."""

    code = "interrupted"
    advice = "Start the same step again from its beginning."


class NotSent(NoAnswer):
    """The ECU surely did not get the whole payload, so that sending it again is harmless."""


@dataclass(frozen=True, kw_only=True)
class IsoTpAddress:
    """Normal addressing, ISO 15765-2 10.3: one identifier each way, both 11-bit or both 29-bit."""

    tx_id: int
    rx_id: int

    @property
    def extended(self) -> bool:
        """True for 29-bit identifiers."""
        return max(self.tx_id, self.rx_id) > MOST_11_BITS


class IsoTpTransport:
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
    ) -> None:
        """`padding` fills frames to 8 bytes; the two times are N_Bs and N_Cr of ISO 15765-2 9.8."""
        self._link = link
        self._address = address
        self._padding = padding
        self._late_answers = True
        self._interrupt = interrupt
        self._errors: list[isotp.IsoTpError] = []
        self._request: isotp.TransportLayerLogic.SendRequest | None = None
        self._enough: Callable[[], bool] = lambda: True
        mode = isotp.AddressingMode.Normal_29bits if address.extended else isotp.AddressingMode.Normal_11bits
        self._logic = isotp.TransportLayerLogic(
            rxfn=self._read_frame,
            txfn=self._write_frame,
            address=isotp.Address(mode, txid=address.tx_id, rxid=address.rx_id),
            error_handler=self._note_error,
            post_send_callback=self._note_request,
            params={
                # The ECU's own answers are short: let it send them in one go.
                "stmin": 0,
                "blocksize": 0,
                "tx_padding": padding,
                "wftmax": MOST_WAIT_FRAMES,
                "rx_flowcontrol_timeout": max(1, round(flow_control_s * 1000)),
                "rx_consecutive_frame_timeout": max(1, round(consecutive_s * 1000)),
                "max_frame_size": MOST_PAYLOAD_BYTES,
                "logger_name": _silent.name,
            },
        )

    def send(self, payload: bytes, *, timeout_s: float) -> None:
        """Send one payload; returns when its last frame is with the driver.

        What the ECU said before is forgotten. Raises NotSent when the ECU gives no flow control,
        stops the transfer or `timeout_s` passes, BusDown, Interrupted.
        """
        self._forget()
        deadline = time.monotonic() + timeout_s
        self._logic.send(payload)
        request = self._request
        assert request is not None
        self._enough = lambda: request.complete_event.is_set() or time.monotonic() >= deadline
        # Whatever ends the loop early leaves a half-sent payload; the next send begins by forgetting it.
        while not request.complete_event.is_set():
            self._look_up()
            if time.monotonic() >= deadline:
                raise NotSent(f"{len(payload)} bytes could not be sent to the ECU in {timeout_s:.1f} s")
            if self._logic.is_tx_transmitting_cf():
                time.sleep(min(self._logic.next_cf_delay() or 0.0, SLICE_S))
                self._logic.process(do_rx=False)
            else:
                self._logic.process(SLICE_S)
        if not request.success:
            why = self._errors[-1] if self._errors else "stopped"
            raise NotSent(f"sending {len(payload)} bytes to the ECU failed: {why}")

    def receive(self, timeout_s: float) -> bytes | None:
        """The next payload from the ECU; None when none came, or one was lost on the way.

        Raises BusDown, Interrupted.
        """
        deadline = time.monotonic() + timeout_s
        self._enough = lambda: self._logic.available() or time.monotonic() >= deadline
        while True:
            payload = self._logic.recv()
            if payload is not None:
                return bytes(payload)
            self._look_up()
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                self._late_answers = True
                return None
            self._logic.process(min(left_s, SLICE_S))

    def send_single(self, payload: bytes) -> None:
        """Send a payload of up to 7 bytes that nobody answers, even when interrupted. Raises BusDown."""
        frame = bytes([len(payload)]) + payload
        filled = frame + bytes([self._padding]) * (FRAME_BYTES - len(frame))
        self._link.send(self._address.tx_id, filled, extended=self._address.extended)

    def _forget(self) -> None:
        """Drop whatever the ECU said to nobody, so that no old answer passes for a new one."""
        self._logic.reset()
        self._errors.clear()
        look_s = STALE_LOOK_S if self._late_answers else 0.0
        self._late_answers = False
        for _ in range(MOST_STALE_FRAMES):
            if self._link.receive(look_s) is None:
                return

    def _look_up(self) -> None:
        if self._interrupt.is_set():
            raise Interrupted("the step was interrupted")

    def _read_frame(self, timeout_s: float) -> isotp.CanMessage | None:
        # can-isotp reads until nothing comes, so an ECU that babbles would hold it for ever.
        if self._enough():
            return None
        message = self._link.receive(timeout_s)
        if message is None:
            return None
        data = bytes(message.data)
        # A reserved separation time means the longest one, ISO 15765-2 9.6.5.5; can-isotp would drop it.
        if len(data) >= 3 and data[0] >> 4 == FLOW_CONTROL and not _is_stmin(data[2]):
            data = data[:2] + bytes([LONGEST_STMIN]) + data[3:]
        return isotp.CanMessage(
            arbitration_id=message.arbitration_id, data=data, extended_id=message.is_extended_id
        )

    def _write_frame(self, message: isotp.CanMessage) -> None:
        self._look_up()
        self._link.send(message.arbitration_id, bytes(message.data), extended=self._address.extended)

    def _note_error(self, error: Exception) -> None:
        if isinstance(error, isotp.IsoTpError):
            self._errors.append(error)
            del self._errors[:-10]

    def _note_request(self, request: isotp.TransportLayerLogic.SendRequest) -> None:
        self._request = request


def _is_stmin(value: int) -> bool:
    return value <= LONGEST_STMIN or 0xF1 <= value <= 0xF9
