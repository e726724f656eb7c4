"""Messages that come twice: each PUBLISH of QoS 1 and nothing else, however the stream is cut into pieces."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sim.mqtt_doubles import Doubler


def packet(first: int, body: bytes) -> bytes:
    """MQTT 3.1.1, 2.2: the fixed header and what follows."""
    length, out = len(body), bytearray([first])
    while True:
        length, digit = length >> 7, length & 0x7F
        out.append(digit | (0x80 if length else 0))
        if not length:
            return bytes(out) + body


FIRST = st.sampled_from([0x10, 0x30, 0x32, 0x33, 0x34, 0x40, 0x82, 0xC0, 0xE0])
PACKETS = st.lists(st.builds(packet, FIRST, st.binary(max_size=300)), max_size=8)


@given(packets=PACKETS, cuts=st.lists(st.integers(1, 400), max_size=30), wanted=st.booleans())
def test_each_message_of_qos_1_comes_twice_in_any_pieces(
    packets: list[bytes], cuts: list[int], *, wanted: bool
) -> None:
    doubler = Doubler(lambda: wanted)
    stream, out = b"".join(packets), b""
    for size in cuts:
        out += doubler(stream[:size])
        stream = stream[size:]
    out += doubler(stream)
    expected = b""
    for one in packets:
        expected += one
        if wanted and one[0] in {0x32, 0x33}:
            expected += bytes([one[0] | 0x08]) + one[1:]
    assert out == expected
    assert doubler.doubled == sum(one[0] in {0x32, 0x33} for one in packets if wanted)


def test_what_is_not_mqtt_goes_through() -> None:
    assert Doubler(lambda: True)(b"\x30\xff\xff\xff\xff\xffgarbage") == b"\x30\xff\xff\xff\xff\xffgarbage"


def test_a_large_message_comes_twice() -> None:
    large = packet(0x32, bytes(70_000))
    assert len(Doubler(lambda: True)(large)) == 2 * len(large)
