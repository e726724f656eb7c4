"""`quarry release upload` and `list`: the published repository to the office, and what it has."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from cli.office import AsJson, OfficeClient, print_json, print_rows, short_time, with_office
from cli.release_options import RELEASE
from cli.release_tar import Member, members_of, size_of, stream
from cli.repository_folder import DELTAS, RepositoryFolder, published_targets
from shared.trust.uptane.matching import RELEASES, served_name
from shared.trust.uptane.repository import Repository, RepositoryTrouble

upload_app = typer.Typer()

ASK_AT_ONCE = 1000
SILENT_AT_MOST_S = 600.0
"""Beyond the last byte: the office verifies everything before it answers."""


@upload_app.command(rich_help_panel=RELEASE)
@with_office
def upload(
    client: OfficeClient,
    folder: Annotated[Path, typer.Option("--folder", help="The repository's folder.")],
    as_json: AsJson = False,
) -> None:
    """Send what is published to the office, which verifies it as a truck would; all of it or nothing.

    Images that the office has are left out. Repeating it changes nothing. Exits 1 when the office refuses
    it, with the name of the check that failed.
    """
    held = RepositoryFolder(folder)
    repository = held.load()
    if repository.kind != "image":
        raise RepositoryTrouble(
            f"{folder} is a director's repository",
            advice="The office reads a director's roots from its own disk: quarry release director kit.",
        )
    if "timestamp.json" not in repository.published:
        raise RepositoryTrouble(f"{folder} has published nothing yet", advice="quarry release publish")
    members = _members(client, held.public, repository)
    whole = size_of(members)
    headers = {"Content-Length": str(whole), "Content-Type": "application/x-tar"}
    with _bar() as bar:
        task = bar.add_task("upload", total=whole)

        def pieces() -> Iterator[bytes]:
            for piece in stream(members):
                yield piece
                bar.advance(task, len(piece))

        taken = client.call(
            "POST", "/image-repository", content=pieces(), headers=headers, timeout=SILENT_AT_MOST_S
        )
    if as_json:
        print_json(taken)
        return
    typer.echo(
        f"sent {whole} bytes; the office has snapshot {taken['snapshot']}, good until"
        f" {short_time(taken['good_until'])}, with {len(taken['releases'])} releases"
    )


def _members(client: OfficeClient, public: Path, repository: Repository) -> list[Member]:
    """All metadata and release documents, and those images and deltas that the office has not."""
    releases: list[str] = []
    images: dict[str, str] = {}
    for path, target in published_targets(repository).items():
        sha256 = target.hashes["sha256"]
        if path.startswith(RELEASES):
            releases.append(served_name(path, sha256))
        else:
            images[sha256] = served_name(path, sha256)
    hashes, lacking = sorted(images), list[str]()
    for begin in range(0, len(hashes), ASK_AT_ONCE):
        asked = {"sha256": hashes[begin : begin + ASK_AT_ONCE]}
        lacking += client.call("POST", "/image-repository/lacking", json=asked)["sha256"]
    deltas = _deltas(client, public / DELTAS, lacking=frozenset(lacking))
    names = [*sorted(repository.published), *releases, *(images[one] for one in lacking), *deltas]
    return members_of(public, names)


def _deltas(client: OfficeClient, folder: Path, *, lacking: frozenset[str]) -> list[str]:
    """Deltas by their names in the tar; of images that the office has, those that are new to it."""
    found: list[str] = []
    known: dict[str, frozenset[str]] = dict.fromkeys(lacking, frozenset())
    for path in sorted(folder.glob("*.*")):
        base_sha256, _, sha256 = path.name.partition(".")
        if sha256 not in known:
            there = client.call("GET", "/deltas", params={"sha256": sha256})["items"]
            known[sha256] = frozenset(one["base_sha256"] for one in there)
        if base_sha256 not in known[sha256]:
            found.append(f"{DELTAS}/{path.name}")
    return found


def _bar() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty())


@upload_app.command("list", rich_help_panel=RELEASE)
@with_office
def list_releases(client: OfficeClient, as_json: AsJson = False) -> None:
    """The releases that the office has and may send; a job names one by NAME/VERSION, or by its path."""
    found = client.call("GET", "/image-repository")
    if as_json:
        print_json(found)
        return
    print_rows(
        (
            (f"{one['name']}/{one['version']}", ", ".join(one["kinds"]), one["path"])
            for one in found["releases"]
        ),
        ("release", "for", "path"),
        title=f"Releases (snapshot {found['snapshot']}, good until {short_time(found['good_until'])})",
        none="The repository has no release: quarry release add-release --help",
    )
