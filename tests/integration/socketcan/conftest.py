"""Real CAN interfaces of a kernel: what `quarry test` and `quarry vcan` arrange.

Mark every test here `socketcan`, by `pytestmark`. Keep them few and small: in a guest a system call costs 20
us, a frame half a millisecond, an import of a large package a second. Tests run one after the other and
share vcan0 and vcan1: whoever takes one down brings it up again.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import can
import pytest

from cli.can_kernel import netlink
from cli.can_kernel.guest import KERNEL_VARIABLE, NO_ISOTP_VARIABLE

RMEM_DEFAULT = Path("/proc/sys/net/core/rmem_default")
KERNELS_OWN_BYTES = 212992
"""net.core.rmem_default as a kernel sets it."""


def refuse(reason: str) -> None:
    """A skip where nobody has arranged a kernel, a failure where somebody has."""
    if os.environ.get(KERNEL_VARIABLE):
        pytest.fail(reason)
    pytest.skip(f"{reason}; ./quarry test runs them on a kernel that has it")


def _interface(name: str) -> str:
    if name not in {known for _, known in socket.if_nameindex()}:
        refuse(f"there is no interface {name} here")
    return name


@pytest.fixture
def vcan0() -> str:
    """The name of a CAN interface that is up, MTU 72 (classic and FD)."""
    return _interface("vcan0")


@pytest.fixture
def vcan1() -> str:
    """Another one, which hears nothing of the first."""
    return _interface("vcan1")


@pytest.fixture
def own_vcan() -> Iterator[str]:
    """The name of an interface that is this test's alone, which it may take down or remove."""
    name = "vcanown"
    try:
        netlink.make_vcan(name)
    except OSError as error:
        # On interfaces that somebody else has made we may have no right to make more: that is known.
        if error.errno == errno.EPERM and os.environ.get(KERNEL_VARIABLE, "interfaces") == "interfaces":
            pytest.skip("this user may not make CAN interfaces here")
        refuse(f"no vcan can be made here: {error.strerror}")
    yield name
    if name in {known for _, known in socket.if_nameindex()}:
        netlink.remove_link(name)


@pytest.fixture
def kernel_isotp() -> None:
    """The kernel has ISO-TP sockets (CAN_ISOTP); skips loudly where it has not."""
    try:
        socket.socket(socket.AF_CAN, socket.SOCK_DGRAM, socket.CAN_ISOTP).close()
    except OSError as error:
        reason = os.environ.get(NO_ISOTP_VARIABLE)
        if reason is None and os.environ.get(KERNEL_VARIABLE) == "guest":
            pytest.fail(f"the guest should have kernel ISO-TP, and has not: {error.strerror}")
        pytest.skip(f"no kernel ISO-TP: {reason or error.strerror}")


@pytest.fixture
def small_receive_buffer() -> Iterator[int]:
    """Sockets opened in the test have the kernel's own receive buffer again; a guest's is raised to 4 MiB."""
    before = RMEM_DEFAULT.read_text() if RMEM_DEFAULT.exists() else None
    if before is None or int(before) == KERNELS_OWN_BYTES:
        # A namespace shows the setting to its owner alone; nobody has raised it there.
        yield KERNELS_OWN_BYTES
        return
    RMEM_DEFAULT.write_text(f"{KERNELS_OWN_BYTES}\n")
    yield KERNELS_OWN_BYTES
    RMEM_DEFAULT.write_text(before)


@pytest.fixture
def open_can() -> Iterator[Callable[..., can.BusABC]]:
    """`open_can(channel, fd=True, ...)`: a plain python-can bus, the other side; closed at the end."""
    opened = []

    def open_bus(channel: str, *, fd: bool = True) -> can.BusABC:
        bus = can.Bus(channel, interface="socketcan", fd=fd, ignore_config=True)
        opened.append(bus)
        return bus

    yield open_bus
    for bus in opened:
        bus.shutdown()
