"""MQTT messages that come twice, as after a broken connection: a filter for a relay's byte stream.

A PUBLISH of QoS 1 is followed by itself with the DUP flag set (MQTT 3.1.1, 3.3.1.1); all else goes through as
it is. What is not MQTT goes through, too.
"""

from __future__ import annotations

from collections.abc import Callable

PUBLISH, QOS_MASK, QOS_1, DUP = 0x30, 0x06, 0x02, 0x08
MOST_LENGTH_BYTES = 4


class Doubler:
    """One direction of one connection. `wanted` is asked for each message."""

    def __init__(self, wanted: Callable[[], bool]) -> None:
        self._wanted = wanted
        self._waiting = b""
        self.doubled = 0

    def __call__(self, chunk: bytes) -> bytes:
        """The bytes to send on for these; the begin of a packet waits for its rest."""
        self._waiting += chunk
        out = b""
        while (length := _packet_bytes(self._waiting)) is not None and len(self._waiting) >= length:
            packet, self._waiting = self._waiting[:length], self._waiting[length:]
            out += packet
            if packet[0] & 0xF0 == PUBLISH and packet[0] & QOS_MASK == QOS_1 and self._wanted():
                out += bytes([packet[0] | DUP]) + packet[1:]
                self.doubled += 1
        return out


def _packet_bytes(data: bytes) -> int | None:
    """The length of the packet at the begin, by its fixed header (MQTT 3.1.1, 2.2.3); None: not yet known."""
    length = 0
    for place in range(1, MOST_LENGTH_BYTES + 1):
        if place >= len(data):
            return None
        length |= (data[place] & 0x7F) << 7 * (place - 1)
        if data[place] < 0x80:
            return 1 + place + length
    return len(data)
