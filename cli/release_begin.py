"""`quarry release keygen` and `init`: keys, and the image repository that they sign for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.release_files import FileTrouble, write_new
from cli.release_keys import PassphraseFd, open_public, public_key, secret
from cli.release_options import BEGIN, Folder, now, public_option
from cli.repository_folder import RepositoryFolder
from shared.trust.keys import new_key
from shared.trust.uptane.repository import Lives, RepositoryTrouble, begin

begin_app = typer.Typer()

NewKeys = Annotated[
    Path | None,
    typer.Option(help="Make new keys in this folder for the roles that no public key is given for."),
]
Days = Annotated[int, typer.Option(min=1, help="Root and targets are good for so long.")]


@begin_app.command(rich_help_panel=BEGIN)
def keygen(
    out: Annotated[Path, typer.Option(help="Where to write the private key; the public one is OUT.pub.")],
    passphrase_fd: PassphraseFd = None,
) -> None:
    """Make an Ed25519 key pair for a role, the private half encrypted by a passphrase."""
    public_file = write_key(out, secret(passphrase_fd, str(out), new=True).encode())
    typer.echo(f"{out} (encrypted), {public_file}, key id {public_key(public_file).keyid[:12]}")


@begin_app.command(rich_help_panel=BEGIN)
def init(
    folder: Folder,
    root: Annotated[list[Path] | None, public_option("root")] = None,
    targets: Annotated[list[Path] | None, public_option("targets")] = None,
    snapshot: Annotated[list[Path] | None, public_option("snapshot")] = None,
    timestamp: Annotated[list[Path] | None, public_option("timestamp")] = None,
    new_keys: NewKeys = None,
    root_threshold: Annotated[int, typer.Option(min=1, help="So many root keys must sign.")] = 2,
    targets_threshold: Annotated[int, typer.Option(min=1, help="So many targets keys must sign.")] = 1,
    timestamp_days: Annotated[int, typer.Option(min=1, help="A timestamp is good for so long.")] = 7,
    snapshot_days: Annotated[int, typer.Option(min=1, help="A snapshot is good for so long.")] = 30,
    days: Days = 365,
    passphrase_fd: PassphraseFd = None,
) -> None:
    """Begin an image repository: the draft of its first root, which `root sign` signs.

    With --new-keys DIR alone: three root keys of which two must sign, and one key each for targets,
    snapshot and timestamp, all encrypted by one passphrase. Give the three root keys to three people.
    """
    check_new(folder)
    maker = KeyMaker(new_keys, passphrase_fd)
    made = {
        "root": maker.keys("root", root, ("root-1", "root-2", "root-3")),
        "targets": maker.keys("targets", targets, ("targets",)),
        "snapshot": maker.keys("snapshot", snapshot, ("snapshot",)),
        "timestamp": maker.keys("timestamp", timestamp, ("timestamp",)),
    }
    thresholds = {"root": root_threshold, "targets": targets_threshold}
    repository = begin(
        "image",
        {role: open_public(keys, thresholds.get(role, 1)) for role, keys in made.items()},
        now(),
        lives=Lives(root=days, targets=days, snapshot=snapshot_days, timestamp=timestamp_days),
    )
    RepositoryFolder(folder).create(repository)
    typer.echo(f"{folder}: sign the root next, {root_threshold} of {len(made['root'])} keys:")
    typer.echo(f"  quarry release root sign --folder {folder} --key ...")


def check_new(folder: Path) -> None:
    """Raises FileTrouble before any key is made, when the folder holds a repository already."""
    if (folder / "repository.json").exists():
        raise FileTrouble(f"{folder} holds a repository already")


class KeyMaker:
    """Makes the keys that nobody gave, in one folder, by one passphrase that is asked for once."""

    def __init__(self, folder: Path | None, passphrase_fd: int | None) -> None:
        self._folder = folder
        self._passphrase_fd = passphrase_fd
        self._passphrase: bytes | None = None

    def keys(
        self, role: str, given: list[Path] | None, names: tuple[str, ...], *, is_open: bool = False
    ) -> list[Path]:
        """Public key files of a role: those that are given, else new ones of these names.

        `is_open`: the private half is not encrypted, for a server that starts without anybody there.
        Raises RepositoryTrouble or FileTrouble.
        """
        if given:
            return given
        if self._folder is None:
            raise RepositoryTrouble(
                f"no key of role {role} is given",
                advice=f"Give --{role} FILE.pub, or --new-keys DIR to have one made.",
            )
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise FileTrouble(f"{self._folder} can't be made: {error.strerror}") from error
        return [self._make(self._folder / name, is_open=is_open) for name in names]

    def _make(self, out: Path, *, is_open: bool) -> Path:
        if not is_open and self._passphrase is None:
            self._passphrase = secret(self._passphrase_fd, f"the new keys in {out.parent}", new=True).encode()
        public = write_key(out, None if is_open else self._passphrase)
        how = "NOT encrypted: for the office alone" if is_open else "encrypted"
        typer.echo(f"{out} ({how}), key id {public_key(public).keyid[:12]}")
        return public


def write_key(out: Path, passphrase: bytes | None) -> Path:
    """Write a new key pair; the public file's path. Raises FileTrouble, nothing is overwritten."""
    public_file = out.with_name(f"{out.name}.pub")
    if public_file.exists():
        raise FileTrouble(f"{public_file} is there already and is not overwritten")
    private, public = new_key(passphrase)
    write_new(out, private, mode=0o600)
    write_new(public_file, public, mode=0o644)
    return public_file
