"""`quarry agent self-update`: a new version of the agent itself, beside the one that runs."""

from __future__ import annotations

import asyncio
import platform
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from edge_agent.config import AgentConfig, load_config
from edge_agent.gateway.self_update import Unfit
from edge_agent.hands.cli_hands import AsJson, By, ConfigFile, leave_ask, say, who
from edge_agent.liveness import is_running, read_live
from edge_agent.safe_files import act_as_owner
from shared.errors import ConfigError, OtaError
from shared.messages import CommandTarget
from shared.release import FirmwareSpec
from shared.since_310 import UTC
from shared.trust.document import MAX_DOCUMENT_BYTES, read_unverified

KIND = "quarry-agent"
_ARCH = {"x86_64": "amd64", "aarch64": "arm64"}


class NotStaged(OtaError):
    """The new version can't be tried here."""

    code = "not_staged"
    advice = "Package the agent for this gateway (quarry package agent), with a new version number."


def hardware() -> str:
    """What a version of the agent is built for, as its document says it: `arm64-py311`."""
    machine = platform.machine()
    return f"{_ARCH.get(machine, machine)}-py{sys.version_info.major}{sys.version_info.minor}"


def self_update(
    config: ConfigFile,
    document: Annotated[Path, typer.Option("--document", help=f"Signed, of kind {KIND}.")],
    archive: Annotated[Path, typer.Option("--archive", help="The .tar.gz of `quarry package agent`.")],
    by: By = "",
    as_json: AsJson = False,
) -> None:
    """Put a signed version of the agent beside this one and try it.

    The agent starts anew as soon as no ECU is being flashed. The new version has three starts to prove
    itself: a minute without a stuck loop, and the office's link within 15 minutes if there was one.
    Else the version before it runs again. Exits 0 when it is staged, 1 when it is refused.
    """
    from edge_agent.delivery.local_image import place_image
    from edge_agent.gateway.trial import versions_here

    settings = load_config(config)
    versions = versions_here()
    if versions is None:
        raise NotStaged("this agent was not started by quarry-agent-launcher: there is nothing to switch")
    try:
        with document.open("rb") as document_file, archive.open("rb") as archive_file:
            spec = asyncio.run(judge(settings, document_file.read(MAX_DOCUMENT_BYTES + 1)))
            act_as_owner(settings.data_dir)
            placed = place_image(
                archive_file,
                spec,
                settings.data_dir / "images",
                most_stored_bytes=settings.downloads.most_stored_bytes,
                margin_bytes=settings.downloads.free_margin_bytes,
            )
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}", advice="Name readable files.") from error
    live = read_live(settings.data_dir) if is_running(settings.data_dir / "agent.db") else None
    try:
        versions.stage(
            placed,
            spec.version,
            python=(Path(sys.prefix) / "bin" / "python").readlink(),
            linked=live is not None and live.connected,
            counter=spec.release_counter,
        )
    except (Unfit, OSError) as error:
        raise NotStaged(f"version {spec.version} can't be tried: {error}") from error
    finally:
        placed.unlink(missing_ok=True)
    if live is None:
        text = f"version {spec.version} is tried when the agent starts"
        say({"ok": True, "version": spec.version, "taken": False, "text": text}, text, as_json=as_json)
        return
    leave_ask(settings, "restart", "self-update", by=by or who(), at=datetime.now(UTC), as_json=as_json)


async def judge(settings: AgentConfig, raw: bytes) -> FirmwareSpec:
    """What a document says of a version, by the same trust as a firmware. Raises TrustError, Incompatible."""
    from edge_agent.app import Places
    from edge_agent.clock import Clock
    from edge_agent.delivery.local_image import URL
    from edge_agent.gateway.trial import COMPONENT
    from edge_agent.trust.counters import Counters
    from edge_agent.trust.verifier import Verifier

    claimed = read_unverified(raw)
    target = CommandTarget(
        component=COMPONENT,
        version=claimed.version,
        sha256=claimed.sha256,
        length=claimed.length,
        document=raw.decode("utf-8", "replace"),
        url=URL,
    )
    verifier = Verifier(
        keys=settings.trust.keys,
        threshold=settings.trust.threshold,
        clock=Clock(),
        counters=await Counters.open(Places(data_dir=settings.data_dir).counters),
    )
    return verifier.check_target(target, kind=KIND, hardware=hardware())
