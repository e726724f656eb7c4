"""Whatever a Range header says, the answer is inside the file and is what was asked for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from control_plane.storage.ranges import Slice, Unsatisfiable, parse_range

SIZES = st.integers(min_value=0, max_value=10**12)
NUMBERS = st.integers(min_value=0, max_value=10**13)


@given(st.text(max_size=120) | st.from_regex(r"bytes=[ 0-9,+_-]{0,40}", fullmatch=True), SIZES)
def test_any_text_gives_a_part_of_the_file_or_none(header: str, size: int) -> None:
    match parse_range(header, size):
        case Slice(first=first, end=end):
            assert 0 <= first < end <= size
        case other:
            assert other is None or isinstance(other, Unsatisfiable)


@given(NUMBERS, NUMBERS, SIZES)
def test_first_to_last(first: int, last: int, size: int) -> None:
    got = parse_range(f"bytes={first}-{last}", size)
    wanted = range(size)[first : last + 1] if last >= first else None
    if wanted is None:
        assert got is None
    elif not wanted:
        assert isinstance(got, Unsatisfiable)
    else:
        assert got == Slice(first=wanted.start, end=wanted.stop)


@given(NUMBERS, SIZES)
def test_open_ends(number: int, size: int) -> None:
    for header, wanted in (
        (f"bytes={number}-", range(size)[number:]),
        (f"bytes=-{number}", range(size)[size - min(number, size) :]),
    ):
        got = parse_range(header, size)
        expected = Slice(first=wanted.start, end=wanted.stop) if wanted else Unsatisfiable()
        assert got == expected
