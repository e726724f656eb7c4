"""The server's ISO-TP by named frames: what completes a message, and what never does."""

from __future__ import annotations

import pytest

from sim.mcu.isotp import Receiver, SendFailed, Transport, send_message, st_min_s


class Side:
    """A receiver with a clock and what it has sent."""

    def __init__(self, block_size: int = 0, transport: Transport | None = None) -> None:
        self.now = 0.0
        self.sent: list[str] = []
        self.receiver = Receiver(
            lambda data: self.sent.append(data.hex()),
            clock=lambda: self.now,
            wait=self.wait,
            transport=transport or Transport(block_size=block_size),
        )

    def wait(self, seconds: float) -> None:
        self.now += seconds

    def take(self, frame: str) -> str | None:
        """Feed a frame as it is."""
        message = self.receiver.feed(bytes.fromhex(frame), functional=False)
        return None if message is None else message.hex()

    def feed(self, frame: str, *, functional: bool = False) -> str | None:
        data = bytes.fromhex(frame).ljust(8, b"\xcc")
        message = self.receiver.feed(data, functional=functional)
        return None if message is None else message.hex()


FF20 = "1014000102030405"
FC = "300000aaaaaaaaaa"
REST = ("21060708090a0b0c", "220d0e0f10111213")
WHOLE = bytes(range(20)).hex()


def test_a_message_of_several_frames() -> None:
    side = Side()
    assert side.feed(FF20) is None
    assert side.sent == [FC]
    assert [(side.feed(one), side.receiver.is_receiving) for one in REST] == [(None, True), (WHOLE, False)]
    assert side.sent == [FC]


def test_a_block_size_is_kept() -> None:
    side = Side(block_size=1)
    for frame in (FF20, *REST):
        last = side.feed(frame)
    assert last == WHOLE
    assert side.sent == ["300100aaaaaaaaaa"] * 2


def test_sequence_numbers_wrap() -> None:
    side = Side()
    data = bytes(n & 0xFF for n in range(6 + 7 * 40))
    side.feed("1" + f"{len(data):03x}" + data[:6].hex())
    for number in range(40):
        chunk = data[6 + 7 * number : 13 + 7 * number]
        done = side.feed(f"2{(number + 1) % 16:x}" + chunk.hex())
    assert done == data.hex()


BROKEN = {
    "a frame is missing": (FF20, REST[1]),
    "a frame comes twice": (FF20, REST[0], REST[0], REST[1]),
    "frames without a first one": REST,
    "a single frame of no bytes": ("00",),
    "a single frame of eight bytes": ("08" + "11" * 7,),
    "a first frame that a single one could be": ("1007000102030405",),
    "flow control that nobody waits for": ("300000",),
    "an unknown kind": ("4000",),
}


@pytest.mark.parametrize("frames", BROKEN.values(), ids=BROKEN)
def test_what_is_broken_is_never_a_message(frames: tuple[str, ...]) -> None:
    side = Side()
    assert [side.feed(one) for one in frames] == [None] * len(frames)
    assert side.feed("023e00") == "3e00", "and the next request is heard"


@pytest.mark.parametrize("frame", ["1000000011110000", "1000000010000000"], ids=["32-bit length", "4 GiB"])
def test_too_long_a_message_is_answered_with_overflow(frame: str) -> None:
    side = Side()
    assert side.feed(frame) is None
    assert side.sent == ["320000aaaaaaaaaa"]
    assert not side.receiver.is_receiving


def test_a_new_message_replaces_an_unfinished_one() -> None:
    side = Side()
    side.feed(FF20)
    side.feed(REST[0])
    assert side.feed("023e00") == "3e00"
    assert side.feed(REST[1]) is None
    side.feed(FF20)
    side.feed(FF20)
    assert [side.feed(one) for one in REST] == [None, WHOLE]


def test_a_functional_single_frame_leaves_an_unfinished_message_alone() -> None:
    side = Side()
    side.feed(FF20)
    side.feed(REST[0])
    assert side.feed("023e80", functional=True) == "3e80"
    assert side.feed(FF20, functional=True) is None
    assert side.feed(REST[1]) == WHOLE


def test_a_message_that_stops_is_forgotten() -> None:
    side = Side()
    side.feed(FF20)
    side.feed(REST[0])
    side.now += 1.1
    assert not side.receiver.is_receiving
    assert side.feed(REST[1]) is None


def test_a_frame_may_be_as_short_as_its_message() -> None:
    side = Side()
    assert side.take("023e00") == "3e00"
    assert side.take("023e") is None, "and not shorter"
    assert side.take("") is None
    assert [side.take(one) for one in (FF20, REST[0], "220d0e0f10111213")] == [None, None, WHOLE]
    assert side.take("10140001020304") is None, "a first frame is whole"
    assert side.take(REST[0]) is None
    side.take("100a000102030405")
    assert side.take("2106070809") == bytes(range(10)).hex()


def test_an_ecu_that_insists_on_padding_is_deaf_to_short_frames() -> None:
    side = Side(transport=Transport(needs_padding=True))
    assert side.take("023e00") is None
    assert side.take("023e00cccccccccc") == "3e00"


# --- CAN FD -------------------------------------------------------------------------------------


def test_single_frames_of_can_fd() -> None:
    """Up to seven bytes as ever, then with a length byte of their own in the shortest frame (table 13)."""
    side = Side()
    for size, frame_bytes in ((8, 12), (10, 12), (11, 16), (22, 24), (23, 32), (47, 64), (62, 64)):
        data = bytes(range(size))
        frame = (b"\x00" + bytes([size]) + data).ljust(frame_bytes, b"\xcc").hex()
        assert side.take(frame) == data.hex(), size
    assert side.take("023e00cccccccccc") == "3e00"


