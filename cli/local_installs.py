"""What people installed at trucks, as `quarry job` and `quarry device` show it beside the office's jobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer

from cli.office import OfficeClient, OfficeRefused, print_rows, short_time
from shared.states import JobState

MOST_BESIDE_A_DEVICE = 10
WITHOUT_ONE = "There is no such job that began at a truck; a truck's newest 100 are kept."


def find_installs(
    client: OfficeClient, *, most: int, device_id: str | None, state: JobState | None = None
) -> list[dict[str, Any]]:
    """The newest `most`, newest first."""
    return client.pages("/local-installs", most=most, device_id=device_id, state=state)


def find_install(client: OfficeClient, job_id: str) -> dict[str, Any]:
    """The one with this id. Raises OfficeRefused when there is none, or several trucks gave that id."""
    found = client.call("GET", "/local-installs", params={"job_id": job_id})["items"]
    if len(found) != 1:
        trucks = ", ".join(one["device_id"] for one in found)
        raise OfficeRefused(
            f"{len(found)} trucks know a job {job_id}{f': {trucks}' if trucks else ''}",
            status=404,
            code="unknown_job",
            advice="See quarry job list --device TRUCK." if found else WITHOUT_ONE,
        )
    [one] = found
    return dict(one)


def newest_first(
    jobs: Sequence[dict[str, Any]], installs: Sequence[dict[str, Any]], most: int
) -> list[dict[str, Any]]:
    """Both in one list; each says where it began (`origin`)."""
    both = [*({**one, "origin": "office"} for one in jobs), *installs]
    return sorted(both, key=lambda one: (one["created_at"], one["job_id"]), reverse=True)[:most]


def targets_of(one: dict[str, Any]) -> str:
    """What it brings, for a table."""
    return ", ".join(f"{t['component']} {t['version'] or t['read_back_version']}" for t in one["targets"])


def print_install(one: dict[str, Any]) -> None:
    """One of them whole."""
    print_installs([one], title=f"{one['job_id']}: began at {one['device_id']}, is {one['state']}")
    if one["error"]:
        typer.echo(f"{one['error']['text']} -- {one['error']['advice']}")


def print_installs(installs: Sequence[dict[str, Any]], *, title: str) -> None:
    """A table of them."""
    print_rows(
        (
            (
                one["job_id"],
                targets_of(one),
                one["state"],
                one["step"],
                one["progress"],
                short_time(one["updated_at"]),
                one["why"] or one["reason"],
            )
            for one in installs
        ),
        ("job", "target", "state", "step", "%", "heard (UTC)", "reason"),
        title=title,
        none="Nothing was installed at the truck.",
    )
