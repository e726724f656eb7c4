"""A repository in a folder: `public` is what any static file server or bucket serves, the rest is not.

    repository.json   kind and lives of the roles
    drafts/           metadata that gathers signatures
    waiting/          images of drafts and deltas to them, where they will be served
    public/           N.root.json, N.snapshot.json, N.ROLE.json, timestamp.json, targets/FOLDER/HASH.FILE,
                      deltas/HASH.HASH (from one image to another; unsigned, see cli.release_delta)

Written so that a reader, or a power cut, at any moment finds a whole repository: images first, then
metadata under new names, timestamp.json last, by rename. One process edits at a time.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
from tuf.api.metadata import Metadata, TargetFile

from cli.release_files import FileTrouble, read_file
from shared.release import MAX_IMAGE_BYTES
from shared.trust.uptane.matching import served_name
from shared.trust.uptane.repository import Lives, Repository, RepositoryTrouble
from shared.trust.uptane.repository_edit import targets_roles
from shared.trust.uptane.roles import MOST_TARGETS_BYTES
from shared.trust.uptane.store import RepositoryName

DELTAS = "deltas"


class _Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    v: int = 1
    kind: RepositoryName
    lives: dict[str, int]


class RepositoryFolder:
    """A folder; `opened` holds its lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.public = path / "public"

    @contextmanager
    def opened(self) -> Iterator[RepositoryFolder]:
        """Nobody else edits meanwhile. Raises FileTrouble."""
        try:
            handle = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise FileTrouble(f"{self.path} can't be opened: {error.strerror}") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield self
        except BlockingIOError as error:
            raise FileTrouble(f"{self.path} is being edited by another process") from error
        finally:
            os.close(handle)

    def create(self, repository: Repository) -> None:
        """Write a new repository. Raises FileTrouble when there is one already."""
        if (self.path / "repository.json").exists():
            raise FileTrouble(f"{self.path} holds a repository already")
        for name in ("drafts", "waiting", "public"):
            (self.path / name).mkdir(parents=True, exist_ok=True)
        settings = _Settings(kind=repository.kind, lives=asdict(repository.lives))
        self.save(repository)
        replace_file(self.path / "repository.json", msgspec.json.format(msgspec.json.encode(settings)))

    def load(self) -> Repository:
        """Read it. Raises FileTrouble or RepositoryTrouble."""
        raw = read_file(self.path / "repository.json", 64 * 1024)
        try:
            settings = msgspec.json.decode(raw, type=_Settings)
            lives = Lives(**settings.lives)
        except (msgspec.DecodeError, TypeError) as error:
            raise RepositoryTrouble(f"{self.path / 'repository.json'}: {error}") from error
        published = _metadata_in(self.public)
        drafts = {name.removesuffix(".json"): raw for name, raw in _metadata_in(self.path / "drafts").items()}
        # A publication that was cut off after its metadata lay in `public` leaves drafts that are out.
        out = {role for role, raw in drafts.items() if raw == published.get(_name(role, raw))}
        fresh = {role: raw for role, raw in drafts.items() if role not in out}
        return Repository(kind=settings.kind, published=published, drafts=fresh, lives=lives)

    def keep_image(self, target: TargetFile, data: bytes) -> None:
        """Put an image where `save` finds it once its target is published."""
        place = self.path / "waiting" / PurePosixPath(served_name(target.path, target.hashes["sha256"]))
        place.parent.mkdir(parents=True, exist_ok=True)
        replace_file(place, data)

    def keep_delta(self, base_sha256: str, sha256: str, data: bytes) -> None:
        """Put a delta where `save` finds it once the image that it makes is published."""
        place = self.path / "waiting" / DELTAS
        place.mkdir(parents=True, exist_ok=True)
        replace_file(place / f"{base_sha256}.{sha256}", data)

    def read_image(self, target: TargetFile) -> bytes | None:
        """The image of a target, published or drafted; None when it is not here, or is another one."""
        name = PurePosixPath(served_name(target.path, target.hashes["sha256"]))
        for folder in (self.public, self.path / "waiting"):
            if (folder / name).exists():
                image = read_file(folder / name, MAX_IMAGE_BYTES)
                if hashlib.sha256(image).hexdigest() == target.hashes["sha256"]:
                    return image
        return None

    def save(self, repository: Repository) -> None:
        """Write what changed, in the order that keeps `public` whole."""
        self._release_images(repository)
        for name, raw in sorted(repository.published.items(), key=lambda one: _when(one[0])):
            if _read_or_none(self.public / name) != raw:
                replace_file(self.public / name, raw)
        folder = self.path / "drafts"
        for role, raw in repository.drafts.items():
            replace_file(folder / f"{role}.json", raw)
        for path in folder.glob("*.json"):
            if path.name.removesuffix(".json") not in repository.drafts:
                path.unlink()

    def _release_images(self, repository: Repository) -> None:
        for target in published_targets(repository).values():
            name = PurePosixPath(served_name(target.path, target.hashes["sha256"]))
            waiting, place = self.path / "waiting" / name, self.public / name
            if waiting.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                waiting.replace(place)
        self._release_deltas(repository)

    def _release_deltas(self, repository: Repository) -> None:
        """Deltas go where their images are: into the open, or, once those are withdrawn, away."""
        out = {one.hashes["sha256"] for one in published_targets(repository).values()}
        coming = out | {one.hashes["sha256"] for one in coming_targets(repository).values()}
        waiting, place = self.path / "waiting" / DELTAS, self.public / DELTAS
        for delta in waiting.glob("*.*"):
            sha256 = delta.name.partition(".")[2]
            if sha256 in out:
                place.mkdir(exist_ok=True)
                delta.replace(place / delta.name)
            elif sha256 not in coming:
                delta.unlink()
        for delta in place.glob("*.*"):
            if delta.name.partition(".")[2] not in out:
                delta.unlink()


def published_targets(repository: Repository) -> Mapping[str, TargetFile]:
    """Every target of the newest published roles, by path."""
    found: dict[str, TargetFile] = {}
    if repository.kind == "image":
        for role in targets_roles(repository):
            metadata: Metadata[Any] | None = repository.newest(role)
            if metadata is not None:
                found.update(metadata.signed.targets)
    return found


def coming_targets(repository: Repository) -> Mapping[str, TargetFile]:
    """Every target that the next publication will have, by path."""
    found: dict[str, TargetFile] = {}
    if repository.kind == "image" and repository.coming("root") is not None:
        for role in targets_roles(repository):
            metadata = repository.coming(role)
            if metadata is not None:
                found.update(metadata.signed.targets)
    return found


def _when(name: str) -> int:
    """A new root may need the new timestamp, and the timestamp needs everything else."""
    if name == "timestamp.json":
        return 2
    return 1 if name.endswith(".root.json") else 0


def _name(role: str, raw: bytes) -> str:
    return f"{Metadata.from_bytes(raw).signed.version}.{role}.json"


def _metadata_in(folder: Path) -> dict[str, bytes]:
    return {path.name: read_file(path, MOST_TARGETS_BYTES) for path in sorted(folder.glob("*.json"))}


def _read_or_none(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def replace_file(path: Path, raw: bytes) -> None:
    """Write a file whole, or leave it as it was. Raises FileTrouble."""
    fresh = path.with_name(f".{path.name}.new")
    try:
        with fresh.open("wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError as error:
        raise FileTrouble(f"{path} can't be written: {error.strerror}") from error
