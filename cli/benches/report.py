"""A benchmark's figures: what was measured, the limit that it is held against, and whether it is met."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Row:
    """One case. A figure without a goal has `met` None; one that could not be measured has a `why`."""

    case: str
    value: float | None
    unit: str
    limit: float | None = None
    limit_is: str = ""
    ratio: float | None = None
    goal: str = ""
    met: bool | None = None
    why: str = ""
    apart: str = ""  # what the figure leaves out, or how it was taken


@dataclass(frozen=True, kw_only=True)
class Case:
    """A case's name and how it is measured; `unit` and `goal` are shown even when that fails."""

    name: str
    unit: str
    goal: str
    measure: Callable[[], Row]


def share_of(
    case: str, value: float, unit: str, *, limit: float, limit_is: str, at_least: float, apart: str = ""
) -> Row:
    """A figure that should come near its limit."""
    ratio = value / limit
    return Row(
        case=case,
        value=value,
        unit=unit,
        limit=limit,
        limit_is=limit_is,
        ratio=ratio,
        goal=f">= {at_least:g} of limit",
        met=ratio >= at_least,
        apart=apart,
    )


def within(case: str, value: float, unit: str, *, limit: float, limit_is: str, apart: str = "") -> Row:
    """A figure that must not go over its limit."""
    return Row(
        case=case,
        value=value,
        unit=unit,
        limit=limit,
        limit_is=limit_is,
        ratio=value / limit,
        goal="<= limit",
        met=value <= limit,
        apart=apart,
    )


def figure(case: str, value: float, unit: str, *, apart: str = "") -> Row:
    """A figure that nothing is asked of."""
    return Row(case=case, value=value, unit=unit, goal="none", apart=apart)


def unmeasured(case: Case, why: str) -> Row:
    """What to show of a case that could not be measured: never met."""
    return Row(
        case=case.name,
        value=None,
        unit=case.unit,
        goal=case.goal,
        met=None if case.goal == "none" else False,
        why=why,
    )


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    load = os.getloadavg()[0]
    return {
        "system": platform.system(),
        "kernel": platform.release(),
        "processor": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "load_1m": round(load, 2),
    }


def document(bench: str, seconds: float, rows: Sequence[Row]) -> dict[str, Any]:
    """The stable JSON form."""
    shown = []
    for row in rows:
        fields = asdict(row)
        for name in ("value", "limit", "ratio"):
            if fields[name] is not None:
                fields[name] = float(f"{fields[name]:.5g}")
        shown.append({key: value for key, value in fields.items() if value != "" or key == "goal"})
    return {"bench": bench, "seconds": round(seconds, 1), "machine": machine(), "rows": shown}
