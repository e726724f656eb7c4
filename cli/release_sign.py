"""`quarry release`: drafts signed, on the desk or over an air gap, and put out.

The same verbs serve the image repository and the director's root.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.release_files import read_file, write_new
from cli.release_keys import PassphraseFd, open_signers
from cli.release_options import AIR_GAP, RELEASE, Bundle, Folder, Keys, MaybeFolder, now
from cli.release_show import print_repository
from cli.repository_folder import RepositoryFolder, replace_file
from shared.trust.uptane.publication import publish
from shared.trust.uptane.repository import Repository, RepositoryTrouble, sign
from shared.trust.uptane.signing_bundle import MOST_BUNDLE_BYTES, dump_bundle, load_bundle, take_signatures

sign_app = typer.Typer()
root_app = typer.Typer(no_args_is_help=True, help="The root: who may sign what.")


@root_app.command("sign")
def root_sign(
    keys: Keys,
    folder: MaybeFolder = None,
    bundle: Bundle = None,
    passphrase_fd: PassphraseFd = None,
) -> None:
    """Sign the draft of the root, with as many of its keys as its threshold says, one after the other.

    A new root needs the old root's threshold, too.
    """
    _sign(keys, folder, bundle, passphrase_fd, only="root")


@sign_app.command("sign", rich_help_panel=RELEASE)
def sign_drafts(
    keys: Keys,
    folder: MaybeFolder = None,
    bundle: Bundle = None,
    role: Annotated[
        str | None, typer.Option(help="Only this role; else every one that the key may sign.")
    ] = None,
    passphrase_fd: PassphraseFd = None,
) -> None:
    """Sign drafts, in the folder or in a signing bundle on an air-gapped machine."""
    _sign(keys, folder, bundle, passphrase_fd, only=role)


def _sign(
    keys: list[Path], folder: Path | None, bundle: Path | None, passphrase_fd: int | None, *, only: str | None
) -> None:
    if (folder is None) == (bundle is None):
        raise typer.BadParameter("give --folder or --bundle")
    signers = open_signers(keys, passphrase_fd)

    def signed(repository: Repository) -> Repository:
        for signer in signers:
            repository, roles = sign(repository, signer, only)
            typer.echo(f"{signer.public_key.keyid[:12]} signed {', '.join(roles)}")
        return repository

    if bundle is not None:
        whole = dump_bundle(signed(load_bundle(read_file(bundle, MOST_BUNDLE_BYTES))))
        replace_file(bundle, whole)
    elif folder is not None:
        with RepositoryFolder(folder).opened() as held:
            held.save(signed(held.load()))


@sign_app.command("publish", rich_help_panel=RELEASE)
def publish_drafts(
    folder: Folder,
    snapshot_key: Annotated[
        list[Path] | None, typer.Option(help="Private key or key reference of snapshot.")
    ] = None,
    timestamp_key: Annotated[
        list[Path] | None, typer.Option(help="Private key or key reference of timestamp.")
    ] = None,
    passphrase_fd: PassphraseFd = None,
) -> None:
    """Put all drafts out with a new snapshot and timestamp; with no drafts, renew those two."""
    snapshot, timestamp = list(snapshot_key or []), list(timestamp_key or [])
    signers = open_signers([*snapshot, *timestamp], passphrase_fd)
    with RepositoryFolder(folder).opened() as held:
        repository = publish(
            held.load(),
            snapshot_signers=signers[: len(snapshot)],
            timestamp_signers=signers[len(snapshot) :],
            now=now(),
        )
        held.save(repository)
    typer.echo(f"published in {RepositoryFolder(folder).public}")


@sign_app.command(rich_help_panel=AIR_GAP)
def export(
    folder: Folder, out: Annotated[Path, typer.Option(help="Where to write the signing bundle.")]
) -> None:
    """Write the drafts into one file for a machine without a network."""
    with RepositoryFolder(folder).opened() as held:
        write_new(out, dump_bundle(held.load()), mode=0o644)
    typer.echo(f"sign it there: quarry release sign --bundle {out} --key ...")


@sign_app.command("import", rich_help_panel=AIR_GAP)
def take(
    folder: Folder, bundle: Annotated[Path, typer.Option(help="The signing bundle that came back.")]
) -> None:
    """Take the signatures, and nothing else, of a returned bundle."""
    returned = load_bundle(read_file(bundle, MOST_BUNDLE_BYTES))
    with RepositoryFolder(folder).opened() as held:
        repository, taken = take_signatures(held.load(), returned)
        held.save(repository)
    if not taken:
        raise RepositoryTrouble(f"{bundle} brings no new valid signature")
    for role, keyid in taken:
        typer.echo(f"{role}: signed by {keyid[:12]}")


@sign_app.command(rich_help_panel=RELEASE)
def show(
    folder: MaybeFolder = None,
    bundle: Bundle = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print exactly one JSON document.")] = False,
) -> None:
    """Roles, versions, expiries, targets, and which signatures each draft still needs."""
    if bundle is not None:
        print_repository(load_bundle(read_file(bundle, MOST_BUNDLE_BYTES)), as_json=as_json)
    elif folder is not None:
        print_repository(RepositoryFolder(folder).load(), as_json=as_json)
    else:
        raise typer.BadParameter("give --folder or --bundle")
