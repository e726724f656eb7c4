"""ISO-TP that others wrote, unmodified, against ours: scapy's, can-isotp's, and xaloqi's byte vectors."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import can
import isotp
import pytest
from xaloqi.tester.conformance.runner import run_isotp_suite
from xaloqi.tester.conformance.vectors import load_suite
from xaloqi.tester.transport.base import CanBus

from firmware_flashers.can_link import CanLink
from firmware_flashers.isotp import IsoTpAddress, IsoTpTransport
from firmware_flashers.isotp_frames import AT_ONCE, Ask
from tests.contract.firmware_flashers.transport_suite import FORMS, Form, long_payload

COUNTS = (1, 7, 8, 13, 14, 62, 63, 64, 300, 4095)
MOST_BYTES = 6000


@pytest.fixture
def channel(tmp_path: Path) -> str:
    return f"stacks-{os.getpid()}-{tmp_path.name}"


@contextmanager
def ours(channel: str, form: Form, *, ecu: bool = False, ask: Ask = AT_ONCE) -> Iterator[IsoTpTransport]:
    """Our transport on `virtual`: the tester's side, or with `ecu` the other."""
    tx_id, rx_id, _ = form.ids
    if ecu:
        tx_id, rx_id = rx_id, tx_id
    link = CanLink(can.Bus(channel, interface="virtual", ignore_config=True), name=channel, only=(rx_id,))
    try:
        yield IsoTpTransport(
            link,
            IsoTpAddress(tx_id=tx_id, rx_id=rx_id),
            interrupt=threading.Event(),
            padding=0xCC,
            flow_control_s=5,
            consecutive_s=1 if ecu else 5,
            fd=form.fd,
            most_bytes=MOST_BYTES,
            ask=ask,
        )
    finally:
        link.close()


def exchange(
    transport: IsoTpTransport, receive: Callable[[], bytes | None], send: Callable[[bytes], None], count: int
) -> None:
    """One message each way."""
    payload = long_payload(count)
    transport.send(payload, timeout_s=20)
    assert (count, receive()) == (count, payload)
    send(payload[::-1])
    assert (count, transport.receive(20)) == (count, payload[::-1])


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("flow", [(0, 0), (8, 0), (1, 2)], ids=["at once", "blocks of 8", "one by one"])
def test_can_isotp(channel: str, form: Form, flow: tuple[int, int]) -> None:
    tx_id, rx_id, _ = form.ids
    mode = isotp.AddressingMode.Normal_29bits if form.extended else isotp.AddressingMode.Normal_11bits
    with ExitStack() as stack:
        transport = stack.enter_context(ours(channel, form))
        bus = stack.enter_context(can.Bus(channel, interface="virtual", ignore_config=True))
        notifier = can.Notifier(bus, [], timeout=0.01)
        stack.callback(notifier.stop)
        other = isotp.NotifierBasedCanStack(
            bus=bus,
            notifier=notifier,
            address=isotp.Address(mode, txid=rx_id, rxid=tx_id),
            params={
                "blocksize": flow[0],
                "stmin": flow[1],
                "can_fd": form.fd,
                "tx_data_length": 64 if form.fd else 8,
                "bitrate_switch": form.fd,
                "max_frame_size": MOST_BYTES,
                "rx_flowcontrol_timeout": 5000,
                "rx_consecutive_frame_timeout": 5000,
            },
        )
        other.start()
        stack.callback(other.stop)

        def receive() -> bytes | None:
            got = other.recv(block=True, timeout=20)
            return None if got is None else bytes(got)

        for count in COUNTS if flow[1] == 0 else COUNTS[:-1]:
            exchange(transport, receive, other.send, count)
        if flow[1] == 0:
            exchange(transport, receive, other.send, 5000)


@pytest.fixture(scope="module")
def scapy() -> Any:
    """Its parts that are used here, set up for python-can; an import of a second."""
    from types import SimpleNamespace

    from scapy.config import conf

    conf.contribs["CANSocket"] = {"use-python-can": True}
    conf.contribs["ISOTP"] = {"use-can-isotp-kernel-module": False}
    from scapy.contrib.cansocket_python_can import PythonCANSocket
    from scapy.contrib.isotp import ISOTP, ISOTPSoftSocket

    return SimpleNamespace(PythonCANSocket=PythonCANSocket, ISOTPSoftSocket=ISOTPSoftSocket, ISOTP=ISOTP)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("flow", [(0, 0), (4, 0), (1, 2)], ids=["at once", "blocks of 4", "one by one"])
def test_scapy(channel: str, form: Form, flow: tuple[int, int], scapy: Any) -> None:
    tx_id, rx_id, _ = form.ids
    with ExitStack() as stack:
        transport = stack.enter_context(ours(channel, form))
        raw = scapy.PythonCANSocket(interface="virtual", channel=channel, timeout=0.01, fd=form.fd)
        stack.callback(raw.close)
        other = scapy.ISOTPSoftSocket(
            raw, tx_id=rx_id, rx_id=tx_id, padding=True, bs=flow[0], stmin=flow[1], fd=form.fd
        )
        stack.callback(other.close)

        def receive() -> bytes | None:
            got = other.recv()
            return None if got is None else bytes(got.data)

        for count in COUNTS if flow[1] == 0 else COUNTS[:-1]:
            exchange(transport, receive, lambda payload: other.send(scapy.ISOTP(data=payload)), count)


class Wire(CanBus):  # type: ignore[misc]
    """A `virtual` bus as xaloqi's runner wants it."""

    def __init__(self, bus: can.BusABC) -> None:
        self._bus = bus

    async def send(self, arbitration_id: int, data: bytes) -> None:
        self._bus.send(can.Message(arbitration_id=arbitration_id, data=data, is_extended_id=False))

    async def recv(self, timeout: float) -> tuple[int, bytes] | None:
        message = await asyncio.to_thread(self._bus.recv, timeout)
        return None if message is None else (message.arbitration_id, bytes(message.data))

    async def close(self) -> None:
        """The test closes its bus."""


# Block size and separation time of the receiver that a vector is about; without: ours as it is.
ASKS = {
    "VEC-RX-MF-002": Ask(block_size=5, st_min=2),
    "VEC-RX-MF-004": Ask(block_size=3, st_min=5),
    "VEC-RX-MF-005": Ask(block_size=0, st_min=5),
}


@pytest.mark.parametrize("vector", [one.id for one in load_suite("isotp").vectors])
async def test_xaloqis_vectors(channel: str, vector: str) -> None:
    form = FORMS["classic"]
    stop = threading.Event()
    with ExitStack() as stack:
        ecu = stack.enter_context(ours(channel, form, ecu=True, ask=ASKS.get(vector, AT_ONCE)))
        bus = stack.enter_context(can.Bus(channel, interface="virtual", ignore_config=True))
        answers = {b"\x3e\x00": b"\x7e\x00", b"\x22\xf1\x90": b"\x62\xf1\x90" + b"X" * 17}

        def serve() -> None:
            while not stop.is_set():
                request = ecu.receive(0.05)
                if request in answers:
                    ecu.send(answers[request], timeout_s=2)

        thread = threading.Thread(target=serve)
        thread.start()
        stack.callback(thread.join, 10)
        stack.callback(stop.set)
        report = await run_isotp_suite(
            Wire(bus), load_suite("isotp"), default_can_id=form.ids[0], vector_ids=[vector]
        )
    assert [(one.passed, one.detail) for one in report.results] == [(True, "OK")]
