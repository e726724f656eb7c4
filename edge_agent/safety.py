"""PURE: may an ECU be flashed in this state of the vehicle? What is not known is no.

The vehicle's state comes from `vehicle`; the policy from the agent's configuration.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class VehicleState:
    """What is known of the vehicle; None is unknown. `age_s` is how old the knowledge is, in seconds."""

    parked: bool | None = None
    engine_off: bool | None = None
    voltage_v: float | None = None
    age_s: float | None = None


UNKNOWN = VehicleState()


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What must hold before an ECU is flashed or reset. `least_voltage_v` None: not looked at."""

    need_parked: bool = True
    need_engine_off: bool = True
    least_voltage_v: float | None = 22.0
    oldest_s: float = 5.0


@dataclass(frozen=True)
class Allowed:
    """Go on."""


@dataclass(frozen=True)
class Forbidden:
    """Not now. `why` is a sentence for the operator; it does not change while the cause stays."""

    why: str


def judge(state: VehicleState, policy: Policy) -> Allowed | Forbidden:
    """May an ECU be flashed now? Names every cause, so that one look tells all that is missing."""
    if state.age_s is None or not 0 <= state.age_s <= policy.oldest_s:
        return Forbidden("the vehicle's state is not known")
    causes: list[str] = []
    if policy.need_parked and state.parked is not True:
        causes.append("it is not known to be parked" if state.parked is None else "it is not parked")
    if policy.need_engine_off and state.engine_off is not True:
        causes.append("the engine is not known to be off" if state.engine_off is None else "the engine runs")
    if policy.least_voltage_v is not None:
        # The measured value stays out of the sentence: it would change with every reading.
        if state.voltage_v is None:
            causes.append("the supply voltage is not known")
        elif not state.voltage_v >= policy.least_voltage_v:
            causes.append(f"the supply voltage is below {policy.least_voltage_v:g} V")
    if causes:
        return Forbidden(f"the vehicle is not ready: {', '.join(causes)}")
    return Allowed()
