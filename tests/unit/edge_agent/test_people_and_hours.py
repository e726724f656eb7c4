"""Holds, an operator's consent, forbidden hours, and a signed policy that is narrowed and never widened."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest

from edge_agent.clock import Clock
from edge_agent.interlocks.hold import Hold, hold_path, release_hold, set_hold
from edge_agent.interlocks.people import BadConsent, Gates
from edge_agent.interlocks.safety import (
    NOBODY,
    Allowed,
    Consent,
    Forbidden,
    People,
    Policy,
    VehicleState,
    is_in,
    judge_all,
)
from shared.trust.uptane.safety_policy import LOOSEST, Period, SafetyPolicy

GOOD = VehicleState(parked=True, engine_off=True, voltage_v=25.0, age_s=1.0)
NOON = datetime(2027, 6, 1, 12, 0, tzinfo=UTC)
NIGHT = Period(start=22 * 60, end=6 * 60)
ZONE = ZoneInfo("Asia/Yekaterinburg")
"""UTC+5 all the year."""


def codes(policy: Policy, people: People = NOBODY, **other: Any) -> list[str]:
    words: dict[str, Any] = {"now": NOON, "job_id": "job-1", "begun": False, **other}
    verdict = judge_all(GOOD, people, policy, **words)
    return [one.code for one in verdict.causes] if isinstance(verdict, Forbidden) else []


def ruled(**rules: Any) -> Policy:
    return Policy(rules=SafetyPolicy(**rules), zone=ZONE)


@pytest.mark.parametrize(
    ("people", "rules", "expected"),
    [
        (NOBODY, {}, []),
        (People(holds=("anna, blasting",)), {}, ["held"]),
        (People(holds=None), {}, ["holds_unknown"]),
        (People(holds_watched=False), {}, []),
        (People(holds_watched=False), {"holds": ("blasting",)}, ["holds_unknown"]),
        (People(), {"holds": ("blasting",)}, []),
        (People(), {"need_consent": True}, ["no_consent"]),
        (People(consent=Consent(by="a", job_id=None, seconds_left=1.0)), {"need_consent": True}, []),
        (People(consent=Consent(by="a", job_id="job-1", seconds_left=1.0)), {"need_consent": True}, []),
        (
            People(consent=Consent(by="a", job_id="job-2", seconds_left=1.0)),
            {"need_consent": True},
            ["no_consent"],
        ),
        (
            People(consent=Consent(by="a", job_id=None, seconds_left=0.0)),
            {"need_consent": True},
            ["no_consent"],
        ),
    ],
)
def test_what_people_say_counts(people: People, rules: dict[str, Any], expected: list[str]) -> None:
    assert codes(ruled(**rules), people) == expected


def test_what_has_begun_is_delayed_by_the_vehicle_alone() -> None:
    policy = ruled(need_consent=True, forbidden=(Period(start=0, end=1440),))
    held = People(holds=("anna, blasting",))
    assert codes(policy, held) == ["held", "no_consent", "forbidden_hours"]
    assert codes(policy, held, begun=True) == []
    driving = judge_all(replace(GOOD, parked=False), NOBODY, policy, now=NOON, job_id="job-1", begun=True)
    assert isinstance(driving, Forbidden)


@pytest.mark.parametrize(
    ("utc", "good"),
    [("16:59", True), ("17:00", False), ("20:00", False), ("00:59", False), ("01:00", True)],
)
def test_hours_are_the_sites_own(utc: str, good: bool) -> None:
    hour, minute = (int(part) for part in utc.split(":"))
    now = NOON.replace(hour=hour, minute=minute)
    assert codes(ruled(forbidden=(NIGHT,)), now=now) == ([] if good else ["forbidden_hours"])


def test_hours_follow_the_summer_time_of_their_zone() -> None:
    policy = replace(ruled(forbidden=(NIGHT,)), zone=ZoneInfo("Europe/Berlin"))
    for month, expected in ((1, []), (7, ["forbidden_hours"])):
        assert codes(policy, now=datetime(2027, month, 5, 20, 30, tzinfo=UTC)) == expected


def test_hours_without_a_zone_are_not_safe() -> None:
    assert codes(replace(ruled(forbidden=(NIGHT,)), zone=None)) == ["zone_unknown"]


def test_periods_span_midnight_and_empty_ones_hold_nothing() -> None:
    inside = [minute for minute in range(1440) if is_in(NIGHT, minute)]
    assert (len(inside), is_in(NIGHT, 1320), is_in(NIGHT, 359), is_in(NIGHT, 360)) == (480, True, True, False)
    assert not any(is_in(Period(start=300, end=300), minute) for minute in range(1440))


def test_a_signed_policy_is_narrowed_and_never_widened() -> None:
    lax_truck = Policy(
        need_parked=False, need_engine_off=False, least_voltage_v=None, oldest_s=60.0, rules=LOOSEST
    )
    signed = SafetyPolicy(battery_at_least=25_000, stale_after=1_500, need_consent=True)
    under = lax_truck.under(signed)
    assert under.rules == signed
    assert (under.need_parked, under.need_engine_off, under.least_voltage_v, under.oldest_s) == (
        True,
        True,
        25.0,
        1.5,
    )
    strict_truck = Policy(local=msgspec.structs.replace(LOOSEST, battery_at_least=26_000, forbidden=(NIGHT,)))
    under = strict_truck.under(LOOSEST)
    assert (under.rules.battery_at_least, under.rules.forbidden) == (26_000, (NIGHT,))
    assert under.need_parked
    assert lax_truck.under(None) is lax_truck


# --- the files ------------------------------------------------------------------------------------


@pytest.fixture
def boot(tmp_path: Path) -> Path:
    path = tmp_path / "boot_id"
    path.write_text("boot-1\n")
    return path


def gates(tmp_path: Path, boot: Path, now: float = 1000.0, **other: Any) -> Gates:
    return Gates(data_dir=tmp_path / "data", clock=Clock(boot_s=lambda: now), boot_id=boot, **other)


async def test_nobody_has_said_anything_on_a_new_truck(tmp_path: Path, boot: Path) -> None:
    assert await gates(tmp_path, boot).read() == People(holds_watched=False)


async def test_the_hold_file_holds_and_says_who_and_why(tmp_path: Path, boot: Path) -> None:
    data = tmp_path / "data"
    set_hold(data, Hold(by="anna", why="blasting at noon"))
    assert (await gates(tmp_path, boot).read()).holds == ("anna, blasting at noon",)
    hold_path(data).write_bytes(b"\xff{")
    [word] = (await gates(tmp_path, boot).read()).holds or ()
    assert "can't be read" in word
    release_hold(data)
    assert (await gates(tmp_path, boot).read()).holds == ()


async def test_any_file_in_the_folder_of_holds_holds(tmp_path: Path, boot: Path) -> None:
    folder = tmp_path / "holds"
    found = await gates(tmp_path, boot, holds_folder=folder).read()
    assert found.holds is None
    folder.mkdir()
    found = await gates(tmp_path, boot, holds_folder=folder).read()
    assert (found.holds, found.holds_watched) == ((), True)
    (folder / "refuelling").touch()
    (folder / "a\nb").touch()
    found = await gates(tmp_path, boot, holds_folder=folder).read()
    assert found.holds == ("a file without a proper name", "refuelling")


async def test_a_consent_ends_by_the_boot_clock_and_with_a_reboot(tmp_path: Path, boot: Path) -> None:
    gates(tmp_path, boot).consent_to(by="anna", seconds=3600.0, job_id="job-1")
    consent = (await gates(tmp_path, boot, 1000.0 + 3599.0).read()).consent
    assert consent == Consent(by="anna", job_id="job-1", seconds_left=1.0)
    assert (await gates(tmp_path, boot, 1000.0 + 3600.0).read()).consent == replace(consent, seconds_left=0.0)
    # A clock before the giving: another boot, whatever its id says.
    assert (await gates(tmp_path, boot, 999.0).read()).consent is None
    boot.write_text("boot-2\n")
    assert (await gates(tmp_path, boot, 1001.0).read()).consent is None
    boot.unlink()
    assert (await gates(tmp_path, boot, 1001.0).read()).consent is None


async def test_a_consent_can_be_withdrawn(tmp_path: Path, boot: Path) -> None:
    one = gates(tmp_path, boot)
    one.consent_to(by="anna", seconds=60.0)
    assert (await one.read()).consent is not None
    one.withdraw_consent()
    one.withdraw_consent()
    assert (await one.read()).consent is None


@pytest.mark.parametrize(
    "change",
    [
        {"by": 3},
        {"job_id": 3},
        {"boot_id": None},
        {"given_boot_s": "now"},
        {"given_boot_s": 2000.0},
        {"until_boot_s": None},
        {"until_boot_s": 1000.0 + 25 * 3600.0},
    ],
)
async def test_a_consent_that_is_not_as_it_must_be_is_none(
    tmp_path: Path, boot: Path, change: dict[str, Any]
) -> None:
    one = gates(tmp_path, boot)
    one.consent_to(by="anna", seconds=60.0)
    path = tmp_path / "data" / "consent.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert (await one.read()).consent is None
    path.write_bytes(b"[")
    assert (await one.read()).consent is None


@pytest.mark.parametrize(("by", "seconds"), [("", 60.0), ("a\nb", 60.0), ("anna", 0.0), ("anna", 1e9)])
def test_a_consent_of_nobody_or_for_ever_is_refused(
    tmp_path: Path, boot: Path, by: str, seconds: float
) -> None:
    with pytest.raises(BadConsent):
        gates(tmp_path, boot).consent_to(by=by, seconds=seconds)


def test_a_good_truck_may_be_flashed() -> None:
    assert judge_all(GOOD, NOBODY, Policy(), now=NOON, job_id="j", begun=False) == Allowed()
