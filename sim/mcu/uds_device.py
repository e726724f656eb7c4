"""The firmware of a part that speaks UDS: ISO-TP below, the protocol above, in one thread (see host)."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable
from typing import Generic

import can

from shared.logs import get_log
from sim.mcu.assembly import Part, U_co, UdsSettings
from sim.mcu.faults import FaultState
from sim.mcu.host import Host
from sim.mcu.isotp import Pci, Receiver, SendFailed, send_message
from sim.mcu.uds_server import Surroundings

log = get_log("sim.mcu")

TICK_S = 0.1
N_BS_S = 1.0
MOST_PUT_BY = 64


class UdsDevice(Generic[U_co]):
    """See Device. `part` is there once it runs; `assemble` puts it together."""

    def __init__(
        self, settings: UdsSettings, faults: FaultState, assemble: Callable[[Surroundings], Part[U_co]]
    ) -> None:
        self._settings = settings
        self._faults = faults
        self._assemble = assemble
        self._heard = frozenset({settings.request_id, settings.functional_id})
        most_bytes = max(settings.transport.most_bytes, settings.downloads.block_bytes)
        self._transport = dataclasses.replace(settings.transport, most_bytes=most_bytes)
        self._put_by: deque[can.Message] = deque(maxlen=MOST_PUT_BY)
        self._host: Host
        self._receiver: Receiver
        self.part: Part[U_co] | None = None

    def accepts(self, message: can.Message) -> bool:
        """See Device. A controller without CAN FD never hears its frames."""
        return (
            message.arbitration_id in self._heard
            and message.is_extended_id == self._settings.extended_ids
            and (self._settings.fd or not message.is_fd)
        )

    def run(self, host: Host, booted: Callable[[], None]) -> None:
        """See Device."""
        self._host = host
        self._receiver = Receiver(self._send, clock=host.now, wait=host.wait, transport=self._transport)
        self.part = part = self._assemble(
            Surroundings(faults=self._faults, clock=host.now, wait=host.wait, restart=self._restart)
        )
        ecu = part.uds
        log.info("mcu.booted", state=ecu.state_word)
        booted()
        while True:
            message = self._put_by.popleft() if self._put_by else host.receive(TICK_S)
            if not self._receiver.is_receiving:
                ecu.tick()
            if message is None:
                continue
            functional = message.arbitration_id == self._settings.functional_id
            request = self._receiver.feed(bytes(message.data), functional=functional)
            if request is not None:
                ecu.handle(request, functional=functional, reply=self._reply)

    def _restart(self) -> None:
        self._host.wait(self._settings.timing.reset_s)
        self._host.drop_input()
        self._put_by.clear()
        self._receiver.forget()

    def _send(self, data: bytes) -> None:
        settings = self._settings
        self._host.send(settings.response_id, data, extended=settings.extended_ids, fd=self._settings.fd)

    def _reply(self, response: bytes) -> None:
        if self._faults.response.due():
            return
        try:
            send_message(response, self._send, self._next_flow_control, self._host.wait, fd=self._settings.fd)
        except SendFailed as error:
            log.info("mcu.response_lost", why=str(error), response=response[:3].hex())

    def _next_flow_control(self) -> bytes | None:
        until = self._host.now() + N_BS_S
        while (left_s := until - self._host.now()) > 0:
            message = self._host.receive(left_s)
            if message is None:
                return None
            data = bytes(message.data)
            is_ours = message.arbitration_id == self._settings.request_id
            if is_ours and len(data) >= 3 and data[0] >> 4 == Pci.FLOW_CONTROL:
                return data
            # What comes meanwhile is answered afterwards.
            self._put_by.append(message)
        return None
