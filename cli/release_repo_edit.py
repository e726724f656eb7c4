"""`quarry release repo`: begins a repository and edits its drafts: images, releases, families, keys."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from cli.release_files import FileTrouble, read_file, write_new
from cli.release_judge import Judge, judged
from cli.release_keys import PassphraseFd, open_public, public_key, secret
from cli.repository_folder import RepositoryFolder
from shared.release import MAX_IMAGE_BYTES, FirmwareSpec
from shared.trust.keys import new_key
from shared.trust.uptane.release_document import MOST_RELEASE_BYTES, ReleaseSpec, check_release
from shared.trust.uptane.repository import Lives, RepositoryTrouble, begin
from shared.trust.uptane.repository_edit import (
    add_target,
    delegate,
    firmware_target,
    release_target,
    renew,
    rotate_key,
    targets_roles,
    withdraw,
)

edit_app = typer.Typer()

Folder = Annotated[Path, typer.Option("--folder", help="The repository's folder.")]
Publics = list[Path]


class Kind(StrEnum):
    """Which of the two repositories."""

    IMAGE = "image"
    DIRECTOR = "director"


def public_option(role: str) -> typer.models.OptionInfo:
    """A public key of a role on the command line."""
    option: typer.models.OptionInfo = typer.Option(help=f"A public key of role {role}; may be repeated.")
    return option


@edit_app.command()
def keygen(
    out: Annotated[Path, typer.Option(help="Where to write the private key; the public one is OUT.pub.")],
    passphrase_fd: PassphraseFd = None,
) -> None:
    """Make an Ed25519 key pair for a role, the private half encrypted by a passphrase."""
    public_file = out.with_name(f"{out.name}.pub")
    if public_file.exists():
        raise FileTrouble(f"{public_file} is there already and is not overwritten")
    private, public = new_key(secret(passphrase_fd, str(out), new=True).encode())
    write_new(out, private, mode=0o600)
    write_new(public_file, public, mode=0o644)
    typer.echo(f"{out} (encrypted), {public_file}, key id {public_key(public_file).keyid[:12]}")


@edit_app.command()
def init(
    folder: Folder,
    root: Annotated[Publics, public_option("root")],
    targets: Annotated[Publics, public_option("targets")],
    snapshot: Annotated[Publics, public_option("snapshot")],
    timestamp: Annotated[Publics, public_option("timestamp")],
    kind: Annotated[Kind, typer.Option(help="The image repository, or the director's root.")] = Kind.IMAGE,
    root_threshold: Annotated[int, typer.Option(min=1, help="So many root keys must sign.")] = 2,
    targets_threshold: Annotated[int, typer.Option(min=1, help="So many targets keys must sign.")] = 1,
    time: Annotated[Publics | None, public_option("time (director: signs time tokens)")] = None,
    offline: Annotated[Publics | None, public_option("offline (director: USB selections)")] = None,
    offline_threshold: Annotated[int, typer.Option(min=1, help="So many offline keys must sign.")] = 1,
    timestamp_days: Annotated[int, typer.Option(min=1, help="A timestamp is good for so long.")] = 7,
    snapshot_days: Annotated[int, typer.Option(min=1, help="A snapshot is good for so long.")] = 30,
    days: Annotated[int, typer.Option(min=1, help="Root and targets are good for so long.")] = 365,
) -> None:
    """Begin a repository: a draft of its first root, which `root-sign` signs."""
    sides = {
        name: open_public(keys, threshold)
        for name, keys, threshold in (("time", time, 1), ("offline", offline, offline_threshold))
        if keys
    }
    repository = begin(
        kind.value,
        {
            "root": open_public(root, root_threshold),
            "targets": open_public(targets, targets_threshold),
            "snapshot": open_public(snapshot, 1),
            "timestamp": open_public(timestamp, 1),
        },
        _now(),
        sides=sides,
        lives=Lives(root=days, targets=days, snapshot=snapshot_days, timestamp=timestamp_days),
    )
    RepositoryFolder(folder).create(repository)
    typer.echo(f"{folder}: sign the root next, {root_threshold} of {len(root)} keys")


@edit_app.command("delegate")
def delegate_family(
    folder: Folder,
    family: Annotated[str, typer.Option(help="The kind of ECU, for example brake-controller.")],
    hardware: Annotated[list[str], typer.Option(help="A hardware revision of it; once for each.")],
    key: Annotated[Publics, public_option("the family")],
    threshold: Annotated[int, typer.Option(min=1, help="So many of its keys must sign.")] = 1,
) -> None:
    """Let keys of their own sign for an ECU family, for its hardware and nothing else."""
    with RepositoryFolder(folder).opened() as held:
        held.save(delegate(held.load(), family, open_public(key, threshold), hardware, _now()))
    typer.echo(f"drafted: targets, {family}")


@edit_app.command()
def add(
    folder: Folder,
    image: Annotated[Path, typer.Option(help="The ECU's image, as the linker made it.")],
    kind: Annotated[str, typer.Option(help="The kind of ECU that it is for.")],
    hardware: Annotated[list[str], typer.Option(help="A hardware revision that it runs on; once for each.")],
    version: Annotated[str, typer.Option(help="Its version.")],
    counter: Annotated[int, typer.Option(min=0, help="Release counter: a number that only grows per kind.")],
    judge: Annotated[Judge, typer.Option(help="Whose rules it must meet; none must be said.")],
    family: Annotated[str | None, typer.Option(help="stm32: the family, as stm32f40x.")] = None,
    slot: Annotated[str | None, typer.Option(help="stm32: where it goes, START..END.")] = None,
) -> None:
    """Judge an image and draft it into the role of its family."""
    content = judged(read_file(image, MAX_IMAGE_BYTES), judge, family=family, slot=slot)
    spec = FirmwareSpec(
        kind=kind,
        hardware=tuple(hardware),
        version=version,
        release_counter=counter,
        length=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )
    target = firmware_target(spec)
    with RepositoryFolder(folder).opened() as held:
        repository, role = add_target(held.load(), target, _now())
        held.keep_image(target, content)
        held.save(repository)
    typer.echo(f"drafted {target.path} in {role}")


@edit_app.command("add-release")
def add_release(
    folder: Folder,
    spec: Annotated[Path, typer.Option(help="The release as JSON: name, version, targets, safety.")],
) -> None:
    """Draft a release document; every firmware that it names must be in the repository."""
    try:
        release = msgspec.json.decode(read_file(spec, MOST_RELEASE_BYTES), type=ReleaseSpec)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RepositoryTrouble(f"{spec}: {error}", advice="Correct the named field.") from error
    check_release(release)
    target = release_target(release)
    with RepositoryFolder(folder).opened() as held:
        repository = held.load()
        coming = [repository.coming(role) for role in targets_roles(repository)]
        known = {path for metadata in coming if metadata is not None for path in metadata.signed.targets}
        if absent := [one.spec.target_path for one in release.targets if one.spec.target_path not in known]:
            raise RepositoryTrouble(f"not in the repository: {', '.join(absent)}", advice="Add them first.")
        repository, role = add_target(repository, target, _now())
        held.keep_image(target, release.dump())
        held.save(repository)
    typer.echo(f"drafted {target.path} in {role}")


@edit_app.command("withdraw")
def withdraw_target(
    folder: Folder, path: Annotated[str, typer.Option(help="The target's path, as `show` lists it.")]
) -> None:
    """Draft a role without this target: once it is published, no truck begins it."""
    with RepositoryFolder(folder).opened() as held:
        repository, role = withdraw(held.load(), path, _now())
        held.save(repository)
    typer.echo(f"drafted {role} without {path}")


@edit_app.command("renew")
def renew_role(
    folder: Folder, role: Annotated[str, typer.Option(help="The role: root, targets, or a family's.")]
) -> None:
    """Draft a role as it is with a later expiry."""
    with RepositoryFolder(folder).opened() as held:
        held.save(renew(held.load(), role, _now()))
    typer.echo(f"drafted: {role}")


@edit_app.command("rotate-key")
def rotate(
    folder: Folder,
    role: Annotated[str, typer.Option(help="The role: root, targets, snapshot, timestamp, or a family's.")],
    old: Annotated[str, typer.Option(help="The key id that goes, or its beginning.")],
    new: Annotated[Path, typer.Option(help="The public key that comes.")],
) -> None:
    """Draft the replacement of a key, after a theft or in time before one."""
    with RepositoryFolder(folder).opened() as held:
        repository = rotate_key(held.load(), role, old, public_key(new), _now())
        held.save(repository)
    typer.echo(f"drafted: {', '.join(repository.drafts)}")


def _now() -> datetime:
    return datetime.now(UTC)
