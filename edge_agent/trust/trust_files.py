"""Metadata files and verified selections on the truck's disk, so that they can be verified once more.

`DATA/trust/files/` holds metadata by its SHA-256, which nobody believes: it is hashed when it is read, and
verified like anything from a link. `DATA/trust/selected/ID.json` names, of one verified selection, its
files, and what was trusted then; it is written when all of those are safe on the disk. Bounded: eight
selections, and 64 MiB of files before those that no selection needs are removed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edge_agent.safe_files import make_folder, read_bounded, write_whole
from edge_agent.trust.trust_store import read_sealed, sealed
from shared.errors import BadMessage
from shared.logs import get_log
from shared.trust.uptane.errors import StoreUnreadable
from shared.trust.uptane.matching import RELEASES
from shared.trust.uptane.roles import MOST_TARGETS_BYTES
from shared.trust.uptane.selection import Selection, load_selection
from shared.trust.uptane.steps import Wanted
from shared.trust.uptane.store import TrustedStore
from shared.trust.uptane.vehicle import Vehicle

log = get_log("edge_agent.trust_files")

MOST_KEPT = 8
MOST_KEPT_BYTES = 2 * 1024 * 1024
MOST_FILES_BYTES = 64 * 1024 * 1024
_Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    v: Literal[1] = 1
    selection: str
    store: str
    offline: bool
    vehicle: Vehicle
    files: dict[str, _Sha256]


@dataclass(frozen=True, kw_only=True)
class KeptSelection:
    """A selection and all that it was verified with: the store before that run, the truck, the files' hashes
    by "repository/name".
    """

    selection: Selection
    store: TrustedStore
    vehicle: Vehicle
    offline: bool
    files: Mapping[str, str]


def selection_id(selection: Selection) -> str:
    """Which selection it is: the same release for the same ECUs has one id, however often it is renewed."""
    words = [selection.release.target_path.removeprefix(RELEASES)]
    words += sorted(one.ecu.serial for one in selection.assignments)
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:32]


class TrustFiles:
    """The two folders. Every method blocks; OSError where the disk fails, if nothing else is said."""

    def __init__(self, folder: Path) -> None:
        self._files = folder / "files"
        self._selected = folder / "selected"

    def get(self, sha256: str | None) -> bytes | None:
        """The file of this hash; None when it is not here whole. Never raises."""
        if sha256 is None:
            return None
        try:
            raw = read_bounded(self._path(sha256), MOST_TARGETS_BYTES)
        except (OSError, ValueError):
            return None
        return raw if hashlib.sha256(raw).hexdigest() == sha256 else None

    def put(self, raw: bytes) -> str:
        """Keep a file; returns its hash."""
        sha256 = hashlib.sha256(raw).hexdigest()
        if self.get(sha256) is None:
            make_folder(self._files)
            write_whole(self._path(sha256), raw)
        return sha256

    def keep(self, kept: KeptSelection) -> str:
        """Keep a selection whose files are all here; returns its id."""
        said = _Kept(
            selection=kept.selection.dump().decode(),
            store=kept.store.dump().decode(),
            offline=kept.offline,
            vehicle=kept.vehicle,
            files=dict(kept.files),
        )
        name = selection_id(kept.selection)
        make_folder(self._selected)
        write_whole(self._selected / f"{name}.json", sealed(msgspec.json.encode(said)))
        return name

    def load(self, name: str) -> KeptSelection:
        """What `keep` kept. Raises StoreUnreadable, also when there is none of this id."""
        if len(name) != 32 or not name.isalnum():
            raise StoreUnreadable(f"{name[:80]!r} is no selection's id")
        path = self._selected / f"{name}.json"
        try:
            return read_sealed(path, _kept_of, MOST_KEPT_BYTES)
        except FileNotFoundError as error:
            raise StoreUnreadable(
                f"no selection {name} is kept", advice="Fetch the metadata again: connect the truck."
            ) from error

    def selections(self) -> tuple[str, ...]:
        """The ids of what is kept, the newest first. Never raises."""
        try:
            return tuple(path.stem for path in self._newest_first())
        except OSError as error:
            log.warning("trust.selections_unread", why=str(error))
            return ()

    def _newest_first(self) -> list[Path]:
        return sorted(self._selected.glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True)

    def prune(self, needed: Collection[str], files: Collection[str]) -> None:
        """Drop the oldest selections beyond the bound, but none of `needed`, and the files that nobody names.

        `files` are hashes to be kept all the same. Never raises: what is left is only room.
        """
        try:
            selected = self._newest_first()
            for path in [one for one in selected if one.stem not in needed][MOST_KEPT:]:
                path.unlink()
                selected.remove(path)
            named = set(files)
            for path in selected:
                named.update(self.load(path.stem).files.values())
            for path in self._files.glob("*"):
                if path.name not in named:
                    path.unlink()
        except FileNotFoundError:
            return
        except (OSError, StoreUnreadable) as error:
            log.warning("trust.files_not_pruned", why=str(error))

    def bytes_used(self) -> int:
        """What the files take."""
        return sum(path.stat().st_size for path in self._files.glob("*"))

    def fetch_of(self, kept: KeptSelection, wanted: Wanted) -> bytes | None:
        """For `steps.drive`: a file as it was when the selection was verified."""
        return self.get(kept.files.get(f"{wanted.repository}/{wanted.name}"))

    def _path(self, sha256: str) -> Path:
        return self._files / sha256


def _kept_of(raw: bytes) -> KeptSelection:
    said = msgspec.json.decode(raw, type=_Kept)
    try:
        return KeptSelection(
            selection=load_selection(said.selection.encode(), said.vehicle),
            store=TrustedStore.load(said.store.encode()),
            vehicle=said.vehicle,
            offline=said.offline,
            files=said.files,
        )
    except BadMessage as error:
        raise StoreUnreadable(error.message) from error
