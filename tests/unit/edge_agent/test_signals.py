"""Each signal in each bad state forbids and says why; two witnesses must be independent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
import pytest

from edge_agent.interlocks.j1939 import GROUP_OF, PARK, Decoded, Spn, Validity
from edge_agent.interlocks.signals import MOST_SPANS, SPAN_S, Reading, Signals, Tracker, judge_signals
from shared.causes import SENTENCES, WORDS, Cause, sentence
from shared.trust.uptane.safety_policy import LOOSEST, SafetyPolicy

POLICY = SafetyPolicy()
SENDER = {"CCVS1": 0x0B, "EEC1": 0x00, "ETC2": 0x03, "VEP1": 0x27}
GOOD: dict[Spn, float] = {
    Spn.WHEEL_SPEED: 0.0,
    Spn.PARKING_BRAKE: 1.0,
    Spn.ENGINE_SPEED: 0.0,
    Spn.GEAR: PARK,
    Spn.BATTERY: 25.6,
    Spn.KEY_SWITCH: 25.4,
}
HELD_S = 10.0


def valid(value: float) -> Decoded:
    return Decoded(validity=Validity.VALID, value=value)


def reading(
    spn: Spn, said: float | Validity | None, *, source: int | None = None, age_s: float = 0.05
) -> Reading:
    """A signal that has said the same for ten seconds, and `age_s` ago for the last time; None: never."""
    source = SENDER[GROUP_OF[spn].name] if source is None else source
    tracker = Tracker(spn, source)
    if said is not None:
        decoded = Decoded(validity=said) if isinstance(said, Validity) else valid(said)
        at = 0.0
        while at <= HELD_S:
            tracker.note(at, decoded)
            at += GROUP_OF[spn].period_s
        return tracker.reading(at - GROUP_OF[spn].period_s + age_s)
    return tracker.reading(HELD_S)


def signals(changes: dict[Spn, Any] | None = None, *more: Reading, foreign: bool = False) -> Signals:
    said: dict[Spn, Any] = {**GOOD, **(changes or {})}
    return Signals(
        readings=(*(reading(spn, value) for spn, value in said.items()), *more), foreign_tester=foreign
    )


def codes(causes: Iterable[Cause]) -> set[str]:
    return {one.code for one in causes}


def test_all_good_is_good() -> None:
    assert judge_signals(signals(), POLICY) == ()
    assert judge_signals(signals(), POLICY, most_voltage_v=32.0) == ()


UNKNOWN_CODE = {
    Spn.WHEEL_SPEED: "speed_unknown",
    Spn.PARKING_BRAKE: "brake_unknown",
    Spn.ENGINE_SPEED: "rpm_unknown",
    Spn.GEAR: "gear_unknown",
    Spn.BATTERY: "battery_unknown",
    Spn.KEY_SWITCH: "key_unknown",
}
BAD_STATES: dict[str, Any] = {
    "error": Validity.ERROR,
    "not_available": Validity.NOT_AVAILABLE,
    "reserved": Validity.RESERVED,
    "malformed": Validity.MALFORMED,
    "silent": None,
}


@pytest.mark.parametrize("spn", list(Spn))
@pytest.mark.parametrize("state", BAD_STATES)
def test_what_says_nothing_is_not_safe(spn: Spn, state: str) -> None:
    causes = judge_signals(signals({spn: BAD_STATES[state]}), POLICY)
    expected = Cause(UNKNOWN_CODE[spn], f"{SENDER[GROUP_OF[spn].name]:#04x}", state)
    assert expected in causes


@pytest.mark.parametrize("spn", list(Spn))
def test_what_is_older_than_three_periods_is_not_safe(spn: Spn) -> None:
    period_s = GROUP_OF[spn].period_s
    most_s = min(3 * period_s, POLICY.stale_after / 1000)
    others = tuple(reading(one, GOOD[one]) for one in Spn if one is not spn)
    for age_s, good in ((most_s - 0.01, True), (most_s + 0.01, False), (-0.1, False), (float("nan"), False)):
        causes = judge_signals(Signals(readings=(*others, reading(spn, GOOD[spn], age_s=age_s))), POLICY)
        assert (UNKNOWN_CODE[spn] not in codes(causes)) == good, (age_s, causes)


@pytest.mark.parametrize(
    ("spn", "value", "code"),
    [
        (Spn.WHEEL_SPEED, 1 / 256, "moves"),
        (Spn.WHEEL_SPEED, 30.0, "moves"),
        (Spn.PARKING_BRAKE, 0.0, "brake_not_set"),
        (Spn.ENGINE_SPEED, 0.125, "engine_runs"),
        (Spn.ENGINE_SPEED, 650.0, "engine_runs"),
        (Spn.GEAR, 1.0, "gear_engaged"),
        (Spn.GEAR, -1.0, "gear_engaged"),
        (Spn.BATTERY, 23.95, "battery_low"),
        (Spn.BATTERY, 33.0, "battery_high"),
        (Spn.KEY_SWITCH, 0.0, "key_off"),
        (Spn.KEY_SWITCH, 5.0, "key_unknown"),
    ],
)
def test_what_is_not_safe_is_named(spn: Spn, value: float, code: str) -> None:
    causes = judge_signals(signals({spn: value}), POLICY, most_voltage_v=32.0)
    assert code in codes(causes)


def test_nothing_at_all_names_everything() -> None:
    causes = judge_signals(Signals(readings=()), POLICY)
    assert codes(causes) == {*UNKNOWN_CODE.values(), "few_standstill"}
    assert {one.word for one in causes} == {"no_sender", ""}


def test_a_foreign_tester_is_not_safe() -> None:
    assert codes(judge_signals(signals(foreign=True), POLICY)) == {"foreign_tester"}


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({Spn.WHEEL_SPEED: 20.0}, "brake_and_speed"),
        ({Spn.ENGINE_SPEED: 900.0, Spn.KEY_SWITCH: 0.0}, "key_and_engine"),
    ],
)
def test_signals_that_contradict_each_other_are_not_safe(changes: dict[Spn, Any], word: str) -> None:
    lax = msgspec.structs.replace(LOOSEST, standstill_signals=2)
    assert Cause("contradiction", word=word) in judge_signals(signals(changes), lax)


def test_two_senders_of_one_signal_must_agree() -> None:
    other = reading(Spn.WHEEL_SPEED, 3.0, source=0x31)
    causes = judge_signals(signals(None, other), POLICY)
    assert {"moves", "contradiction"} <= codes(causes)
    assert Cause("contradiction", word="wheel_speed") in causes
    silent = reading(Spn.WHEEL_SPEED, None, source=0x31)
    assert Cause("speed_unknown", "0x31", "silent") in judge_signals(signals(None, silent), POLICY)


STANDSTILL: dict[str, tuple[dict[Spn, float], dict[Spn, int], int]] = {
    "speed and brake share one message": ({Spn.GEAR: 0.0, Spn.ENGINE_SPEED: 650.0}, {}, 1),
    "a standing engine": ({Spn.GEAR: 0.0}, {}, 2),
    "a transmission in park": ({Spn.ENGINE_SPEED: 650.0}, {}, 2),
    "neutral says nothing": ({Spn.GEAR: 0.0, Spn.ENGINE_SPEED: 650.0}, {}, 1),
    "all three": ({}, {}, 3),
    "one sender of two sensors": ({Spn.GEAR: 0.0}, {Spn.ENGINE_SPEED: 0x0B}, 1),
    "one sender of all": ({}, {Spn.ENGINE_SPEED: 0x0B, Spn.GEAR: 0x0B}, 1),
    "two senders of three": ({}, {Spn.ENGINE_SPEED: 0x0B}, 2),
}


@pytest.mark.parametrize("case", STANDSTILL, ids=lambda case: str(case).replace(" ", "-"))
def test_witnesses_of_standstill_are_counted_once_a_sender_and_a_sensor(case: str) -> None:
    changes, sources, expected = STANDSTILL[case]
    said = {**GOOD, **changes}
    found = Signals(
        readings=tuple(reading(spn, value, source=sources.get(spn)) for spn, value in said.items())
    )
    for needed in (2, 3, 4):
        policy = SafetyPolicy(standstill_signals=needed, engine_speed_at_most_rpm=8032, need_neutral=False)
        few = "few_standstill" in codes(judge_signals(found, policy))
        assert few == (needed > expected), needed


def test_a_policy_that_lets_it_creep_does_not_make_a_creeping_truck_stand() -> None:
    policy = msgspec.structs.replace(LOOSEST, standstill_signals=3)
    assert judge_signals(signals(), policy) == ()
    assert "few_standstill" in codes(
        judge_signals(signals({Spn.WHEEL_SPEED: 5.0, Spn.PARKING_BRAKE: 0.0}), policy)
    )


def test_the_ecu_that_is_flashed_is_no_witness_of_its_own_flash() -> None:
    assert judge_signals(signals(), POLICY, without=0x77) == ()
    causes = judge_signals(signals(), POLICY, without=SENDER["CCVS1"])
    assert Cause("speed_unknown", word="no_sender") in causes
    second = [reading(spn, GOOD[spn], source=0x31) for spn in (Spn.WHEEL_SPEED, Spn.PARKING_BRAKE)]
    assert judge_signals(signals(None, *second), POLICY, without=SENDER["CCVS1"]) == ()


SILENT = msgspec.structs.replace(
    POLICY, may_take_silent_engine_as_off=True, need_key_switch_on=False, need_neutral=False
)


@pytest.mark.parametrize(
    ("engine", "key", "policy", "code"),
    [
        (None, 0.0, SILENT, None),
        (None, 25.0, SILENT, "key_not_off"),
        (None, 5.0, SILENT, "key_unknown"),
        (None, None, SILENT, "key_unknown"),
        (None, Validity.ERROR, SILENT, "key_unknown"),
        (Validity.ERROR, 0.0, SILENT, "rpm_unknown"),
        (Validity.NOT_AVAILABLE, 0.0, SILENT, "rpm_unknown"),
        (None, 0.0, msgspec.structs.replace(SILENT, may_take_silent_engine_as_off=False), "rpm_unknown"),
    ],
)
def test_a_silent_engine_is_off_only_by_policy_and_with_the_key_off(
    engine: Any, key: Any, policy: SafetyPolicy, code: str | None
) -> None:
    causes = judge_signals(signals({Spn.ENGINE_SPEED: engine, Spn.KEY_SWITCH: key}), policy)
    assert codes(causes) == (set() if code is None else {code})


def test_a_silent_engine_is_no_witness_of_standstill() -> None:
    said = {Spn.ENGINE_SPEED: None, Spn.KEY_SWITCH: 0.0, Spn.GEAR: 0.0}
    assert codes(judge_signals(signals(said), SILENT)) == {"few_standstill"}


def tracked(spn: Spn, said: Iterable[tuple[float, Decoded]], now: float) -> Signals:
    tracker = Tracker(spn, SENDER[GROUP_OF[spn].name])
    for at, decoded in said:
        tracker.note(at, decoded)
    others = tuple(reading(one, GOOD[one]) for one in Spn if one is not spn)
    return Signals(readings=(*others, tracker.reading(now)))


def beats(value: float, start: float, end: float, period_s: float) -> list[tuple[float, Decoded]]:
    many = round((end - start) / period_s)
    return [(start + n * period_s, valid(value)) for n in range(many)]


@pytest.mark.parametrize(
    ("case", "good"),
    [
        ("steady", True),
        ("too short", False),
        ("a dip", False),
        ("a dip long ago", True),
        ("an error between", False),
        ("a gap", False),
    ],
)
def test_a_voltage_counts_when_it_was_good_for_some_seconds(case: str, good: bool) -> None:
    low, error = valid(20.0), Decoded(validity=Validity.ERROR)
    said = {
        "steady": beats(25.0, 0, 11, 1.0),
        "too short": beats(25.0, 7, 11, 1.0),
        "a dip": [*beats(25.0, 0, 8, 1.0), (8.0, low), *beats(25.0, 9, 11, 1.0)],
        "a dip long ago": [(0.0, low), *beats(25.0, 1, 11, 1.0)],
        "an error between": [*beats(25.0, 0, 8, 1.0), (8.0, error), *beats(25.0, 9, 11, 1.0)],
        "a gap": [*beats(25.0, 0, 4, 1.0), *beats(25.0, 8, 11, 1.0)],
    }[case]
    causes = judge_signals(tracked(Spn.BATTERY, said, 10.5), POLICY)
    assert codes(causes) == (set() if good else {"not_steady"})


def test_a_gear_between_neutral_and_park_is_not_hidden() -> None:
    said = [*beats(0.0, 0, 9, 0.1), (9.0, valid(50.0)), (9.05, valid(PARK)), *beats(PARK, 9.1, 10, 0.1)]
    assert codes(judge_signals(tracked(Spn.GEAR, said, 10.0), POLICY)) == {"not_steady"}


def test_a_clock_that_goes_back_begins_anew() -> None:
    said = [*beats(25.0, 100, 111, 1.0), *beats(25.0, 10, 13, 1.0)]
    assert codes(judge_signals(tracked(Spn.BATTERY, said, 12.5), POLICY)) == {"not_steady"}


def test_the_past_is_bounded_and_a_longer_steady_time_is_never_reached() -> None:
    tracker = Tracker(Spn.BATTERY, 0)
    for n in range(3 * MOST_SPANS):
        tracker.note(n * SPAN_S, valid(25.0))
    found = tracker.reading(3 * MOST_SPANS * SPAN_S)
    assert len(found.past) == MOST_SPANS
    others = tuple(reading(one, GOOD[one]) for one in Spn if one is not Spn.BATTERY)
    causes = judge_signals(Signals(readings=(*others, found)), SafetyPolicy(steady_for=10**9))
    assert codes(causes) == {"not_steady"}


def test_a_sentence_stays_while_its_cause_stays() -> None:
    one = judge_signals(signals({Spn.WHEEL_SPEED: 3.0, Spn.BATTERY: 20.0}), POLICY)
    other = judge_signals(signals({Spn.WHEEL_SPEED: 70.0, Spn.BATTERY: 12.0}), POLICY)
    assert sentence(one) == sentence(other)
    assert "it moves" in sentence(one)
    assert "below 24 V" in sentence(one)
    assert "машина движется" in sentence(one, "ru")


@pytest.mark.parametrize("code", SENTENCES)
def test_every_cause_has_its_sentence_in_both_languages(code: str) -> None:
    for word in ("", *WORDS):
        cause = Cause(code, "0x0b", word)
        assert "{}" not in cause.text + cause.text_ru
        assert cause.text.isascii()
        assert not cause.text_ru.replace("0x0b", "").isascii()
