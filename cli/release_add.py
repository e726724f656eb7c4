"""`quarry release add` and `add-release`: images, judged, and the releases that are made of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from tuf.api.metadata import TargetFile

from cli.release_delta import MOST_BASES, add_deltas
from cli.release_files import read_file
from cli.release_judge import Judge, judged
from cli.release_options import RELEASE, Folder, now
from cli.repository_folder import RepositoryFolder
from shared.release import MAX_IMAGE_BYTES, FirmwareSpec
from shared.trust.document import read_unverified, spec_of
from shared.trust.uptane.ecu_document import MOST_ECU_DOCUMENT_BYTES
from shared.trust.uptane.matching import RELEASES
from shared.trust.uptane.release_document import MOST_RELEASE_BYTES, ReleaseSpec, check_release
from shared.trust.uptane.repository import Repository, RepositoryTrouble
from shared.trust.uptane.repository_edit import add_target, firmware_target, release_target, targets_roles

add_app = typer.Typer()


@add_app.command(rich_help_panel=RELEASE)
def add(
    folder: Folder,
    image: Annotated[Path, typer.Option(help="The ECU's image, as the linker made it.")],
    judge: Annotated[Judge, typer.Option(help="Whose rules it must meet; none must be said.")],
    kind: Annotated[str | None, typer.Option(help="The kind of ECU that it is for.")] = None,
    hardware: Annotated[
        list[str] | None, typer.Option(help="A hardware revision that it runs on; once for each.")
    ] = None,
    version: Annotated[str | None, typer.Option(help="Its version.")] = None,
    counter: Annotated[
        int | None, typer.Option(min=0, help="Release counter: a number that only grows per kind.")
    ] = None,
    document: Annotated[
        Path | None,
        typer.Option(
            help="What the ECU's bootloader verifies, from `release document sign`; it travels with the"
            " image, and says kind, hardware, version and counter where those options don't."
        ),
    ] = None,
    family: Annotated[str | None, typer.Option(help="stm32: the family, as stm32f40x.")] = None,
    slot: Annotated[str | None, typer.Option(help="stm32: where it goes, START..END.")] = None,
    deltas: Annotated[
        int, typer.Option(min=0, max=32, help="Make deltas from so many of the newest older images.")
    ] = MOST_BASES,
    delta_from: Annotated[
        list[Path] | None,
        typer.Option(help="Make a delta from this older image instead, as it was flashed; once for each."),
    ] = None,
) -> None:
    """Judge an image and draft it into the role of its family, with deltas from what trucks may run."""
    raw = None if document is None else read_file(document, MOST_ECU_DOCUMENT_BYTES)
    content = judged(read_file(image, MAX_IMAGE_BYTES), judge, family=family, slot=slot)
    said = None if raw is None else read_unverified(raw)
    if (said is None and None in {kind, version, counter}) or not (hardware or said):
        raise typer.BadParameter("give --kind, --hardware, --version and --counter, or a --document")
    spec = FirmwareSpec(
        kind=_one(kind, said and said.kind),
        hardware=tuple(hardware) if hardware else _one(None, said and said.hardware),
        version=_one(version, said and said.version),
        release_counter=_one(counter, said and said.release_counter),
        length=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )
    target = firmware_target(spec, raw)
    with RepositoryFolder(folder).opened() as held:
        repository, role = add_target(held.load(), target, now())
        held.keep_image(target, content)
        made = add_deltas(held, repository, target, content, most=deltas, bases=delta_from or ())
        held.save(repository)
    typer.echo(f"drafted {target.path} in {role}")
    for one in made:
        typer.echo(str(one))


def _one(given: Any, said: Any) -> Any:
    return said if given is None else given


@add_app.command("add-release", rich_help_panel=RELEASE)
def add_release(
    folder: Folder,
    spec: Annotated[
        Path | None, typer.Option(help="The release as JSON: name, version, targets, safety, ...")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Instead of --spec: what the release is called.")] = None,
    version: Annotated[str | None, typer.Option(help="Instead of --spec: its version.")] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="Instead of --spec: KIND:VERSION of an image that was added; in the order in which"
            " they are flashed."
        ),
    ] = None,
) -> None:
    """Draft a release document; every firmware that it names must be in the repository.

    A target of the JSON may be as short as {"kind": ..., "version": ...}: hardware, counter, length and
    hash are then those of the image that was added.
    """
    if (spec is None) == (name is None or version is None or not target):
        raise typer.BadParameter("give --spec, or --name, --version and --target")
    if spec is None:
        said: Any = {"name": name, "version": version, "targets": _targets_of(target or [])}
    else:
        try:
            said = msgspec.json.decode(read_file(spec, MOST_RELEASE_BYTES))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise RepositoryTrouble(f"{spec}: {error}", advice="Correct the file: it is no JSON.") from error
    with RepositoryFolder(folder).opened() as held:
        repository = held.load()
        firmware = _firmware(repository)
        release = _release(said, firmware, str(spec or "the release"))
        absent = [one.spec.target_path for one in release.targets if one.spec.target_path not in firmware]
        if absent:
            raise RepositoryTrouble(f"not in the repository: {', '.join(absent)}", advice="Add them first.")
        whole = release_target(release)
        repository, role = add_target(repository, whole, now())
        held.keep_image(whole, release.dump())
        held.save(repository)
    typer.echo(f"drafted {whole.path} in {role}")


def _targets_of(said: list[str]) -> list[dict[str, Any]]:
    made = []
    for order, one in enumerate(said):
        kind, separator, version = one.partition(":")
        if not (kind and separator and version):
            raise typer.BadParameter(f"--target {one!r} is not KIND:VERSION, as brake-controller:1.1.0")
        made.append({"kind": kind, "version": version, "order": order})
    return made


def _firmware(repository: Repository) -> dict[str, FirmwareSpec]:
    """Every firmware that will be in the repository after the next publication, by its path."""
    coming = [repository.coming(role) for role in targets_roles(repository)]
    found: dict[str, TargetFile] = {}
    for metadata in coming:
        if metadata is not None:
            found.update(metadata.signed.targets)
    return {path: spec_of(path, one) for path, one in found.items() if not path.startswith(RELEASES)}


def _release(said: Any, firmware: Mapping[str, FirmwareSpec], where: str) -> ReleaseSpec:
    """What is written, completed by what was added. Raises RepositoryTrouble or BadReleaseDocument."""
    targets = said.get("targets") if isinstance(said, dict) else None
    if isinstance(targets, list):
        said = {**said, "targets": [_completed(one, firmware, where) for one in targets]}
    try:
        release = msgspec.convert(said, ReleaseSpec)
    except msgspec.ValidationError as error:
        raise RepositoryTrouble(f"{where}: {error}", advice="Correct the named field.") from error
    check_release(release)
    return release


def _completed(target: Any, firmware: Mapping[str, FirmwareSpec], where: str) -> Any:
    if not isinstance(target, dict) or "sha256" in target:
        return target
    named = (target.get("kind"), target.get("version"))
    found = [one for one in firmware.values() if (one.kind, one.version) == named]
    if len(found) != 1:
        raise RepositoryTrouble(
            f"{where}: {len(found)} images in the repository are {named[0]} {named[1]}",
            advice="Add the image first, or write its hardware, release_counter, length and sha256 as well.",
        )
    [one] = found
    return {
        "hardware": list(one.hardware),
        "release_counter": one.release_counter,
        "length": one.length,
        "sha256": one.sha256,
        **target,
    }
