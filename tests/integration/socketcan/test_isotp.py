"""ISO-TP on a kernel's CAN: the transport suite by its stack and by ours, and each against the other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import can
import pytest

from cli.can_kernel import netlink
from firmware_flashers import isotp_kernel
from firmware_flashers.base import BusDown, FlashError
from firmware_flashers.can_link import Link, LinkSettings
from firmware_flashers.clock import MONOTONIC
from firmware_flashers.isotp import IsoTpAddress, IsoTpTransport
from tests.contract.firmware_flashers.transport_suite import (
    FORMS,
    MOST_BYTES,
    Ecu,
    Form,
    Rig,
    TransportContract,
    long_payload,
)

pytestmark = pytest.mark.socketcan
OpenCan = Callable[..., can.BusABC]
PYTHONS_S = 1.0
KERNELS_S = 1.0
"""Its N_Bs is fixed."""


def made(stack: ExitStack, channel: str, form: Form, folder: Path, prefer: Any, *, ecu: bool = False) -> Any:
    """A transport of the tester's side, or with `ecu` of the other."""
    tx_id, rx_id, functional_id = form.ids
    if ecu:
        tx_id, rx_id = rx_id, tx_id
    settings = LinkSettings(
        interface="socketcan",
        channel=channel,
        fd=form.fd,
        lock_folder=folder / ("ecu" if ecu else "tester"),
    )
    assert settings.lock_folder is not None
    settings.lock_folder.mkdir()
    link = stack.enter_context(Link(settings))
    can_link = link.connect([rx_id])
    stack.callback(can_link.close)
    return isotp_kernel.transport(
        link,
        can_link,
        IsoTpAddress(tx_id=tx_id, rx_id=rx_id, functional_id=functional_id),
        interrupt=threading.Event(),
        padding=0xCC,
        flow_control_s=PYTHONS_S,
        consecutive_s=PYTHONS_S,
        fd=form.fd,
        most_bytes=MOST_BYTES,
        prefer=prefer,
    )


@pytest.fixture(params=["classic", "fd-29-bit"])
def form(request: pytest.FixtureRequest) -> Form:
    return FORMS[request.param]


@pytest.fixture
def rig(
    request: pytest.FixtureRequest, form: Form, vcan0: str, open_can: OpenCan, tmp_path: Path
) -> Iterator[Rig]:
    prefer = request.cls.prefer
    if prefer == "kernel":
        request.getfixturevalue("kernel_isotp")
    with ExitStack() as stack:
        transport = made(stack, vcan0, form, tmp_path, prefer)
        ecu = Ecu(open_can(vcan0, fd=form.fd), form)
        stack.callback(ecu.close)
        yield Rig(
            transport=transport,
            ecu=ecu,
            form=form,
            interrupt=transport._interrupt,
            n_bs_s=KERNELS_S if prefer == "kernel" else PYTHONS_S,
            clock=MONOTONIC,
        )


class TestKernel(TransportContract):
    """isotp_kernel.KernelIsoTpTransport."""

    prefer = "kernel"


class TestPython(TransportContract):
    """isotp.IsoTpTransport."""

    prefer = "python"


class Other:
    """The other side in a thread: answers each message with itself."""

    def __init__(self, transport: Any) -> None:
        self.transport = transport
        self.errors: list[FlashError] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="other-side")

    def __enter__(self) -> Other:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                payload = self.transport.receive(0.1)
                if payload is not None:
                    self.transport.send(payload, timeout_s=20)
            except FlashError as error:
                self.errors.append(error)


@pytest.mark.usefixtures("kernel_isotp")
@pytest.mark.parametrize("prefer", ["kernel", "python"])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_our_stack_and_the_kernels_understand_each_other(
    form: Form, prefer: str, vcan0: str, tmp_path: Path
) -> None:
    other = "python" if prefer == "kernel" else "kernel"
    with ExitStack() as stack:
        transport = made(stack, vcan0, form, tmp_path, prefer)
        stack.enter_context(Other(made(stack, vcan0, form, tmp_path, other, ecu=True)))
        for count in (1, 7, 8, 62, 63, 64, 1000, 4095, 4096, MOST_BYTES):
            payload = long_payload(count)
            transport.send(payload, timeout_s=20)
            assert transport.receive(20) == payload


@pytest.mark.parametrize("prefer", ["kernel", "python"])
@pytest.mark.usefixtures("small_receive_buffer")
def test_frames_that_a_small_buffer_loses_end_in_a_named_error(
    request: pytest.FixtureRequest, prefer: str, vcan0: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A vcan has no pace, and who reads too slowly loses frames: all come, or the step ends in time."""
    if prefer == "kernel":
        request.getfixturevalue("kernel_isotp")
    # As if the buffer could not be made larger.
    monkeypatch.setattr("firmware_flashers.can_link.deepen", lambda _: None)
    form = FORMS["classic"]
    with ExitStack() as stack:
        transport = made(stack, vcan0, form, tmp_path, prefer)
        stack.enter_context(Other(made(stack, vcan0, form, tmp_path, "python", ecu=True)))
        arrived = lost = 0
        for seed in range(3):
            payload = long_payload(4095, seed=2 * seed + 1)
            try:
                transport.send(payload, timeout_s=5)
                answer = transport.receive(1)
            except FlashError:
                lost += 1
                continue
            # Never another answer than the right one.
            assert answer in {None, payload}
            arrived += answer is not None
            lost += answer is None
        assert arrived + lost == 3


@pytest.mark.parametrize("prefer", ["kernel", "python"])
def test_an_interface_that_goes_down_is_bus_down(
    request: pytest.FixtureRequest, prefer: str, own_vcan: str, tmp_path: Path
) -> None:
    if prefer == "kernel":
        request.getfixturevalue("kernel_isotp")
    with ExitStack() as stack:
        transport = made(stack, own_vcan, FORMS["classic"], tmp_path, prefer)
        transport.send(b"\x10\x03", timeout_s=1)
        netlink.set_link(own_vcan, up=False)
        with pytest.raises(BusDown):
            transport.receive(30)
        with pytest.raises(BusDown):
            transport.send(b"\x10\x03", timeout_s=1)


def test_a_traced_link_takes_pythons_stack(vcan0: str, tmp_path: Path) -> None:
    settings = LinkSettings(
        interface="socketcan", channel=vcan0, trace=tmp_path / "trace.log", lock_folder=tmp_path
    )
    more: dict[str, Any] = {
        "interrupt": threading.Event(),
        "padding": 0xCC,
        "flow_control_s": 1.0,
        "consecutive_s": 1.0,
    }
    address = IsoTpAddress(tx_id=0x7E0, rx_id=0x7E8)
    with Link(settings) as link, ExitStack() as stack:
        can_link = link.connect([0x7E8])
        stack.callback(can_link.close)
        assert isinstance(isotp_kernel.transport(link, can_link, address, **more), IsoTpTransport)
        with pytest.raises(isotp_kernel.NoKernelIsoTp, match="trace"):
            isotp_kernel.transport(link, can_link, address, prefer="kernel", **more)


@pytest.mark.usefixtures("kernel_isotp")
def test_the_kernels_stack_is_taken_where_it_can_be_had(vcan0: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        transport = made(stack, vcan0, FORMS["classic"], tmp_path, "auto")
        assert isinstance(transport, isotp_kernel.KernelIsoTpTransport)
