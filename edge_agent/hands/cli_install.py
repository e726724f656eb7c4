"""`quarry agent install-file`: a release from a USB bundle, or one firmware from a path, with no network.

Nothing is believed that the truck's own trust does not verify; the agent verifies it again. What is brought
is opened with the rights of whoever asks, since a drive may be readable for root only.
"""

from __future__ import annotations

import asyncio
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from edge_agent.config import AgentConfig, load_config
from edge_agent.hands.asks import new_ask
from edge_agent.hands.by_hand import new_local_job
from edge_agent.hands.cli_hands import AsJson, By, ConfigFile, leave_and_wait, who
from edge_agent.safe_files import act_as_owner
from shared.errors import ConfigError
from shared.messages import Command, CommandKind, CommandTarget, Feature
from shared.release import FirmwareSpec, Incompatible
from shared.since_310 import UTC
from shared.trust.document import MAX_DOCUMENT_BYTES, TrustError, read_unverified


def install_file(  # noqa: PLR0917 - given by name, on the command line
    config: ConfigFile,
    bundle: Annotated[
        Path | None,
        typer.Argument(metavar="FOLDER", help="A USB bundle, as `quarry release usb` makes it."),
    ] = None,
    document: Annotated[
        Path | None, typer.Option("--document", help="The signed document of one firmware.")
    ] = None,
    image: Annotated[Path | None, typer.Option("--image", help="The image that it names.")] = None,
    component: Annotated[str, typer.Option("--component", help="Which one; needed where several fit.")] = "",
    by: By = "",
    as_json: AsJson = False,
) -> None:
    """Install a release from a USB bundle, or a signed firmware from a local path, with no network.

    A truck with the trust chain (trust.director_root) takes bundles only, one without it a document and its
    image only. The same trust as a download: signatures, components, expiry, and never an older release;
    the same interlocks. The office hears of it when the link returns. An update of a component that has
    not touched the ECU yet makes room for it. Exits 0 when the job is in the journal, or will be when the
    agent starts; 1 when the files are refused, 5 when the agent did not answer.
    """
    settings = load_config(config)
    job_id = new_local_job()
    if bundle is not None:
        if document is not None or image is not None or component:
            raise typer.BadParameter("a bundle says itself what it brings: give FOLDER alone")
        targets = _bring_bundle(settings, bundle, job_id)
    elif document is None or image is None:
        raise typer.BadParameter("give FOLDER, or --document and --image")
    else:
        targets = (_bring_image(settings, document, image, component),)
    command = Command(
        command_id=job_id,
        job_id=job_id,
        attempt=1,
        revision=1,
        kind=CommandKind.INSTALL,
        requires=(Feature.INSTALL,) if len(targets) == 1 else (Feature.INSTALL, Feature.RELEASE),
        targets=targets,
    )
    ask = new_ask("install", command.job_id, by=by or who(), at=datetime.now(UTC), command=command)
    leave_and_wait(settings, ask, as_json=as_json)


def _bring_bundle(settings: AgentConfig, bundle: Path, job_id: str) -> tuple[CommandTarget, ...]:
    """What a USB bundle brings, kept for the agent. Raises TrustError, BadBundle, ConfigError."""
    from edge_agent.app import Places
    from edge_agent.hands.local_bundle import bring
    from edge_agent.office.enrol import who_we_are

    if settings.trust.uptane is None:
        raise ConfigError(
            "this truck has no roots to verify a bundle by",
            advice="Set trust.director_root and trust.image_root, or give --document and --image.",
        )
    try:
        brought = bring(
            settings,
            settings.trust.uptane,
            who_we_are(settings).device_id,
            bundle,
            job_id=job_id,
            now=datetime.now(UTC),
            images=Places(data_dir=settings.data_dir).images,
        )
    except OSError as error:
        raise ConfigError(
            f"{error.filename or bundle}: {error.strerror}", advice="Give a folder that can be read."
        ) from error
    return brought.targets


def _bring_image(settings: AgentConfig, document: Path, image: Path, component: str) -> CommandTarget:
    """What a document and its image bring, kept for the agent. Raises TrustError, ConfigError."""
    # Imported while root's rights are there: a Python of another user's home is closed to the agent's.
    from edge_agent.app import Places
    from edge_agent.delivery.local_image import place_image

    if settings.trust.uptane is not None:
        raise TrustError(
            "this truck trusts releases only, and a firmware alone is none",
            code="bundle_needed",
            advice="Bring a bundle: quarry release usb ..., then quarry agent install-file FOLDER.",
        )
    try:
        # Opened with the rights of whoever asks: a drive may be readable for root only.
        with document.open("rb") as document_file, image.open("rb") as image_file:
            raw = document_file.read(MAX_DOCUMENT_BYTES + 1)
            target, spec = asyncio.run(_judge(settings, raw, component))
            act_as_owner(settings.data_dir)
            place_image(
                image_file,
                spec,
                Places(data_dir=settings.data_dir).images,
                most_stored_bytes=settings.downloads.most_stored_bytes,
                margin_bytes=settings.downloads.free_margin_bytes,
            )
    except OSError as error:
        raise ConfigError(
            f"{error.filename or image}: {error.strerror}", advice="Name files that can be read."
        ) from error
    return target


async def _judge(settings: AgentConfig, raw: bytes, component: str) -> tuple[CommandTarget, FirmwareSpec]:
    """What a document brings where. Raises TrustError or Incompatible; the agent asks all of it again."""
    from edge_agent.app import Places
    from edge_agent.clock import Clock
    from edge_agent.delivery.local_image import URL
    from edge_agent.trust.counters import Counters
    from edge_agent.trust.verifier import Verifier

    verifier = Verifier(
        keys=settings.trust.keys,
        threshold=settings.trust.threshold,
        clock=Clock(),
        counters=await Counters.open(Places(data_dir=settings.data_dir).counters),
    )
    claimed = read_unverified(raw)
    fitting = [
        one
        for one in settings.components
        if one.kind == claimed.kind and (not component or one.component == component)
    ]
    if len(fitting) != 1:
        names = ", ".join(one.component for one in fitting) or "none"
        raise Incompatible(
            f"the firmware is for {claimed.kind}; components of this truck that fit: {names}",
            advice="Choose one of them with --component.",
        )
    [chosen] = fitting
    target = CommandTarget(
        component=chosen.component,
        version=claimed.version,
        sha256=claimed.sha256,
        length=claimed.length,
        document=_text(raw),
        url=URL,
    )
    return target, verifier.check_target(target, kind=chosen.kind, hardware=chosen.hardware)


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise TrustError("the document is no text") from error


def add_to(app: typer.Typer) -> None:
    """The verb of this file."""
    app.command("install-file")(install_file)
