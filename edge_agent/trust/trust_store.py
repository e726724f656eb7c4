"""What the truck trusts, on its disk: DATA/trust/store.json, whole or not at all, outside the journal.

Written beside the old one, synced, renamed, and the folder synced: a power cut leaves the old or the new.
The first line is the SHA-256 of the rest, so that a flipped bit is damage and no other version or counter.
A damaged file, or one that is gone after the truck was provisioned, trusts nothing (StoreUnreadable): a
person looks and removes the whole folder, and only then are the two root files trusted afresh.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import msgspec

from edge_agent.errors import StoreFailed
from edge_agent.safe_files import make_folder, read_bounded, write_whole
from edge_agent.threads import finish_in_thread
from edge_agent.trust.trust_config import Roots
from shared.logs import get_log
from shared.trust.uptane.errors import StoreUnreadable
from shared.trust.uptane.store import MOST_STORE_BYTES, TrustedStore, provision

log = get_log("edge_agent.trust_store")

STORE = "store.json"
MARK = "provisioned"
_SUM_CHARS = 64
T = TypeVar("T")


def trust_folder(data_dir: Path) -> Path:
    """Where all that is trusted lies, in the data folder."""
    return data_dir / "trust"


class TrustKeeper:
    """The trusted store in memory and on the disk. Open it with `await TrustKeeper.open(folder, roots)`.

    The two never differ but for a write that failed: then memory is the older one.
    """

    def __init__(self, folder: Path, store: TrustedStore | None, why: str) -> None:
        self._folder = folder
        self._store = store
        self._why = why
        self._one = asyncio.Lock()

    @classmethod
    async def open(cls, folder: Path, roots: Roots, *, ran: Mapping[str, int] | None = None) -> TrustKeeper:
        """Read the store, or provision a new truck from its two roots.

        `ran` are the release counters that ECUs ran already, by serial, as an agent without the trust
        chain knew them: taken over at provisioning. A damaged store raises nothing here, so that the agent
        runs and says so: every use of it does. Raises StoreFailed when a new store can't be written, and
        MetadataRefused for roots that the configuration would not have taken.
        """
        try:
            return cls(folder, await finish_in_thread(_read, folder), "")
        except FileNotFoundError:
            pass
        except StoreUnreadable as error:
            log.error("trust.store_unreadable", why=error.message, advice=error.advice)  # noqa: TRY400
            return cls(folder, None, error.message)
        store = provision(director_root=roots.director, image_root=roots.image)
        for serial, counter in (ran or {}).items():
            store = store.ran(serial, counter)
        keeper = cls(folder, store, "")
        await keeper._write(store)
        log.info("trust.provisioned", folder=str(folder))
        return keeper

    @property
    def store(self) -> TrustedStore:
        """What is trusted now. Raises StoreUnreadable."""
        if self._store is None:
            raise _unreadable(self._folder, self._why)
        return self._store

    def floor(self, built_at: datetime) -> datetime:
        """Time never reads below this; `built_at` where the store is damaged."""
        return built_at if self._store is None else self._store.floor(built_at)

    async def keep(self, verified: TrustedStore) -> None:
        """Trust what a run over `store` has verified; it is on the disk when this returns.

        Counters that rose during the run stay risen. Raises StoreFailed: then nothing new is trusted.
        """
        async with self._one:
            kept = self.store
            for serial, counter in kept.counters.items():
                verified = verified.ran(serial, counter)
            if verified != kept:
                await self._write(verified)
                self._store = verified

    async def ran(self, serial: str, counter: int) -> None:
        """Remember that an ECU runs a firmware of this counter: after the commit. Raises StoreFailed."""
        async with self._one:
            risen = self.store.ran(serial, counter)
            if risen != self.store:
                await self._write(risen)
                self._store = risen

    async def _write(self, store: TrustedStore) -> None:
        try:
            await finish_in_thread(_write, self._folder, store)
        except OSError as error:
            raise StoreFailed(f"{self._folder / STORE} can't be written: {error}") from error


def sealed(raw: bytes) -> bytes:
    """A content with its SHA-256 before it."""
    return hashlib.sha256(raw).hexdigest().encode() + b"\n" + raw


def unsealed(raw: bytes) -> bytes:
    """The content of `sealed`. Raises ValueError when a bit of it is another."""
    content = raw[_SUM_CHARS + 1 :]
    if sealed(content) != raw:
        raise ValueError("its bytes are not those that were written")
    return content


def read_sealed(path: Path, load: Callable[[bytes], T], most_bytes: int) -> T:
    """The value of a sealed file. Blocks. Raises FileNotFoundError, StoreUnreadable."""
    try:
        return load(unsealed(read_bounded(path, most_bytes + _SUM_CHARS + 1)))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        raise StoreUnreadable(f"{path} is damaged: {error}") from error


def read_store(folder: Path) -> TrustedStore:
    """The store in the trust folder; nothing is written. Blocks.

    Raises FileNotFoundError for a truck that was never provisioned, StoreUnreadable for damage.
    """
    try:
        return read_sealed(folder / STORE, TrustedStore.load, MOST_STORE_BYTES)
    except FileNotFoundError:
        if (folder / MARK).exists():
            raise _unreadable(folder, f"{folder / STORE} is gone, and this truck had one") from None
        raise
    except StoreUnreadable as error:
        raise _unreadable(folder, error.message) from error


def _read(folder: Path) -> TrustedStore:
    """As `read_store`, and it is marked that there was one."""
    store, mark = read_store(folder), folder / MARK
    try:
        if not mark.exists():
            # Provisioning was cut between the store and its mark.
            write_whole(mark, b"")
    except OSError as error:
        raise _unreadable(folder, f"{mark} can't be written: {error}") from error
    return store


def _write(folder: Path, store: TrustedStore) -> None:
    raw = store.dump()
    if len(raw) > MOST_STORE_BYTES:
        raise OSError(f"the store would have {len(raw)} bytes, at most {MOST_STORE_BYTES} are read again")
    make_folder(folder)
    write_whole(folder / STORE, sealed(raw))
    if not (folder / MARK).exists():
        write_whole(folder / MARK, b"")


def _unreadable(folder: Path, why: str) -> StoreUnreadable:
    return StoreUnreadable(
        why,
        advice="Nothing is installed. Look at the disk; when a fault of it is proved, stop the agent, remove "
        f"{folder} by hand and start it: the two root files are then trusted afresh.",
    )
