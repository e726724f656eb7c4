"""Options that the verbs of `quarry release` share."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

BEGIN = "Begin"
RELEASE = "Each release"
AIR_GAP = "Over an air gap"
KEEP = "In the long run"
"""Headings under which `quarry release --help` lists its verbs."""

Folder = Annotated[Path, typer.Option("--folder", help="The repository's folder.")]
MaybeFolder = Annotated[Path | None, typer.Option("--folder", help="The repository's folder.")]
Bundle = Annotated[Path | None, typer.Option("--bundle", help="A signing bundle, from `release export`.")]
Keys = Annotated[
    list[Path], typer.Option("--key", help="A private key file or key reference; may be repeated.")
]


def public_option(role: str) -> typer.models.OptionInfo:
    """Public keys of a role on the command line."""
    option: typer.models.OptionInfo = typer.Option(help=f"A public key of role {role}; may be repeated.")
    return option


def now() -> datetime:
    """The time by this machine's clock."""
    return datetime.now(UTC)
