"""Frames that are made and put together again: any payload, any form, and against the simulated ECU's own."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from firmware_flashers.isotp_frames import (
    FD_LENGTHS,
    HEADS,
    FlowStatus,
    Format,
    Reassembler,
    read_flow_control,
    st_min_s,
)
from sim.mcu.isotp import Receiver, Transport

PAYLOADS = st.binary(min_size=1, max_size=300) | st.integers(301, 9000).map(
    lambda n: bytes(i & 0xFF for i in range(n))
)


def frames_of(payload: bytes, layout: Format) -> list[bytes]:
    if len(payload) <= layout.most_single_bytes:
        return [layout.single(payload)]
    first, at = layout.first(payload)
    size = layout.consecutive_bytes
    rest = [
        layout.padded(HEADS[number & 15] + payload[start : start + size])
        for number, start in enumerate(range(at, len(payload), size), start=1)
    ]
    return [first, *rest]


def reassembler(said: list[FlowStatus], *, most_bytes: int = 10_000, block_size: int = 0) -> Reassembler:
    return Reassembler(most_bytes=most_bytes, n_cr_s=1.0, reply=said.append, block_size=block_size)


@settings(max_examples=200, deadline=None)
@given(payload=PAYLOADS, fd=st.booleans(), padding=st.integers(0, 255), block_size=st.integers(0, 255))
def test_what_is_taken_apart_comes_together(payload: bytes, fd: bool, padding: int, block_size: int) -> None:
    layout = Format(fd=fd, padding=padding)
    frames = frames_of(payload, layout)
    assert all(len(one) in (FD_LENGTHS if fd else (8,)) for one in frames)
    said: list[FlowStatus] = []
    together = reassembler(said, block_size=block_size)
    got = [together.feed(one, 0.0) for one in frames]
    assert got[:-1] == [None] * (len(frames) - 1)
    assert got[-1] == payload
    assert not together.is_open
    rest = len(frames) - 1
    expected = 0 if rest == 0 else 1 + ((rest - 1) // block_size if block_size else 0)
    assert said == [FlowStatus.CLEAR_TO_SEND] * expected


@settings(max_examples=100, deadline=None)
@given(payload=PAYLOADS, fd=st.booleans(), at=st.integers(0, 2000), loses=st.booleans())
def test_a_lost_or_repeated_frame_is_no_message(payload: bytes, fd: bool, at: int, loses: bool) -> None:
    frames = frames_of(payload, Format(fd=fd, padding=0))
    if len(frames) == 1:
        return
    at = 1 + at % (len(frames) - 1)
    torn = frames[:at] + frames[at + 1 :] if loses else frames[: at + 1] + frames[at:]
    together = reassembler([])
    got = [one for one in (together.feed(frame, 0.0) for frame in torn) if one is not None]
    # A last frame that comes twice completes the message the first time.
    assert got == ([payload] if not loses and at == len(frames) - 1 else [])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=8) | st.binary(min_size=8, max_size=8), max_size=40))
def test_any_classic_frames_give_what_the_simulated_ecu_gets_of_them(frames: list[bytes]) -> None:
    """Two implementations of the standard's tables, by different hands."""
    said: list[FlowStatus] = []
    told: list[bytes] = []
    ours = reassembler(said, most_bytes=4095)
    theirs = Receiver(told.append, clock=lambda: 0.0, wait=lambda _: None, transport=Transport())
    for frame in frames:
        assert ours.feed(frame, 0.0) == theirs.feed(frame, functional=False)
    assert [one & 15 for one in said] == [one[0] & 15 for one in told]


@given(st.binary(max_size=12))
def test_any_flow_control_is_read_or_is_none(data: bytes) -> None:
    flow = read_flow_control(data)
    assert (flow is not None) == (len(data) >= 3 and data[0] >> 4 == 3)
    if flow is not None:
        assert (flow.status is None) == (data[0] & 15 > 2)
        assert 0 <= flow.st_min_s <= 0.127
        assert flow.block_size == data[1]


def test_separation_times() -> None:
    named = {0: 0.0, 1: 0.001, 0x7F: 0.127, 0x80: 0.127, 0xF0: 0.127, 0xF1: 0.0001, 0xF9: 0.0009, 0xFA: 0.127}
    assert {raw: st_min_s(raw) for raw in named} == named
