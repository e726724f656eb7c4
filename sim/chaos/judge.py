"""PURE: whether one update ended right. Every sentence that is found is a promise that was broken."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FINAL = frozenset({"done", "error", "cancelled"})
CLOCK_CODES = frozenset({"command_expired"})
"""What a truck may say of a command when its clock was wrong: nothing was begun then."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What is known when an update has ended.

    `job` is the office's word with its history; `told` the steps that the truck's journal held; `runs`,
    `old` and `new` are hashes by component. `may_fail` and `may_cancel`: such an end was ordered;
    `wrong_clock`: the truck's clock was set wrong meanwhile.
    """

    job: Mapping[str, Any]
    told: Counter[str]
    runs: Mapping[str, str]
    old: Mapping[str, str]
    new: Mapping[str, str]
    may_fail: bool
    may_cancel: bool
    wrong_clock: bool


def wrong_with(outcome: Outcome) -> list[str]:
    """What is wrong, in words; nothing for an update that ended right."""
    return [*_hardware(outcome), *_end(outcome), *_history(outcome)]


def lost(outcome: Outcome) -> Counter[str]:
    """Steps that the truck's journal held and the office has not."""
    seen = Counter(line["step"] for line in outcome.job["history"] if line["message_id"])
    return outcome.told - seen


def duplicates(outcome: Outcome) -> int:
    """Statuses that the office has twice."""
    ids = [line["message_id"] for line in outcome.job["history"] if line["message_id"]]
    return len(ids) - len(set(ids))


def _hardware(outcome: Outcome) -> list[str]:
    state = outcome.job["state"]
    if outcome.runs == outcome.new:
        if state != "done" and outcome.new != outcome.old:
            return [f"the job says {state}, and the truck runs the new firmware"]
        return []
    if outcome.runs == outcome.old:
        return ["the job says done, and the truck runs the old firmware"] if state == "done" else []
    names = ("old", outcome.old), ("new", outcome.new)
    what = {
        component: next((name for name, of in names if of[component] == sha256), "NOTHING WHOLE")
        for component, sha256 in outcome.runs.items()
    }
    return [f"neither whole-new nor whole-old: {what}, and the job says {state}"]


def _end(outcome: Outcome) -> list[str]:
    state = outcome.job["state"]
    error = outcome.job["error"] or {}
    match state:
        case "done":
            return ["done, though the image was bad"] if outcome.may_fail else []
        case "cancelled":
            return [] if outcome.may_cancel else ["cancelled, and nobody asked for it"]
        case "error" if outcome.may_fail:
            return []
        case "error" if outcome.wrong_clock and error.get("code") in CLOCK_CODES:
            return []
    return [f"{state}: {error.get('code')} {error.get('text')}"]


def _history(outcome: Outcome) -> list[str]:
    wrong = []
    lines = outcome.job["history"]
    if len(lines) != outcome.job["history_total"]:
        wrong.append(f"the history has {outcome.job['history_total']} lines, more than are shown")
    finals = Counter(line["attempt"] for line in lines if line["message_id"] and line["status"] in FINAL)
    # A job that was cancelled before it left the office has no word of a truck.
    silent = outcome.job["state"] == "cancelled" and not outcome.told
    if finals != {outcome.job["attempt"]: 1} and not (silent and not finals):
        wrong.append(f"final statuses by attempt: {dict(finals)}")
    if twice := duplicates(outcome):
        wrong.append(f"{twice} statuses twice")
    if gone := lost(outcome):
        wrong.append(f"lost statuses: {dict(gone)}")
    return wrong
