"""What the host's own work costs: frames through the whole ISO-TP stack, with no wire in between.

Figures are per second of the working thread's own CPU time, on one core: what else runs on the
machine does not change them, and the other end's work is not counted.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import can

from cli.benches.report import Row, figure
from firmware_flashers.can_link import CanLink
from firmware_flashers.isotp import IsoTpAddress, IsoTpTransport

TX, RX = 0x7E0, 0x7E8
MESSAGE_BYTES = 4095
MESSAGES = 40
FRAMES = 586
"""Of one such message: a first frame and 585 consecutive ones (6 + 585 x 7 = 4101 bytes)."""
WANTED = 16_000
WANTED_IS = "twice the frames of a full 1 Mbit/s bus"
GO_ON = bytes([0x30, 0, 0, 0xCC, 0xCC, 0xCC, 0xCC, 0xCC])


def frames_send() -> Row:
    """Frames of 4095-byte messages handed to the driver."""
    payload = os.urandom(MESSAGE_BYTES)

    def work(transport: IsoTpTransport, peer: can.BusABC) -> None:
        del peer
        transport.send(payload, timeout_s=30.0)

    def answer(peer: can.BusABC) -> None:
        while (message := peer.recv(5.0)) is not None and message.data[0] >> 4 != 1:
            continue
        peer.send(can.Message(arbitration_id=RX, data=GO_ON, is_extended_id=False))

    spent_s = _spent(work, answer)
    return _row("host.frames_send", MESSAGES * FRAMES / spent_s)


def frames_receive() -> Row:
    """Frames of 4095-byte messages taken from the driver and put together."""
    payload = os.urandom(MESSAGE_BYTES)
    first = can.Message(arbitration_id=RX, data=bytes([0x1F, 0xFF]) + payload[:6], is_extended_id=False)
    rest = [
        can.Message(
            arbitration_id=RX,
            data=(bytes([0x20 | (number & 0xF)]) + payload[at : at + 7]).ljust(8, b"\xaa"),
            is_extended_id=False,
        )
        for number, at in enumerate(range(6, MESSAGE_BYTES, 7), start=1)
    ]

    def work(transport: IsoTpTransport, peer: can.BusABC) -> None:
        peer.send(first)
        if transport.receive(30.0) != payload:
            raise RuntimeError("the message came out wrong")

    def answer(peer: can.BusABC) -> None:
        if peer.recv(5.0) is None:
            return
        for message in rest:
            peer.send(message)

    spent_s = _spent(work, answer)
    return _row("host.frames_receive", MESSAGES * FRAMES / spent_s)


def cpu_per_mib() -> Row:
    """CPU time that sending 1 MiB in 4095-byte messages takes."""
    sent = frames_send()
    assert sent.value is not None
    messages = 1024 * 1024 / (MESSAGE_BYTES - 2)
    return figure(
        "host.cpu_per_mib", messages * FRAMES / sent.value, "s of one core", apart="ISO-TP and python-can, TX"
    )


def _row(case: str, rate: float) -> Row:
    return Row(
        case=case,
        value=rate,
        unit="frames/s",
        limit=WANTED,
        limit_is=WANTED_IS,
        ratio=rate / WANTED,
        goal=">= limit",
        met=rate >= WANTED,
        apart="per second of the thread's CPU time, python-can's virtual bus",
    )


def _spent(work: Callable[[IsoTpTransport, can.BusABC], None], answer: Callable[[can.BusABC], None]) -> float:
    """CPU seconds of the thread that does `work` for each message; `answer` is the other end's part."""
    spent: list[float] = []

    def on_one_core() -> None:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        with _pair() as (transport, peer):
            for _ in range(MESSAGES):
                other = threading.Thread(target=answer, args=(peer,))
                other.start()
                before = time.thread_time()
                work(transport, peer)
                spent.append(time.thread_time() - before)
                other.join()
                while peer.recv(0.0) is not None:
                    continue

    # Its own thread, since a thread's affinity outlives the measurement.
    thread = threading.Thread(target=on_one_core)
    thread.start()
    thread.join()
    if len(spent) != MESSAGES:
        raise RuntimeError("a message did not go through")
    return sum(spent)


@contextmanager
def _pair() -> Iterator[tuple[IsoTpTransport, can.BusABC]]:
    channel = f"bench-{time.monotonic_ns()}"
    ours = can.Bus(channel, interface="virtual", ignore_config=True)
    peer = can.Bus(channel, interface="virtual", ignore_config=True)
    transport = IsoTpTransport(
        CanLink(ours, name="bench"),
        IsoTpAddress(tx_id=TX, rx_id=RX),
        interrupt=threading.Event(),
        padding=0xCC,
        flow_control_s=5.0,
        consecutive_s=5.0,
    )
    try:
        yield transport, peer
    finally:
        ours.shutdown()
        peer.shutdown()
