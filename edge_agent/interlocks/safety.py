"""PURE: may an ECU be flashed at this moment? What is not known is no, and every cause is named.

Three voices must agree: the vehicle (`vehicle`, `j1939_vehicle`), people (a hold, an operator's consent)
and the calendar (the site's forbidden hours). The policy is the signed release's, narrowed by the truck's
own configuration and never widened by it. Once an ECU may have been touched only the vehicle delays it:
a hold, or an hour that begins, must not leave an ECU without firmware.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from zoneinfo import ZoneInfo

from edge_agent.interlocks.signals import FASTEST_RPM, Signals, judge_signals
from shared.causes import Cause, sentence
from shared.trust.uptane.safety_policy import LOOSEST, Period, SafetyPolicy, narrow


@dataclass(frozen=True, kw_only=True)
class VehicleState:
    """What is known of the vehicle; None is unknown. `age_s` is how old the knowledge is, in seconds.

    `parked`, `engine_off` and `voltage_v` are another's summary; where the vehicle's own `signals` are
    read, these alone count. `dark`: its bus can't be read.
    """

    parked: bool | None = None
    engine_off: bool | None = None
    voltage_v: float | None = None
    age_s: float | None = None
    signals: Signals | None = None
    dark: bool = False


UNKNOWN = VehicleState()
STRICT = SafetyPolicy()


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What must hold before an ECU is flashed or reset. `least_voltage_v` None: not looked at.

    The first four are for a summary of the vehicle. `rules` are for its signals, for people and the
    calendar; they are what counts for firmware that brings no signed policy. `local` is what the
    truck's owner has said, to narrow a signed one with.
    """

    need_parked: bool = True
    need_engine_off: bool = True
    least_voltage_v: float | None = 22.0
    oldest_s: float = 5.0
    most_voltage_v: float | None = None
    rules: SafetyPolicy = STRICT
    local: SafetyPolicy = LOOSEST
    zone: ZoneInfo | None = None

    def under(self, signed: SafetyPolicy | None) -> Policy:
        """The policy for firmware whose release says `signed` (None: it says nothing)."""
        if signed is None:
            return self
        rules = narrow(signed, self.local)
        return replace(
            self,
            rules=rules,
            need_parked=self.need_parked or rules.need_parking_brake,
            need_engine_off=self.need_engine_off or rules.engine_speed_at_most_rpm < FASTEST_RPM,
            least_voltage_v=max(self.least_voltage_v or 0.0, rules.battery_at_least / 1000) or None,
            oldest_s=min(self.oldest_s, rules.stale_after / 1000),
        )


@dataclass(frozen=True, kw_only=True)
class Consent:
    """An operator's word, given at the truck. `job_id` None: for any job. `seconds_left` until it is over."""

    by: str
    job_id: str | None
    seconds_left: float


@dataclass(frozen=True, kw_only=True)
class People:
    """What people have said at the truck. `holds` are words; None: they can't be read.

    `holds_watched` False: there is no place where a hold could have been laid.
    """

    holds: tuple[str, ...] | None = ()
    holds_watched: bool = True
    consent: Consent | None = None


NOBODY = People()


@dataclass(frozen=True)
class Allowed:
    """Go on."""


@dataclass(frozen=True)
class Forbidden:
    """Not now. `why` is a sentence for the operator; it does not change while the causes stay."""

    why: str
    causes: tuple[Cause, ...] = ()


def judge(state: VehicleState, policy: Policy, *, without: int | None = None) -> Allowed | Forbidden:
    """May an ECU be flashed now, by the vehicle alone?

    Names every cause, so that one look tells all that is missing. `without`: see `judge_signals`.
    """
    return _verdict(_against_vehicle(state, policy, without))


def judge_all(
    state: VehicleState,
    people: People,
    policy: Policy,
    *,
    now: datetime,
    job_id: str,
    begun: bool,
    without: int | None = None,
) -> Allowed | Forbidden:
    """May it be flashed, or with `begun` gone on with, now (`now` in UTC), by vehicle, people and hours?"""
    causes = _against_vehicle(state, policy, without)
    if not begun:
        rules = policy.rules
        causes += _holds(people, rules) + _consent(people, rules, job_id) + _hours(policy, now)
    return _verdict(causes)


def _verdict(causes: tuple[Cause, ...]) -> Allowed | Forbidden:
    return Forbidden(sentence(causes), causes) if causes else Allowed()


def _against_vehicle(state: VehicleState, policy: Policy, without: int | None) -> tuple[Cause, ...]:
    if state.dark:
        return (Cause("bus_unknown"),)
    if state.signals is not None:
        return judge_signals(
            state.signals, policy.rules, most_voltage_v=policy.most_voltage_v, without=without
        )
    if state.age_s is None or not 0 <= state.age_s <= policy.oldest_s:
        return (Cause("state_unknown"),)
    causes: list[Cause] = []
    if policy.need_parked and state.parked is not True:
        causes.append(Cause("parked_unknown" if state.parked is None else "not_parked"))
    if policy.need_engine_off and state.engine_off is not True:
        causes.append(Cause("engine_unknown" if state.engine_off is None else "engine_runs"))
    # The measured value stays out of the sentence: it would change with every reading.
    least, most = policy.least_voltage_v, policy.most_voltage_v
    if (least is not None or most is not None) and state.voltage_v is None:
        causes.append(Cause("voltage_unknown"))
    elif state.voltage_v is not None:
        if least is not None and not state.voltage_v >= least:
            causes.append(Cause("voltage_low", f"{least:g}"))
        if most is not None and not state.voltage_v <= most:
            causes.append(Cause("voltage_high", f"{most:g}"))
    return tuple(causes)


def _holds(people: People, rules: SafetyPolicy) -> tuple[Cause, ...]:
    if people.holds is None or (rules.holds and not people.holds_watched):
        return (Cause("holds_unknown"),)
    # Any hold counts, also one that the policy has no word for.
    return (Cause("held", ", ".join(people.holds)),) if people.holds else ()


def _consent(people: People, rules: SafetyPolicy, job_id: str) -> tuple[Cause, ...]:
    if not rules.need_consent:
        return ()
    said = people.consent
    good = said is not None and said.seconds_left > 0 and said.job_id in {None, job_id}
    return () if good else (Cause("no_consent"),)


def _hours(policy: Policy, now: datetime) -> tuple[Cause, ...]:
    if not policy.rules.forbidden:
        return ()
    if policy.zone is None:
        return (Cause("zone_unknown"),)
    local = now.astimezone(policy.zone)
    minute = local.hour * 60 + local.minute
    return tuple(
        Cause("forbidden_hours", f"{_clock(one.start)}-{_clock(one.end)}")
        for one in policy.rules.forbidden
        if is_in(one, minute)
    )


def is_in(period: Period, minute: int) -> bool:
    """Whether a minute of the day is in a period; one whose end is before its start spans midnight."""
    if period.start <= period.end:
        return period.start <= minute < period.end
    return minute >= period.start or minute < period.end


def _clock(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"
