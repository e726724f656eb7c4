"""Frames through a kernel: what `virtual` can't show of classic, FD, filters and dead interfaces."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import can
import pytest

from cli.can_kernel import netlink
from firmware_flashers.base import BusDown
from firmware_flashers.can_link import open_link
from firmware_flashers.can_lock import InterfaceBusy

pytestmark = pytest.mark.socketcan
OpenCan = Callable[..., can.BusABC]
FAR = 0x18DA10F1


@pytest.mark.parametrize(
    ("identifier", "data", "fd"),
    [
        (0x7E0, b"", False),
        (0x7E0, bytes(range(8)), False),
        (FAR, bytes(8), False),
        (0x7E0, bytes(range(64)), True),
        (FAR, bytes(range(12)), True),
        (0x123, b"\x01", True),
    ],
    ids=["empty", "classic", "29 bits", "FD 64", "FD 29 bits", "FD short"],
)
async def test_a_frame_goes_through_as_it_is(
    vcan0: str, open_can: OpenCan, identifier: int, data: bytes, fd: bool
) -> None:
    other = open_can(vcan0)
    async with open_link(interface="socketcan", channel=vcan0, fd=True) as link:
        ours = link.connect()
        try:
            ours.send(identifier, data, extended=identifier > 0x7FF, fd=fd)
            there = other.recv(5)
            assert there is not None
            assert (there.arbitration_id, bytes(there.data)) == (identifier, data)
            assert (there.is_extended_id, there.is_fd, there.bitrate_switch) == (identifier > 0x7FF, fd, fd)
            there.is_rx = False
            other.send(there)
            back = ours.receive(5)
            assert back is not None
            assert (back.arbitration_id, bytes(back.data), back.is_fd) == (identifier, data, fd)
            assert back.bitrate_switch is fd
        finally:
            ours.close()


async def test_the_kernel_lets_only_the_named_identifiers_through(vcan0: str, open_can: OpenCan) -> None:
    other = open_can(vcan0)
    async with open_link(interface="socketcan", channel=vcan0) as link:
        ours = link.connect([0x7E8, FAR])
        try:
            # 0x7E8 as 29 bits and the low 11 bits of FAR as 11 are other identifiers than those named.
            for identifier, extended in (
                (0x7E9, False),
                (0x7E8, True),
                (FAR & 0x7FF, False),
                (FAR, True),
                (0x7E8, False),
            ):
                other.send(can.Message(arbitration_id=identifier, is_extended_id=extended, data=b"\x01"))
            heard = [ours.receive(5), ours.receive(5), ours.receive(0)]
        finally:
            ours.close()
    assert [one and one.arbitration_id for one in heard] == [FAR, 0x7E8, None]


async def test_two_interfaces_are_two_buses(vcan0: str, vcan1: str, open_can: OpenCan) -> None:
    here, there = open_can(vcan0), open_can(vcan1)
    here.send(can.Message(arbitration_id=0x100, is_extended_id=False))
    there.send(can.Message(arbitration_id=0x101, is_extended_id=False))
    assert (here.recv(0), there.recv(0)) == (None, None)


@pytest.mark.usefixtures("vcan0")
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
async def test_an_interface_that_is_not_there_is_bus_down() -> None:
    async with open_link(interface="socketcan", channel="vcan-none") as link:
        with pytest.raises(BusDown, match="vcan-none") as caught:
            link.connect()
        assert caught.value.retryable
    # python-can forgets its socket when the binding fails, and leaves it to the garbage collection.
    del caught
    gc.collect()


async def test_an_interface_that_is_down_takes_no_frame(own_vcan: str) -> None:
    async with open_link(interface="socketcan", channel=own_vcan) as link:
        ours = link.connect()
        try:
            ours.send(0x7E0, b"\x01", extended=False)
            netlink.set_link(own_vcan, up=False)
            with pytest.raises(BusDown):
                ours.send(0x7E0, b"\x02", extended=False)
        finally:
            ours.close()


@pytest.mark.parametrize("end", [lambda name: netlink.set_link(name, up=False), netlink.remove_link])
async def test_an_interface_that_goes_while_one_listens_is_bus_down(
    own_vcan: str, end: Callable[[str], None]
) -> None:
    async with open_link(interface="socketcan", channel=own_vcan) as link:
        ours = link.connect([0x7E8])
        try:
            end(own_vcan)
            with pytest.raises(BusDown):
                ours.receive(5)
        finally:
            ours.close()


async def test_after_it_came_back_the_same_link_works(own_vcan: str, open_can: OpenCan) -> None:
    async with open_link(interface="socketcan", channel=own_vcan) as link:
        ours = link.connect()
        try:
            netlink.set_link(own_vcan, up=False)
            with pytest.raises(BusDown):
                ours.receive(5)
            netlink.set_link(own_vcan, up=True)
            other = open_can(own_vcan)
            ours.send(0x7E0, b"\x01", extended=False)
            assert other.recv(5) is not None
        finally:
            ours.close()


async def test_an_interface_is_held_by_one_program(vcan0: str, vcan1: str, tmp_path: Path) -> None:
    async with open_link(interface="socketcan", channel=vcan0, holder="the agent", lock_folder=tmp_path):
        with pytest.raises(InterfaceBusy, match="the agent"):
            async with open_link(interface="socketcan", channel=vcan0, lock_folder=tmp_path):
                pytest.fail("it was opened twice")
        async with open_link(interface="socketcan", channel=vcan1, lock_folder=tmp_path):
            pass


async def test_an_fd_frame_on_a_classic_interface_is_bus_down(own_vcan: str) -> None:
    netlink.remove_link(own_vcan)
    netlink.make_vcan(own_vcan, mtu=netlink.CLASSIC_MTU)
    async with open_link(interface="socketcan", channel=own_vcan, fd=True) as link:
        ours = link.connect()
        try:
            with pytest.raises(BusDown):
                ours.send(0x7E0, bytes(12), extended=False, fd=True)
            ours.send(0x7E0, bytes(8), extended=False)
        finally:
            ours.close()
