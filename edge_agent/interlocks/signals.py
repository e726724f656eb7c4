"""PURE: what a vehicle's J1939 signals prove. What is not known, not fresh or contradicted proves nothing.

`Tracker` keeps one signal of one sender with its recent past; `judge_signals` names every cause against
a flash. All pinned senders of a signal must say that it is safe: one that lies can't be outvoted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from edge_agent.interlocks.j1939 import GROUP_OF, PARK, Decoded, Spn, Validity
from shared.causes import Cause
from shared.trust.uptane.safety_policy import SafetyPolicy

STALE_PERIODS = 3
SPAN_S = 0.25
MOST_SPANS = 480
"""Two minutes: a policy that asks for a longer steady time is never satisfied."""
KEY_ON_FROM_V, KEY_OFF_TO_V = 8.0, 2.0
FASTEST_M_H, FASTEST_RPM = 251_000, 8032
"""Beyond what SPN 84 and 190 can say: a policy that allows so much does not look at them."""
MOVES_FROM_KM_H = 1.0
NOTHING = Decoded(validity=Validity.NOT_AVAILABLE)


@dataclass(frozen=True, kw_only=True)
class Span:
    """What a signal was for a short time that began `began_s_ago`; None: not valid for a part of it."""

    began_s_ago: float
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One signal of one pinned sender; `age_s` None: never heard. `past` is newest first, without gaps."""

    spn: Spn
    source: int
    age_s: float | None = None
    decoded: Decoded = NOTHING
    past: tuple[Span, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Signals:
    """What is known of the vehicle's bus: one reading for each pinned sender of each signal."""

    readings: tuple[Reading, ...]
    foreign_tester: bool = False


class Tracker:
    """One signal of one sender over time. `at` are seconds of one clock that only goes forward."""

    def __init__(self, spn: Spn, source: int) -> None:
        self._spn = spn
        self._source = source
        self._stale_s = STALE_PERIODS * GROUP_OF[spn].period_s
        self._at: float | None = None
        self._decoded = NOTHING
        self._spans: deque[tuple[float, float | None, float | None]] = deque(maxlen=MOST_SPANS)

    def note(self, at: float, decoded: Decoded) -> None:
        """A frame was heard."""
        if self._at is not None and not 0 <= at - self._at <= self._stale_s:
            self._spans.clear()
        self._at, self._decoded = at, decoded
        value = decoded.value
        if value is not None and self._spn is Spn.GEAR and value == PARK:
            # The least and the greatest must not hide a gear between neutral and park.
            value = 0.0
        if not self._spans or at - self._spans[-1][0] >= SPAN_S:
            self._spans.append((at, value, value))
            return
        began, low, high = self._spans[-1]
        both = None if value is None or low is None or high is None else (min(low, value), max(high, value))
        self._spans[-1] = (began, *(both or (None, None)))

    def reading(self, now: float) -> Reading:
        """As it is at `now`."""
        if self._at is None:
            return Reading(spn=self._spn, source=self._source)
        return Reading(
            spn=self._spn,
            source=self._source,
            age_s=now - self._at,
            decoded=self._decoded,
            past=tuple(
                Span(began_s_ago=now - began, low=low, high=high)
                for began, low, high in reversed(self._spans)
            ),
        )


@dataclass(frozen=True)
class _Bound:
    """What one signal must be: the causes when it is not known, and when it is not so."""

    spn: Spn
    good: Callable[[float], bool]
    unknown: str
    bad: Cause


def judge_signals(
    signals: Signals, policy: SafetyPolicy, *, most_voltage_v: float | None = None, without: int | None = None
) -> tuple[Cause, ...]:
    """Every cause against a flash; none: it is safe.

    `without` is the address of the ECU that is flashed, which can't be a witness of its own flash.
    """
    view = _View(signals, policy, without)
    causes = [Cause("foreign_tester")] if signals.foreign_tester else []
    for bound in _bounds(policy, most_voltage_v):
        causes += view.against(bound)
    causes += view.against_engine()
    causes += view.contradictions()
    if not any(one.code == "moves" for one in causes) and view.standstill() < policy.standstill_signals:
        causes.append(Cause("few_standstill", str(policy.standstill_signals)))
    if not causes and not view.steady:
        causes.append(Cause("not_steady", f"{policy.steady_for / 1000:g}"))
    return tuple(dict.fromkeys(causes))


def _bounds(policy: SafetyPolicy, most_voltage_v: float | None) -> Iterable[_Bound]:
    if policy.speed_at_most < FASTEST_M_H:
        yield _Bound(
            Spn.WHEEL_SPEED, lambda v: v * 1000 <= policy.speed_at_most, "speed_unknown", Cause("moves")
        )
    if policy.need_parking_brake:
        yield _Bound(Spn.PARKING_BRAKE, lambda v: v == 1.0, "brake_unknown", Cause("brake_not_set"))
    if policy.need_neutral:
        yield _Bound(Spn.GEAR, lambda v: v in {0.0, PARK}, "gear_unknown", Cause("gear_engaged"))
    if policy.battery_at_least > 0:
        low = Cause("battery_low", f"{policy.battery_at_least / 1000:g}")
        yield _Bound(Spn.BATTERY, lambda v: v * 1000 >= policy.battery_at_least, "battery_unknown", low)
    if most_voltage_v is not None:
        high = Cause("battery_high", f"{most_voltage_v:g}")
        yield _Bound(Spn.BATTERY, lambda v: v <= most_voltage_v, "battery_unknown", high)
    if policy.need_key_switch_on:
        yield _Bound(Spn.KEY_SWITCH, lambda v: v >= KEY_ON_FROM_V, "key_unknown", Cause("key_off"))


class _View:
    """The readings in the light of a policy; `steady` turns False when a signal is good for too short."""

    def __init__(self, signals: Signals, policy: SafetyPolicy, without: int | None) -> None:
        self._readings = [one for one in signals.readings if one.source != without]
        self._policy = policy
        self.steady = True

    def of(self, spn: Spn) -> list[Reading]:
        return [one for one in self._readings if one.spn is spn]

    def fresh(self, one: Reading) -> bool:
        most_s = min(STALE_PERIODS * GROUP_OF[one.spn].period_s, self._policy.stale_after / 1000)
        return one.age_s is not None and 0 <= one.age_s <= most_s

    def value(self, one: Reading) -> float | None:
        """The value, when it is valid and fresh."""
        return one.decoded.value if self.fresh(one) and one.decoded.validity is Validity.VALID else None

    def held(self, one: Reading, good: Callable[[float], bool]) -> bool:
        """Whether it was good for the whole of the policy's steady time."""
        steady_s = self._policy.steady_for / 1000
        for span in one.past:
            if span.low is None or span.high is None or not (good(span.low) and good(span.high)):
                return False
            if span.began_s_ago >= steady_s:
                return True
        return steady_s == 0

    def against(self, bound: _Bound) -> list[Cause]:
        readings = self.of(bound.spn)
        if not readings:
            return [Cause(bound.unknown, word="no_sender")]
        causes: list[Cause] = []
        verdicts: set[bool] = set()
        for one in readings:
            value = self.value(one)
            if value is None:
                causes.append(Cause(bound.unknown, f"{one.source:#04x}", self._why_unknown(one)))
                continue
            verdicts.add(bound.good(value))
            if bound.good(value):
                self.steady = self.steady and self.held(one, bound.good)
            elif bound.spn is Spn.KEY_SWITCH and KEY_OFF_TO_V < value < KEY_ON_FROM_V:
                causes.append(Cause(bound.unknown, f"{one.source:#04x}", "unclear"))
            else:
                causes.append(bound.bad)
        if len(verdicts) > 1:
            causes.append(Cause("contradiction", word=bound.spn.name.lower()))
        return causes

    def _why_unknown(self, one: Reading) -> str:
        return one.decoded.validity.value if self.fresh(one) else "silent"

    def against_engine(self) -> list[Cause]:
        most = self._policy.engine_speed_at_most_rpm
        if most >= FASTEST_RPM:
            return []
        silent = not any(self.fresh(one) for one in self.of(Spn.ENGINE_SPEED))
        if silent and self._policy.may_take_silent_engine_as_off:
            return self.against_silent_engine()
        return self.against(
            _Bound(Spn.ENGINE_SPEED, lambda v: v <= most, "rpm_unknown", Cause("engine_runs"))
        )

    def against_silent_engine(self) -> list[Cause]:
        """A controller that sends nothing has no power: only a fresh key switch that is off proves it."""
        key_is_off = _Bound(Spn.KEY_SWITCH, lambda v: v <= KEY_OFF_TO_V, "key_unknown", Cause("key_not_off"))
        return self.against(key_is_off)

    def contradictions(self) -> list[Cause]:
        def say(spn: Spn, fits: Callable[[float], bool]) -> bool:
            values = [self.value(one) for one in self.of(spn)]
            return any(value is not None and fits(value) for value in values)

        causes = []
        if say(Spn.PARKING_BRAKE, lambda v: v == 1.0) and say(
            Spn.WHEEL_SPEED, lambda v: v >= MOVES_FROM_KM_H
        ):
            causes.append(Cause("contradiction", word="brake_and_speed"))
        if say(Spn.KEY_SWITCH, lambda v: v <= KEY_OFF_TO_V) and say(Spn.ENGINE_SPEED, lambda v: v > 0):
            causes.append(Cause("contradiction", word="key_and_engine"))
        return causes

    def standstill(self) -> int:
        """How many signals of different senders and different sensors say that it stands.

        Wheel speed and parking brake travel in one message: one sensor. A standing engine is another, and
        a transmission in park (neutral says nothing: a truck rolls in neutral).
        """
        # A policy that lets the truck creep does not make a creeping truck stand.
        slow = min(self._policy.speed_at_most, MOVES_FROM_KM_H * 1000 - 1)
        rules: list[tuple[str, Spn, Callable[[float], bool]]] = [
            ("chassis", Spn.WHEEL_SPEED, lambda v: v * 1000 <= slow),
            ("chassis", Spn.PARKING_BRAKE, lambda v: v == 1.0),
            ("engine", Spn.ENGINE_SPEED, lambda v: v == 0.0),
            ("transmission", Spn.GEAR, lambda v: v == PARK),
        ]
        witnesses: dict[tuple[str, int], bool] = {}
        for sensor, spn, stands in rules:
            for one in self.of(spn):
                value = self.value(one)
                if value is not None:
                    key = (sensor, one.source)
                    witnesses[key] = witnesses.get(key, True) and stands(value)
        good = {key for key, stands in witnesses.items() if stands}
        return _most_independent({sensor: {s for k, s in good if k == sensor} for sensor, _ in good})


def _most_independent(senders: dict[str, set[int]], taken: frozenset[int] = frozenset()) -> int:
    """The greatest number of sensors that can each be given a sender of its own."""
    if not senders:
        return 0
    sensor, *rest = senders
    others = {one: senders[one] for one in rest}
    best = _most_independent(others, taken)
    for sender in senders[sensor] - taken:
        best = max(best, 1 + _most_independent(others, taken | {sender}))
    return best
