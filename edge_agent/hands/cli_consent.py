"""`quarry agent consent, withdraw-consent`: an operator's word, given at the truck."""

from __future__ import annotations

from typing import Annotated

import typer

from edge_agent.clock import Clock
from edge_agent.config import AgentConfig
from edge_agent.hands.cli_hands import AsJson, By, ConfigFile, configured, say, who
from edge_agent.interlocks.people import Gates


def consent(
    config: ConfigFile,
    hours: Annotated[float, typer.Option("--hours", help="How long it is good; 24 at the most.")] = 2.0,
    job: Annotated[str | None, typer.Option("--job", help="For this job only; default: any job.")] = None,
    by: By = "",
    as_json: AsJson = False,
) -> None:
    """Consent to a flash where the policy asks for it. It ends with its time and with a reboot.

    Exits 0 when it is given, 1 when it can't be.
    """
    name = by or who()
    _gates(configured(config)).consent_to(by=name, seconds=hours * 3600, job_id=job)
    found = {"ok": True, "consent": True, "by": name, "hours": hours, "job_id": job}
    say(found, f"{name} consents to {job or 'any job'} for {hours:g} hours", as_json=as_json)


def withdraw(config: ConfigFile, as_json: AsJson = False) -> None:
    """Take a consent back; what has begun is finished. Exits 0, also when there was none."""
    _gates(configured(config)).withdraw_consent()
    say({"ok": True, "consent": False}, "withdrawn", as_json=as_json)


def _gates(config: AgentConfig) -> Gates:
    return Gates(data_dir=config.data_dir, clock=Clock(), holds_folder=config.holds_folder)


def add_to(app: typer.Typer) -> None:
    """The verbs of this file."""
    app.command("consent")(consent)
    app.command("withdraw-consent")(withdraw)
