"""When an ECU may be flashed, as signed in a release; a truck may narrow it, never widen it.

Whole numbers only, since the document is canonical JSON. Each field knows which way is stricter, and
`narrow` takes the stricter of both sides, field by field: widening can't be expressed.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

_Word = Annotated[str, Meta(pattern=r"^[0-9A-Za-z][0-9A-Za-z._-]{0,63}$", max_length=64)]
_Minute = Annotated[int, Meta(ge=0, le=1440)]


class Period(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, order=True):
    """Minutes of the site's day, `start` up to and without `end`; `start` > `end` spans midnight."""

    start: _Minute
    end: _Minute


class SafetyPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The defaults are the strictest that a yard can work with.

    Speeds in m/h (1 km/h = 1000), times in ms, voltages in mV. `forbidden` are periods in which nothing
    begins (quiet hours); `holds` are words that all must be free, as a hold file's name. The `may_`
    fields permit what is refused otherwise: a silent engine counting as off (with a fresh key switch),
    an ECU that only the gateway verifies, a single-slot ECU whose old image can't be had.
    """

    speed_at_most: Annotated[int, Meta(ge=0)] = 0
    standstill_signals: Annotated[int, Meta(ge=2, le=8)] = 2
    engine_speed_at_most_rpm: Annotated[int, Meta(ge=0)] = 0
    need_parking_brake: bool = True
    need_neutral: bool = True
    need_key_switch_on: bool = True
    need_consent: bool = False
    battery_at_least: Annotated[int, Meta(ge=0)] = 24_000
    stale_after: Annotated[int, Meta(ge=1)] = 2_000
    steady_for: Annotated[int, Meta(ge=0)] = 5_000
    forbidden: Annotated[tuple[Period, ...], Meta(max_length=32)] = ()
    holds: Annotated[tuple[_Word, ...], Meta(max_length=32)] = ()
    may_take_silent_engine_as_off: bool = False
    may_flash_gateway_only: bool = False
    may_go_without_way_back: bool = False


LOOSEST = SafetyPolicy(
    speed_at_most=2**31,
    engine_speed_at_most_rpm=2**31,
    need_parking_brake=False,
    need_neutral=False,
    need_key_switch_on=False,
    battery_at_least=0,
    stale_after=2**31,
    steady_for=0,
    may_take_silent_engine_as_off=True,
    may_flash_gateway_only=True,
    may_go_without_way_back=True,
)
"""What narrows nothing: a truck's own policy is this with what its owner wants stricter."""

_LOWER_IS_STRICTER = frozenset({"speed_at_most", "engine_speed_at_most_rpm", "stale_after"})
_HIGHER_IS_STRICTER = frozenset({"standstill_signals", "battery_at_least", "steady_for"})
_ALL_OF_BOTH = frozenset({"forbidden", "holds"})


def narrow(policy: SafetyPolicy, local: SafetyPolicy) -> SafetyPolicy:
    """The stricter of both in every field."""
    fields = SafetyPolicy.__struct_fields__
    return SafetyPolicy(
        **{name: _stricter(name, getattr(policy, name), getattr(local, name)) for name in fields}
    )


def _stricter(name: str, one: Any, other: Any) -> Any:
    if name in _LOWER_IS_STRICTER:
        return min(one, other)
    if name in _HIGHER_IS_STRICTER:
        return max(one, other)
    if name in _ALL_OF_BOTH:
        return tuple(sorted({*one, *other}))
    if name.startswith("need_"):
        return one or other
    if name.startswith("may_"):
        return one and other
    raise TypeError(f"nobody has said which way {name} is stricter")
