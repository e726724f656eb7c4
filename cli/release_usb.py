"""`quarry release usb`: a bundle for trucks without a link, made where the offline role's key is.

    BUNDLE/director   every N.root.json, offline/TRUCK.json: what each listed truck shall have
    BUNDLE/image      the image repository's newest metadata, the release, its images for these trucks

The names are those that the office serves (edge_agent/trust/metadata_source.py reads them). A bundle is
verified as each of its trucks will do it before it counts as made.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from msgspec import Meta
from tuf.api.metadata import Root

from cli.office import AsJson, print_json
from cli.release_director import newest_root, published_in
from cli.release_files import FileTrouble, read_file
from cli.release_keys import PassphraseFd, open_signers
from cli.release_options import AIR_GAP, Keys, now
from cli.repository_folder import RepositoryFolder, published_targets, replace_file
from shared.ids import ID_PATTERN
from shared.trust.uptane.director import direct_offline
from shared.trust.uptane.matching import RELEASES, served_name
from shared.trust.uptane.offline import MOST_LIFE, offline_file
from shared.trust.uptane.release_document import MOST_RELEASE_BYTES, ReleaseSpec, read_release
from shared.trust.uptane.repository import Repository, RepositoryTrouble
from shared.trust.uptane.roles import HIGHEST_VERSION
from shared.trust.uptane.steps import Wanted, drive
from shared.trust.uptane.store import provision
from shared.trust.uptane.time_policy import Reading, TimePolicy
from shared.trust.uptane.vehicle import Ecu, Vehicle
from shared.trust.uptane.verify import verify

usb_app = typer.Typer()

VERSIONS = "offline-versions.json"
"""In the director's folder: the newest version of each truck's bundle, so that it never goes down."""

MOST_TRUCK_BYTES = 1024 * 1024


class _EcuFile(msgspec.Struct, frozen=True, kw_only=True):
    serial: str
    kind: str
    hardware: str
    counter: int = 0


class _TruckFile(msgspec.Struct, frozen=True, kw_only=True):
    """Of `quarry device ecus show TRUCK --json`, what is needed here."""

    device_id: Annotated[str, Meta(pattern=ID_PATTERN, max_length=64)]
    ecus: Annotated[tuple[_EcuFile, ...], Meta(min_length=1, max_length=256)]


@dataclass(frozen=True, kw_only=True)
class _Sources:
    """Both repositories and the release that is chosen of them."""

    director: Repository
    image: Repository
    images_at: Path
    release: ReleaseSpec


@usb_app.command(rich_help_panel=AIR_GAP)
def usb(
    folder: Annotated[Path, typer.Option("--folder", help="The folder of the director's repository.")],
    images: Annotated[Path, typer.Option(help="The folder of the image repository, published.")],
    release: Annotated[str, typer.Option(help="The release: its path, or NAME/VERSION.")],
    truck: Annotated[
        list[Path],
        typer.Option(help="A file from `quarry device ecus show TRUCK --json`; once for each truck."),
    ],
    keys: Keys,
    out: Annotated[Path, typer.Option(help="The bundle's folder, to be made.")],
    days: Annotated[
        int, typer.Option(min=1, max=MOST_LIFE.days, help="For how many days it may be installed.")
    ] = MOST_LIFE.days,
    passphrase_fd: PassphraseFd = None,
    as_json: AsJson = False,
) -> None:
    """Make a USB bundle of one release for listed trucks, signed by the director's role offline.

    Needs no network: carry the two repository folders and the trucks' files to the machine with the key.
    On the truck: quarry agent install-file BUNDLE. Exits 1 when a listed truck would refuse it.
    """
    signers = open_signers(keys, passphrase_fd)
    trucks = [_read_truck(path) for path in truck]
    if len({one.vehicle_id for one in trucks}) != len(trucks):
        raise RepositoryTrouble("a truck is listed twice", advice="Give each truck's file once.")
    made_at = now().replace(microsecond=0)
    with RepositoryFolder(folder).opened() as held:
        sources = _sources(held.load(), images, release)
        versions = _take_versions(held.path / VERSIONS, [one.vehicle_id for one in trucks], made_at)
    selections = {
        one.vehicle_id: direct_offline(
            one,
            sources.release,
            version=versions[one.vehicle_id],
            signers=signers,
            now=made_at,
            life=timedelta(days=days),
        )
        for one in trucks
    }
    part = out.with_name(f".{out.name}.part")
    if out.exists():
        raise FileTrouble(f"{out} is there already and is not overwritten")
    shutil.rmtree(part, ignore_errors=True)
    try:
        _write(part, sources, trucks, selections)
        for one in trucks:
            _check(part, sources, one, made_at)
        part.rename(out)
    except OSError as error:
        raise FileTrouble(f"{out} can't be made: {error.filename or part}: {error.strerror}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    facts = {
        "bundle": str(out),
        "release": sources.release.target_path,
        "trucks": versions,
        "good_until": (made_at + timedelta(days=days)).isoformat(),
    }
    if as_json:
        print_json(facts)
        return
    typer.echo(f"{out}: {facts['release']}, good until {facts['good_until']}, for {', '.join(versions)}")


def _read_truck(path: Path) -> Vehicle:
    try:
        said = msgspec.json.decode(read_file(path, MOST_TRUCK_BYTES), type=_TruckFile)
        return Vehicle(
            vehicle_id=said.device_id,
            ecus=tuple(
                Ecu(serial=one.serial, kind=one.kind, hardware=one.hardware, installed_counter=one.counter)
                for one in said.ecus
            ),
        )
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
        raise RepositoryTrouble(
            f"{path}: {error}", advice="Write it with: quarry device ecus show TRUCK --json"
        ) from error


def _sources(director: Repository, images: Path, said: str) -> _Sources:
    if director.kind != "director":
        raise RepositoryTrouble(
            "--folder is no director's repository", advice="Give the image one as --images."
        )
    published_in(director, "--folder")
    held = RepositoryFolder(images)
    image = published_in(held.load(), str(images))
    known = {path: one for path, one in published_targets(image).items() if path.startswith(RELEASES)}
    found = [path for path in known if said in {path, path.removeprefix(RELEASES).rpartition("/")[0]}]
    if len(found) != 1:
        raise RepositoryTrouble(
            f"{len(found)} releases of {images} are called {said}",
            advice="See `quarry release show`; name the whole path.",
        )
    name = served_name(found[0], known[found[0]].hashes["sha256"])
    release = read_release(read_file(held.public / name, MOST_RELEASE_BYTES))
    return _Sources(director=director, image=image, images_at=held.public, release=release)


def _take_versions(path: Path, trucks: Sequence[str], at: datetime) -> dict[str, int]:
    """A version for each truck, above every one before: also when this file was lost, by the clock."""
    try:
        known = msgspec.json.decode(read_file(path, MOST_TRUCK_BYTES), type=dict[str, int])
    except FileTrouble:
        if path.exists():
            raise
        known = {}
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RepositoryTrouble(
            f"{path}: {error}", advice="Remove it: versions go on by the clock."
        ) from error
    taken = {one: max(known.get(one, 0) + 1, int(at.timestamp())) for one in trucks}
    if max(taken.values()) > HIGHEST_VERSION:
        raise RepositoryTrouble(f"{path}: a version is over 2**53", advice="Rotate the key of role offline.")
    replace_file(path, msgspec.json.format(msgspec.json.encode({**known, **taken})))
    return taken


def _write(part: Path, sources: _Sources, trucks: Sequence[Vehicle], selections: Mapping[str, bytes]) -> None:
    for name, raw in sources.director.published.items():
        _put(part / "director" / name, raw)
    for vehicle_id, raw in selections.items():
        _put(part / "director" / offline_file(vehicle_id), raw)
    for name in _newest_names(sources.image):
        _put(part / "image" / name, sources.image.published[name])
    document = sources.release.dump()
    path = sources.release.target_path
    _put(part / "image" / served_name(path, path.rpartition("/")[2].removesuffix(".json")), document)
    for one in sources.release.targets:
        if any(ecu.kind == one.kind and ecu.hardware in one.hardware for v in trucks for ecu in v.ecus):
            name = served_name(one.spec.target_path, one.sha256)
            _copy(sources.images_at / name, part / "image" / name)


def _newest_names(image: Repository) -> list[str]:
    """Every root, and of the other roles what the newest timestamp leads to."""
    roots = [name for name in image.published if name.endswith(f".{Root.type}.json")]
    snapshot = image.newest("snapshot")
    assert snapshot is not None
    roles = ["snapshot", *(name.removesuffix(".json") for name in snapshot.signed.meta)]
    newest = [image.newest_name(role) for role in roles]
    return [*roots, "timestamp.json", *(name for name in newest if name is not None)]


def _put(path: Path, raw: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, raw)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    with target.open("rb+") as file:
        os.fsync(file.fileno())


def _check(part: Path, sources: _Sources, vehicle: Vehicle, at: datetime) -> None:
    """Raises MetadataRefused as the truck would, or RepositoryTrouble when there is nothing for it."""

    def fetch(wanted: Wanted) -> bytes | None:
        path = part / wanted.repository / wanted.name
        return path.read_bytes() if path.is_file() else None

    store = provision(director_root=newest_root(sources.director), image_root=newest_root(sources.image))
    policy = TimePolicy(built_at=datetime(2026, 1, 1, tzinfo=UTC))
    outcome = drive(verify(store, vehicle, Reading(wall=at), policy, offline=True), fetch)
    if outcome.refused is not None:
        raise outcome.refused
    if outcome.selection is None:
        raise RepositoryTrouble(
            f"{sources.release.target_path} is for none of the ECUs of {vehicle.vehicle_id}",
            advice="Leave this truck out, or choose another release.",
        )
