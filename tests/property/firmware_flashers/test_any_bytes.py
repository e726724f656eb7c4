"""Frames, answers, images and profiles of any bytes end in the promised errors: the fuzzer's targets."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import SEEDS, TARGETS

LOUD = settings(max_examples=200, deadline=None)


def nearly(target: str) -> st.SearchStrategy[bytes]:
    """A seed with some bytes changed, cut out or put in."""

    @st.composite
    def made(draw: st.DrawFn) -> bytes:
        seed = bytearray(draw(st.sampled_from(SEEDS[target])))
        for _ in range(draw(st.integers(0, 6))):
            at = draw(st.integers(0, max(0, len(seed) - 1)))
            match draw(st.sampled_from(["change", "cut", "insert", "end"])):
                case "change" if seed:
                    seed[at] = draw(st.integers(0, 255))
                case "cut":
                    del seed[at : at + draw(st.integers(1, 20))]
                case "insert":
                    seed[at:at] = draw(st.binary(max_size=8))
                case _:
                    del seed[at + 1 :]
        return bytes(seed)

    return made()


def any_input(target: str) -> st.SearchStrategy[bytes]:
    return st.one_of(nearly(target), st.binary(max_size=300))


@LOUD
@given(any_input("isotp"))
def test_frames(data: bytes) -> None:
    TARGETS["isotp"](data)


@LOUD
@given(any_input("uds"))
def test_answers(data: bytes) -> None:
    TARGETS["uds"](data)


@LOUD
@given(any_input("images"))
def test_images(data: bytes) -> None:
    TARGETS["images"](data)


@LOUD
@given(any_input("profile"))
def test_profiles(data: bytes) -> None:
    TARGETS["profile"](data)
