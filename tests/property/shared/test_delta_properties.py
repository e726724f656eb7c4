"""Any two images; any spoiled delta: the image, or DeltaBroken, and never more bytes than were signed."""

from __future__ import annotations

import io

from hypothesis import given, settings
from hypothesis import strategies as st

from shared.delta import DeltaBroken, apply_delta, make_delta

BLOCKS = st.lists(
    st.sampled_from([b"abcdefgh" * 20, b"\x00" * 99, b"12345", b"\xff\x7f\x80" * 30]), max_size=12
)
IMAGES = st.builds(lambda blocks, tail: b"".join(blocks) + tail, BLOCKS, st.binary(max_size=60))


@given(base=IMAGES, image=IMAGES)
@settings(deadline=None)
def test_what_is_made_comes_out(base: bytes, image: bytes) -> None:
    delta = make_delta(base, image)
    assert b"".join(apply_delta(io.BytesIO(base), io.BytesIO(delta), length=len(image))) == image


@given(base=IMAGES, image=IMAGES, at=st.integers(0, 10**6), new=st.binary(min_size=1, max_size=8))
@settings(deadline=None)
def test_a_spoiled_delta_is_bounded(base: bytes, image: bytes, at: int, new: bytes) -> None:
    delta = bytearray(make_delta(base, image))
    at %= len(delta)
    delta[at : at + len(new)] = new
    came = 0
    try:
        for chunk in apply_delta(io.BytesIO(base), io.BytesIO(bytes(delta)), length=len(image)):
            came += len(chunk)
    except DeltaBroken:
        pass
    else:
        assert came == len(image)
    assert came <= len(image)
