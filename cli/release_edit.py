"""`quarry release`: what changes a repository beside new releases: families, withdrawals, keys, time."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.release_keys import open_public, public_key
from cli.release_options import BEGIN, KEEP, Folder, now, public_option
from cli.repository_folder import RepositoryFolder
from shared.trust.uptane.repository_edit import delegate, renew, rotate_key, withdraw

edit_app = typer.Typer()


@edit_app.command("delegate", rich_help_panel=BEGIN)
def delegate_family(
    folder: Folder,
    family: Annotated[str, typer.Option(help="The kind of ECU, for example brake-controller.")],
    hardware: Annotated[list[str], typer.Option(help="A hardware revision of it; once for each.")],
    key: Annotated[list[Path], public_option("the family")],
    threshold: Annotated[int, typer.Option(min=1, help="So many of its keys must sign.")] = 1,
) -> None:
    """Let keys of their own sign for an ECU family, for its hardware and nothing else."""
    with RepositoryFolder(folder).opened() as held:
        held.save(delegate(held.load(), family, open_public(key, threshold), hardware, now()))
    typer.echo(f"drafted: targets, {family}")


@edit_app.command("withdraw", rich_help_panel=KEEP)
def withdraw_target(
    folder: Folder, path: Annotated[str, typer.Option(help="The target's path, as `show` lists it.")]
) -> None:
    """Draft a role without this target: once it is published, no truck begins it."""
    with RepositoryFolder(folder).opened() as held:
        repository, role = withdraw(held.load(), path, now())
        held.save(repository)
    typer.echo(f"drafted {role} without {path}")


@edit_app.command("renew", rich_help_panel=KEEP)
def renew_role(
    folder: Folder, role: Annotated[str, typer.Option(help="The role: root, targets, or a family's.")]
) -> None:
    """Draft a role as it is with a later expiry; `publish` alone renews snapshot and timestamp."""
    with RepositoryFolder(folder).opened() as held:
        held.save(renew(held.load(), role, now()))
    typer.echo(f"drafted: {role}")


@edit_app.command("rotate-key", rich_help_panel=KEEP)
def rotate(
    folder: Folder,
    role: Annotated[
        str,
        typer.Option(
            help="The role: root, targets, snapshot, timestamp, a family's, a director's time or offline."
        ),
    ],
    old: Annotated[str, typer.Option(help="The key id that goes, or its beginning.")],
    new: Annotated[Path, typer.Option(help="The public key that comes.")],
) -> None:
    """Draft the replacement of a key, after a theft or in time before one."""
    with RepositoryFolder(folder).opened() as held:
        repository = rotate_key(held.load(), role, old, public_key(new), now())
        held.save(repository)
    typer.echo(f"drafted: {', '.join(repository.drafts)}")