FD_BROKEN = {
    "a nibble's length in a long frame": "07" + "11" * 11,
    "a length of seven": "0007" + "11" * 10,
    "a length of nothing": "0000" + "11" * 10,
    "more than the frame holds": "000b" + "11" * 10,
    "a longer frame than it takes": "0008" + "11" * 14,
    "a first frame that a single one could be": "103e" + "11" * 62,
    "an escape that is not needed": "100000000fff" + "11" * 58,
}


@pytest.mark.parametrize("frame", FD_BROKEN.values(), ids=FD_BROKEN)
def test_what_is_broken_in_can_fd_is_never_a_message(frame: str) -> None:
    side = Side()
    assert side.take(frame) is None
    assert side.sent == []
    assert not side.receiver.is_receiving


@pytest.mark.parametrize("frame_bytes", [12, 64])
def test_the_first_frame_tells_the_length_of_the_others(frame_bytes: int) -> None:
    side = Side()
    data = bytes(n & 0xFF for n in range(200))
    at = frame_bytes - 2
    assert side.take(f"10{len(data):02x}" + data[:at].hex()) is None
    number = 1
    while at < len(data):
        piece = data[at : at + frame_bytes - 1]
        if len(piece) == frame_bytes - 1:
            assert side.take(f"2{number % 16:x}" + piece[:-4].hex()) is None, "too short: not heard"
        done = side.take(f"2{number % 16:x}" + piece.hex())
        at, number = at + len(piece), number + 1
    assert done == data.hex()


def test_a_buffer_of_more_than_4095_bytes_takes_the_escape() -> None:
    side = Side(transport=Transport(most_bytes=5000))
    data = bytes(n & 0xFF for n in range(5000))
    assert side.take("1000000013 88".replace(" ", "") + data[:58].hex()) is None
    assert side.sent == [FC]
    for number, at in enumerate(range(58, 5000, 63), start=1):
        done = side.take(f"2{number % 16:x}" + data[at : at + 63].hex())
    assert done == data.hex()
    side.take("100000001389" + data[:58].hex())
    assert side.sent[-1] == "320000aaaaaaaaaa"


def test_waits_come_before_each_go() -> None:
    side = Side(transport=Transport(waits=2, wait_s=0.9, block_size=1, st_min=5))
    for frame in (FF20, *REST):
        last = side.feed(frame)
    wait, go = "310105aaaaaaaaaa", "300105aaaaaaaaaa"
    assert side.sent == [wait, wait, go] * 2
    assert side.now == pytest.approx(3.6)
    assert last == WHOLE, "N_Cr begins when it says go"


# --- sending ------------------------------------------------------------------------------------


def sent(message: bytes, *controls: str) -> tuple[list[str], list[float]]:
    frames: list[str] = []
    waits: list[float] = []
    answers = iter([bytes.fromhex(one).ljust(8, b"\xcc") for one in controls])
    send_message(message, lambda data: frames.append(data.hex()), lambda: next(answers, None), waits.append)
    return frames, waits


def test_responses_are_padded_and_follow_flow_control() -> None:
    assert sent(b"\x7e\x00") == (["027e00aaaaaaaaaa"], [])
    frames, waits = sent(bytes(range(35)), "300200", "300005")
    assert frames[0] == "1023000102030405"
    assert frames[1:] == [
        "21060708090a0b0c",
        "220d0e0f10111213",
        "231415161718191a",
        "241b1c1d1e1f2021",
        "2522aaaaaaaaaaaa",
    ]
    assert waits == [0.005] * 3


@pytest.mark.parametrize(
    ("size", "frames"),
    [
        (7, ["07" + bytes(range(7)).hex()]),
        (8, ["0008" + bytes(range(8)).hex() + "aaaa"]),
        (62, ["003e" + bytes(range(62)).hex()]),
        (63, ["103f" + bytes(range(62)).hex(), "213e" + "aa" * 6]),
        (
            135,
            [
                "1087" + bytes(range(62)).hex(),
                "21" + bytes(range(62, 125)).hex(),
                "22" + bytes(range(125, 135)).hex() + "aa",
            ],
        ),
    ],
)
def test_responses_in_can_fd_are_padded_to_a_frame(size: int, frames: list[str]) -> None:
    found: list[bytes] = []
    send_message(bytes(range(size)), found.append, lambda: b"\x30\x00\x00", lambda _: None, fd=True)
    assert [one.hex() for one in found] == frames


def test_a_response_over_4095_bytes_takes_the_escape() -> None:
    frames = sent(bytes(5000), "300000")[0]
    assert frames[0] == "1000000013880000"
    assert len(frames) == 1 + -(-4998 // 7)


@pytest.mark.parametrize(
    "controls", [(), ("320000",), ("330000",), ("310000",) * 11], ids=["none", "overflow", "unknown", "waits"]
)
def test_a_response_that_nobody_takes_fails(controls: tuple[str, ...]) -> None:
    with pytest.raises(SendFailed):
        sent(bytes(20), *controls)


def test_a_tester_may_ask_to_wait() -> None:
    assert len(sent(bytes(20), "310000", "310000", "300000")[0]) == 3


def test_separation_times() -> None:
    assert [st_min_s(raw) for raw in (0, 1, 0x7F, 0x80, 0xF0, 0xF1, 0xF9, 0xFF)] == [
        0.0,
        0.001,
        0.127,
        0.127,
        0.127,
        0.0001,
        0.0009,
        0.127,
    ]
