"""`quarry release director`: the root of the online side, made and signed offline, and where its parts go.

The office signs for each truck by keys that lie open on its disk (or in a token): they may only choose among
what was signed offline. Which keys those are is said by this root, whose own keys stay offline.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Annotated

import typer
from tuf.api.metadata import Root

from cli.release_begin import Days, KeyMaker, NewKeys, check_new
from cli.release_files import FileTrouble, read_file, write_new
from cli.release_keys import PassphraseFd, open_public
from cli.release_options import now, public_option
from cli.repository_folder import RepositoryFolder
from control_plane.director.key_references import is_reference, public_key_of, read_references
from shared.trust.document import MAX_DOCUMENT_BYTES
from shared.trust.keys import load_signer
from shared.trust.uptane.repository import Lives, Repository, RepositoryTrouble, begin
from shared.trust.uptane.side_roles import TIME, side_keyids
from shared.trust.uptane.store import provision

director_app = typer.Typer(no_args_is_help=True, help="The director's root, and what office and trucks get.")


@director_app.command("init")
def begin_director(
    folder: Annotated[Path, typer.Option("--folder", help="The folder of the director's repository.")],
    root: Annotated[list[Path] | None, public_option("root")] = None,
    online: Annotated[
        list[Path] | None, typer.Option(help="The office's public key: it signs for each truck.")
    ] = None,
    time: Annotated[list[Path] | None, public_option("time (signs what time it is)")] = None,
    offline: Annotated[list[Path] | None, public_option("offline (signs USB bundles)")] = None,
    new_keys: NewKeys = None,
    root_threshold: Annotated[int, typer.Option(min=1, help="So many root keys must sign.")] = 2,
    offline_threshold: Annotated[int, typer.Option(min=1, help="So many offline keys must sign.")] = 1,
    days: Days = 365,
    passphrase_fd: PassphraseFd = None,
) -> None:
    """Begin a director: the draft of its first root, which `release root sign` signs.

    With --new-keys DIR alone: three root keys of which two must sign, and one for USB bundles, encrypted
    by one passphrase; and two that the office needs at every start, director-online and director-time,
    which are not. Then: root sign, publish, and `release director kit`.
    """
    check_new(folder)
    maker = KeyMaker(new_keys, passphrase_fd)
    roots = maker.keys("root", root, tuple(f"director-root-{n}" for n in (1, 2, 3)))
    offlines = maker.keys("offline", offline, ("director-offline",))
    onlines = maker.keys("online", online, ("director-online",), is_open=True)
    times = maker.keys("time", time, ("director-time",), is_open=True)
    online_keys = open_public(onlines, 1)
    repository = begin(
        "director",
        {
            "root": open_public(roots, root_threshold),
            "targets": online_keys,
            "snapshot": online_keys,
            "timestamp": online_keys,
        },
        now(),
        sides={"time": open_public(times, 1), "offline": open_public(offlines, offline_threshold)},
        lives=Lives(root=days),
    )
    RepositoryFolder(folder).create(repository)
    typer.echo(f"{folder}: sign the root next, {root_threshold} of {len(roots)} keys:")
    typer.echo(f"  quarry release root sign --folder {folder} --key ...")


@director_app.command("kit")
def make_kit(
    folder: Annotated[Path, typer.Option("--folder", help="The folder of the director's repository.")],
    images: Annotated[Path, typer.Option(help="The folder of the image repository.")],
    online_key: Annotated[Path, typer.Option(help="The office's key: director-online, or a reference.")],
    out: Annotated[Path, typer.Option(help="A folder to be made: OUT/office and OUT/truck.")],
    time_key: Annotated[
        Path | None, typer.Option(help="The key of role time: director-time. Else trucks can't ask.")
    ] = None,
    at: Annotated[
        Path | None, typer.Option(help="Where OUT/office will lie on the office's machine; else where it is.")
    ] = None,
) -> None:
    """Put together what the office and the trucks need of both roots, each in a folder of its own.

    OUT/office holds keys and an `office.toml` for `quarry serve --config`; OUT/truck the two roots and a
    `trust.toml` with the section that belongs into the agent's configuration.
    """
    director = published_in(RepositoryFolder(folder).load(), str(folder))
    image = published_in(RepositoryFolder(images).load(), str(images))
    root: Root = director.root()
    online = read_file(online_key, MAX_DOCUMENT_BYTES)
    _check_names(root, online, "online", root.roles["targets"].keyids)
    time = None if time_key is None else read_file(time_key, MAX_DOCUMENT_BYTES)
    if time is not None:
        _check_names(root, time, TIME, side_keyids(root, TIME))
    director_root, image_root = newest_root(director), newest_root(image)
    provision(director_root=director_root, image_root=image_root)
    office, truck = out / "office", out / "truck"
    try:
        (office / "director-roots").mkdir(parents=True, mode=0o700)
        truck.mkdir()
    except OSError as error:
        raise FileTrouble(f"{out} can't be made: {error.strerror}") from error
    for name, raw in director.published.items():
        write_new(office / "director-roots" / name, raw, mode=0o644)
    write_new(office / "director-key", online, mode=0o600)
    write_new(office / "image.root.json", image_root, mode=0o644)
    place = at if at is not None else office.absolute()
    lines = {
        "director": "true",
        "director_key": json.dumps(str(place / "director-key")),
        "director_roots": json.dumps(str(place / "director-roots")),
        "director_image_root": json.dumps(str(place / "image.root.json")),
    }
    if time is not None:
        write_new(office / "director-time-key", time, mode=0o600)
        lines["director_time_key"] = json.dumps(str(place / "director-time-key"))
    office_toml = "".join(f"{key} = {value}\n" for key, value in lines.items())
    write_new(office / "office.toml", office_toml.encode(), mode=0o644)
    write_new(truck / "director.root.json", director_root, mode=0o644)
    write_new(truck / "image.root.json", image_root, mode=0o644)
    trust = '[trust]\ndirector_root = "director.root.json"\nimage_root = "image.root.json"\n'
    write_new(truck / "trust.toml", trust.encode(), mode=0o644)
    if any(is_reference(raw) for raw in (online, time) if raw is not None):
        typer.echo(f"Put the files that the key references name into {place}, readable for the office alone.")
    typer.echo(f"{office}: secret; quarry serve --config {place / 'office.toml'}")
    typer.echo(f"{truck}: for every truck; its two roots and the lines for its agent's configuration")


def published_in(repository: Repository, where: str) -> Repository:
    """The same, when it has published a root. Raises RepositoryTrouble."""
    if repository.newest_name(Root.type) is None:
        raise RepositoryTrouble(
            f"{where} has published no root yet",
            advice="Sign and publish it: quarry release root sign, then quarry release publish.",
        )
    return repository


def newest_root(repository: Repository) -> bytes:
    """The newest published root."""
    name = repository.newest_name(Root.type)
    assert name is not None
    return repository.published[name]


def _check_names(root: Root, raw: bytes, role: str, keyids: Collection[str]) -> None:
    """Raises RepositoryTrouble unless the root names a key, which may lie in a token or Vault, for a role."""
    if is_reference(raw):
        keys = [public_key_of(one) for one in read_references(raw, f"the key of {role}")]
    else:
        keys = [load_signer(raw).public_key]
    for key in keys:
        if key.keyid not in keyids:
            raise RepositoryTrouble(
                f"root {root.version} does not name the key {key.keyid[:12]} for {role}",
                advice="Give the private key whose public half the director was begun with.",
            )
