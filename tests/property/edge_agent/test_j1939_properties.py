"""No pattern of bytes makes a value, let alone a safe one, out of error, not available or reserved."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from edge_agent.interlocks.j1939 import (
    CCVS,
    EEC1,
    ETC2,
    GROUP_OF,
    GROUPS,
    VEP1,
    Spn,
    Validity,
    decode,
    make_id,
    read_id,
)
from edge_agent.interlocks.safety import Policy
from edge_agent.interlocks.signals import Reading, Signals, Tracker, judge_signals
from shared.trust.uptane.safety_policy import SafetyPolicy

FRAME = st.binary(min_size=8, max_size=8)
POLICY = SafetyPolicy(steady_for=0, battery_at_least=1)
GOOD = {
    CCVS: bytes.fromhex("f70000ffffffffff"),
    EEC1: bytes.fromhex("ffffff0000ffffff"),
    ETC2: bytes.fromhex("fffffffbffffffff"),
    VEP1: bytes.fromhex("ffffffff0002fc01"),
}
SENDER = {CCVS: 0x0B, EEC1: 0x00, ETC2: 0x03, VEP1: 0x27}


def raw_of(data: bytes) -> dict[Spn, tuple[int, int]]:
    """Each signal's pattern and its greatest safe-to-read pattern, read by struct, not by the decoder."""
    speed, rpm = struct.unpack_from("<H", data, 1)[0], struct.unpack_from("<H", data, 3)[0]
    battery, key = struct.unpack_from("<HH", data, 4)
    return {
        Spn.PARKING_BRAKE: (data[0] >> 2 & 3, 1),
        Spn.WHEEL_SPEED: (speed, 0xFAFF),
        Spn.ENGINE_SPEED: (rpm, 0xFAFF),
        Spn.GEAR: (data[3], 0xFB),
        Spn.BATTERY: (battery, 0xFAFF),
        Spn.KEY_SWITCH: (key, 0xFAFF),
    }


@given(data=FRAME)
def test_a_value_comes_out_of_the_valid_range_only(data: bytes) -> None:
    raw = raw_of(data)
    for group in GROUPS.values():
        for spn, found in decode(group, data).items():
            pattern, most = raw[spn]
            assert (found.validity is Validity.VALID) == (pattern <= most), (spn, hex(pattern))
            assert (found.value is not None) == (found.validity is Validity.VALID)


@given(data=st.binary(max_size=64).filter(lambda data: len(data) != 8))
def test_a_frame_of_another_length_says_nothing(data: bytes) -> None:
    for group in GROUPS.values():
        assert {one.value for one in decode(group, data).values()} == {None}


@given(number=st.integers(0, 0x1FFFFFFF))
def test_identifiers_come_back_whole(number: int) -> None:
    one = read_id(number)
    assert make_id(one.pgn, one.source, priority=one.priority) | (one.destination or 0) << 8 == number


def readings(frames: dict[str, bytes]) -> Signals:
    heard: list[Reading] = []
    for group, good in GOOD.items():
        for spn, decoded in decode(group, frames.get(group.name, good)).items():
            tracker = Tracker(spn, SENDER[group])
            tracker.note(100.0, decoded)
            heard.append(tracker.reading(100.05))
    return Signals(readings=tuple(heard))


def test_the_good_frames_are_good() -> None:
    assert judge_signals(readings({}), POLICY) == ()


POLICIES = st.builds(
    SafetyPolicy,
    speed_at_most=st.sampled_from([0, 500, 2**31]),
    standstill_signals=st.integers(2, 3),
    engine_speed_at_most_rpm=st.sampled_from([0, 700, 2**31]),
    need_parking_brake=st.booleans(),
    need_neutral=st.booleans(),
    need_key_switch_on=st.booleans(),
    battery_at_least=st.sampled_from([0, 22_000, 25_000]),
    stale_after=st.sampled_from([10, 2_000]),
    steady_for=st.sampled_from([0, 5_000]),
    may_take_silent_engine_as_off=st.booleans(),
)
LIKELY = st.one_of(st.sampled_from(list(GOOD.values())), FRAME)


@given(
    signed=POLICIES, local=POLICIES, heard=st.dictionaries(st.sampled_from([g.name for g in GOOD]), LIKELY)
)
def test_a_truck_allows_nothing_that_its_release_or_its_owner_forbids(
    signed: SafetyPolicy, local: SafetyPolicy, heard: dict[str, bytes]
) -> None:
    found = readings(heard)
    if not judge_signals(found, Policy(local=local).under(signed).rules):
        assert judge_signals(found, signed) == ()
        assert judge_signals(found, local) == ()


@given(spn=st.sampled_from(list(Spn)), data=FRAME)
def test_whatever_one_sender_says_only_a_safe_pattern_is_safe(spn: Spn, data: bytes) -> None:
    group = GROUP_OF[spn]
    raw = raw_of(data)
    safe = {
        Spn.PARKING_BRAKE: raw[Spn.PARKING_BRAKE][0] == 1,
        Spn.WHEEL_SPEED: raw[Spn.WHEEL_SPEED][0] == 0,
        Spn.ENGINE_SPEED: raw[Spn.ENGINE_SPEED][0] == 0,
        Spn.GEAR: raw[Spn.GEAR][0] in {0x7D, 0xFB},
        Spn.BATTERY: 1 <= raw[Spn.BATTERY][0] <= 0xFAFF,
        Spn.KEY_SWITCH: 160 <= raw[Spn.KEY_SWITCH][0] <= 0xFAFF,
    }
    allowed = not judge_signals(readings({group.name: data}), POLICY)
    assert allowed == all(safe[one] for one in group.places)
