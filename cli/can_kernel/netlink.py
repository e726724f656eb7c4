"""CAN interfaces by rtnetlink (rtnetlink(7)), so that nothing but a Python is needed for them.

Promises: a request that the kernel refuses raises OSError with the kernel's errno. Needs
CAP_NET_ADMIN in the network namespace. Standard library only: a guest's first process runs it.
"""

from __future__ import annotations

import os
import socket
import struct

HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
LINK = struct.Struct("=BxHiII")  # struct ifinfomsg: family, device type, index, flags, change mask
ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: length with this head, type

NLMSG_ERROR = 2
NLM_F_REQUEST, NLM_F_ACK, NLM_F_EXCL, NLM_F_CREATE = 0x1, 0x4, 0x200, 0x400
RTM_NEWLINK, RTM_DELLINK = 16, 17
IFLA_IFNAME, IFLA_MTU, IFLA_TXQLEN, IFLA_LINKINFO, IFLA_INFO_KIND = 3, 4, 13, 18, 1
IFF_UP = 0x1

FD_MTU = 72
"""The MTU of an interface that carries CAN FD frames: sizeof(struct canfd_frame)."""
CLASSIC_MTU = 16
"""Of one that carries classic frames only: sizeof(struct can_frame)."""
QUEUE_FRAMES = 4096
"""Transmit queue of a new interface; the kernel's default for vcan is 1000, for a controller 10."""
ANSWER_S = 5.0


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    length = ATTRIBUTE.size + len(value)
    return ATTRIBUTE.pack(length, kind) + value + bytes(-length % 4)


def message(kind: int, flags: int, body: bytes, *, sequence: int = 1) -> bytes:
    """One request that asks for an acknowledgement."""
    return HEADER.pack(HEADER.size + len(body), kind, flags | NLM_F_REQUEST | NLM_F_ACK, sequence, 0) + body


def new_vcan(name: str, *, mtu: int = FD_MTU, queue_frames: int = QUEUE_FRAMES) -> bytes:
    """The request that makes a virtual CAN interface and brings it up."""
    return message(
        RTM_NEWLINK,
        NLM_F_CREATE | NLM_F_EXCL,
        LINK.pack(socket.AF_UNSPEC, 0, 0, IFF_UP, IFF_UP)
        + attribute(IFLA_IFNAME, name.encode() + b"\0")
        + attribute(IFLA_MTU, struct.pack("=I", mtu))
        + attribute(IFLA_TXQLEN, struct.pack("=I", queue_frames))
        + attribute(IFLA_LINKINFO, attribute(IFLA_INFO_KIND, b"vcan")),
    )


def link_state(index: int, *, up: bool) -> bytes:
    """The request that brings interface `index` up or down."""
    return message(RTM_NEWLINK, 0, LINK.pack(socket.AF_UNSPEC, 0, index, IFF_UP if up else 0, IFF_UP))


def no_link(index: int) -> bytes:
    """The request that removes interface `index`."""
    return message(RTM_DELLINK, 0, LINK.pack(socket.AF_UNSPEC, 0, index, 0, 0))


def refusal(answer: bytes) -> int:
    """The errno of a kernel's answer, 0 for an acknowledgement. Raises ValueError for another message."""
    _, kind, _, _, _ = HEADER.unpack_from(answer)
    if kind != NLMSG_ERROR:
        raise ValueError(f"netlink message type {kind} where an acknowledgement was due")
    (code,) = struct.unpack_from("=i", answer, HEADER.size)
    return -int(code)


def ask(request: bytes) -> None:
    """Send one request to the kernel and wait for its word. Raises OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
        kernel.settimeout(ANSWER_S)
        kernel.sendto(request, (0, 0))
        code = refusal(kernel.recv(65536))
    if code:
        raise OSError(code, os.strerror(code))


def make_vcan(name: str, *, mtu: int = FD_MTU) -> None:
    """Make a virtual CAN interface, up. Raises OSError: EEXIST, EOPNOTSUPP (no vcan), EPERM."""
    ask(new_vcan(name, mtu=mtu))


def set_link(name: str, *, up: bool) -> None:
    """Bring an interface up or down. Raises OSError."""
    ask(link_state(socket.if_nametoindex(name), up=up))


def remove_link(name: str) -> None:
    """Remove an interface. Raises OSError."""
    ask(no_link(socket.if_nametoindex(name)))
