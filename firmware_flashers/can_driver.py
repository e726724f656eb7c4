"""What python-can's drivers differ in: who filters, how deep a socket is, how long a frame takes."""

from __future__ import annotations

import socket

import can

RECEIVE_BUFFER_BYTES = 8 * 1024 * 1024
SO_RCVBUFFORCE = 33  # socket(7); Python has no name for it
GUESSED_BITRATE, GUESSED_DATA_BITRATE = 250_000, 2_000_000
"""Where the system has set the rates: the slower of the usual ones of vehicles."""


def deepen(bus: can.BusABC) -> None:
    """Give a SocketCAN socket room for a second of a full bus, as far as we may (see net.core.rmem_max).

    The kernel's default of 208 KiB holds 280 frames: 30 ms of a full bus at 1 Mbit/s.
    """
    raw: socket.socket = bus.socket  # type: ignore[attr-defined]
    try:
        raw.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)
    except PermissionError:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)


def filters_in_driver(bus: can.BusABC) -> bool:
    """Whether the interface overrides python-can's hook for filters of its own."""
    return type(bus)._apply_filters is not can.BusABC._apply_filters


def longest_frame_s(bitrate: int | None, data_bitrate: int | None, *, extended: bool, fd: bool) -> float:
    """Of a full frame, 8 bytes or with `fd` 64 with the bit rate switched; rates in bit/s, None unknown.

    Stuff bits at their worst and the space between frames counted (ISO 11898-1:2015, 10.5 and 10.4.2.2).
    """
    nominal = bitrate or GUESSED_BITRATE
    if not fd:
        return (160 if extended else 135) / nominal
    data = data_bitrate or (GUESSED_DATA_BITRATE if bitrate is None else nominal)
    return (59 if extended else 34) / nominal + 678 / data
