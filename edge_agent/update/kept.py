"""What a single-slot ECU can be brought back to: the image and document of each component's last install.

`kept.json` in the image folder names them; the images lie there under their own names, and the downloader
is told to keep them (`hashes`). `before.json` holds what each ECU ran when a release began, so that a
journal database that is lost in the middle of it does not take a half-made release for the former state.
Both are written whole, synced and renamed. A damaged file counts as nothing kept: releases that need it
are refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec

from edge_agent.errors import StoreFailed
from edge_agent.safe_files import make_folder, write_whole
from edge_agent.store.release import Former
from shared.logs import get_log
from shared.messages import CommandTarget

log = get_log("edge_agent.kept")

MOST_FILE_BYTES = 8 * 1024 * 1024
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Kept:
    """One component's last installed firmware: what was signed, and the path of the image."""

    version: str
    sha256: str
    length: int
    document: str
    image: str
    selection: str | None = None
    """By whose authority it was installed, where the trust chain did it: see Metadata.verify_again."""

    def target(self, component: str) -> CommandTarget:
        """As the verifier takes it; there is nothing to fetch."""
        return CommandTarget(
            component=component,
            version=self.version,
            sha256=self.sha256,
            length=self.length,
            document=self.document,
            url="kept",
        )


@dataclass(frozen=True, kw_only=True)
class Before:
    """What the ECUs of one attempt held before it began, by the word of one journal."""

    job_id: str
    attempt: int
    journal_id: str
    formers: dict[str, Former] = field(default_factory=dict)

    def is_of_lost(self, attempt: tuple[str, int], journal_id: str) -> bool:
        """Whether a journal that is gone had begun this attempt."""
        return (self.job_id, self.attempt) == attempt and self.journal_id != journal_id


class KeptImages:
    """The records in `folder`, which is made when something is kept. All methods may block a thread only."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "kept.json"
        self._before = folder / "before.json"
        self._records: dict[str, Kept] | None = None

    async def keep(self, target: CommandTarget, image: str, *, selection: str | None = None) -> None:
        """`target` was installed from the file `image`, and by this selection. Raises StoreFailed."""
        kept = Kept(
            version=target.version,
            sha256=target.sha256,
            length=target.length,
            document=target.document,
            image=image,
            selection=selection,
        )
        records = await self._load()
        if records.get(target.component) != kept:
            await _write(self._file, {**records, target.component: kept})
            self._records = {**records, target.component: kept}

    async def of(self, component: str) -> Kept | None:
        """The component's last installed firmware; whether its image is whole is the verifier's question."""
        return (await self._load()).get(component)

    async def hashes(self) -> frozenset[str]:
        """Images that must not be removed to make room."""
        return frozenset(one.sha256 for one in (await self._load()).values())

    async def selections(self) -> frozenset[str]:
        """Selections by which kept images were installed."""
        return frozenset(one.selection for one in (await self._load()).values() if one.selection is not None)

    async def was_begun(self, attempt: tuple[str, int], journal_id: str) -> bool:
        """Whether a journal that is gone had begun this attempt (job_id, number) of a release."""
        known = await asyncio.to_thread(_read, self._before, Before)
        return known is not None and known.is_of_lost(attempt, journal_id)

    async def remember_before(
        self, attempt: tuple[str, int], journal_id: str, formers: Mapping[str, Former]
    ) -> dict[str, Former]:
        """What the ECUs held before this attempt: `formers`, unless a journal that is gone knew it.

        On the disk when it returns. Raises StoreFailed.
        """
        known = await asyncio.to_thread(_read, self._before, Before)
        if known is not None and known.is_of_lost(attempt, journal_id):
            return known.formers
        job_id, number = attempt
        before = Before(job_id=job_id, attempt=number, journal_id=journal_id, formers=dict(formers))
        if before != known:
            await _write(self._before, before)
        return before.formers

    async def _load(self) -> dict[str, Kept]:
        if self._records is None:
            self._records = await asyncio.to_thread(_read, self._file, dict[str, Kept]) or {}
        return self._records


def _read(path: Path, kind: type[T]) -> T | None:
    try:
        with path.open("rb") as file:
            # A file that is longer is cut here, and then is no JSON.
            raw = file.read(MOST_FILE_BYTES)
        return msgspec.json.decode(raw, type=kind)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        log.exception("kept.unreadable", path=str(path))
        return None


async def _write(path: Path, value: object) -> None:
    try:
        await asyncio.to_thread(_replace, path, msgspec.json.encode(value))
    except OSError as error:
        raise StoreFailed(f"{path.name} can't be written: {error}") from error


def _replace(path: Path, raw: bytes) -> None:
    make_folder(path.parent)
    write_whole(path, raw)
