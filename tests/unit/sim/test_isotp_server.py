"""The server's ISO-TP by named frames: what completes a message, and what never does."""

from __future__ import annotations

import pytest

from sim.mcu.isotp import Receiver, SendFailed, send_message, st_min_s


class Side:
    """A receiver with a clock and what it has sent."""

    def __init__(self, block_size: int = 0) -> None:
        self.now = 0.0
        self.sent: list[str] = []
        self.receiver = Receiver(
            lambda data: self.sent.append(data.hex()), clock=lambda: self.now, block_size=block_size
        )

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


def test_short_frames_are_not_heard() -> None:
    side = Side()
    assert side.receiver.feed(bytes.fromhex("023e00"), functional=False) is None
    assert side.receiver.feed(b"", functional=False) is None


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
