"""The transport suite on every bus that needs no kernel."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import can
import pytest

from firmware_flashers.can_link import Link, LinkSettings
from firmware_flashers.isotp import IsoTpAddress, IsoTpTransport
from sim.can_hub import hub_in_thread
from sim.can_model import ModelBus
from tests.contract.firmware_flashers.transport_suite import (
    FORMS,
    MOST_BYTES,
    Ecu,
    Form,
    Rig,
    TransportContract,
)

N_BS_S = 0.3
PLACES = [
    *(("virtual", form) for form in FORMS),
    *((bus, form) for bus in ("quarry-hub", "quarry-model") for form in ("classic", "fd-29-bit")),
]


@pytest.fixture(params=PLACES, ids="-".join)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, str, Form]]:
    """An interface of python-can, a channel of this test's own on it, and how frames look there."""
    interface, form = request.param
    with ExitStack() as stack:
        channel = f"suite-{os.getpid()}-{tmp_path.name}"
        if interface == "quarry-hub":
            channel = str(tmp_path / "hub.sock")
            stack.enter_context(hub_in_thread(channel))
        if interface == "quarry-model":
            stack.enter_context(ModelBus(name=channel, data_bitrate=2_000_000))
        yield interface, channel, FORMS[form]


@pytest.fixture
def rig(place: tuple[str, str, Form], tmp_path: Path) -> Iterator[Rig]:
    """The Python stack and an ECU."""
    interface, name, form = place
    tx_id, rx_id, functional_id = form.ids
    interrupt = threading.Event()
    settings = LinkSettings(interface=interface, channel=name, fd=form.fd, lock_folder=tmp_path)
    with ExitStack() as stack:
        link = stack.enter_context(Link(settings))
        can_link = link.connect([rx_id])
        stack.callback(can_link.close)
        part: dict[str, Any] = {"driver": False} if interface == "quarry-model" else {}
        bus = can.Bus(name, interface=interface, fd=form.fd, ignore_config=True, **part)
        stack.enter_context(bus)
        ecu = Ecu(bus, form)
        stack.callback(ecu.close)
        transport = IsoTpTransport(
            can_link,
            IsoTpAddress(tx_id=tx_id, rx_id=rx_id, functional_id=functional_id),
            interrupt=interrupt,
            padding=0xCC,
            flow_control_s=N_BS_S,
            consecutive_s=N_BS_S,
            fd=form.fd,
            most_bytes=MOST_BYTES,
        )
        stack.enter_context(can_link.clock.attending())
        yield Rig(
            transport=transport,
            ecu=ecu,
            form=form,
            interrupt=interrupt,
            n_bs_s=N_BS_S,
            clock=can_link.clock,
        )


class TestPython(TransportContract):
    """isotp.IsoTpTransport."""
