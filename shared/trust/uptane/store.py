"""What a truck remembers of the two repositories between runs: a value, and its JSON form.

It lies outside the journal database (edge_agent writes it whole, synced and renamed), so that a
journal begun anew makes no old release good again. A verification takes one and returns a new one.
Only schema additions are made within `v` 1, and unknown fields are kept: the agent of yesterday must
be able to return and read it.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta
from tuf.api.metadata import Metadata, Root

from shared.errors import BadMessage
from shared.trust.uptane.errors import MetadataRefused, StoreUnreadable, Unreadable
from shared.trust.uptane.roles import HIGHEST_VERSION, MOST_ROOT_BYTES, check_root_signed, read
from shared.wire import Wire, decode_json

MOST_STORE_BYTES = 512 * 1024
RepositoryName = Literal["director", "image"]
_Version = Annotated[int, Meta(ge=0, le=HIGHEST_VERSION)]


class RepositoryState(Wire, frozen=True, kw_only=True):
    """What is trusted of one repository. 0: nothing was seen yet, or a key rotation made it void.

    `root` is the newest root, byte for byte; `roles` the version of each targets role that the newest
    trusted snapshot lists, by the role's name.
    """

    root: Annotated[str, Meta(max_length=MOST_ROOT_BYTES)]
    timestamp: _Version = 0
    snapshot: _Version = 0
    roles: dict[str, _Version] = {}

    def read_root(self) -> Metadata[Root]:
        """The trusted root. Raises StoreUnreadable."""
        try:
            return _self_signed(self.root.encode(), "stored root")
        except MetadataRefused as error:
            raise StoreUnreadable(error.message) from error


class TrustedStore(Wire, frozen=True, kw_only=True):
    """`times`: newest verified signed time by who signed it ("director/timestamp").

    `counters`: the highest release counter that each ECU ran, by serial. `offline` is the version of
    the newest offline selection (USB) that was accepted.
    """

    v: Literal[1] = 1
    director: RepositoryState
    image: RepositoryState
    times: dict[str, datetime] = {}
    counters: dict[str, _Version] = {}
    offline: _Version = 0

    def of(self, repository: RepositoryName) -> RepositoryState:
        """One of the two."""
        return self.director if repository == "director" else self.image

    def replaced(self, repository: RepositoryName, state: RepositoryState) -> TrustedStore:
        """The store with one repository's state renewed."""
        if repository == "director":
            return msgspec.structs.replace(self, director=state)
        return msgspec.structs.replace(self, image=state)

    def seen_time(self, who: str, at: datetime) -> TrustedStore:
        """The store that knows this signed time; an older one changes nothing."""
        known = self.times.get(who)
        if known is not None and known >= at:
            return self
        return msgspec.structs.replace(self, times={**self.times, who: at})

    def floor(self, built_at: datetime) -> datetime:
        """Time never reads below this: the newest verified signed time, else the build's."""
        return max([built_at, *self.times.values()])

    def ran(self, serial: str, counter: int) -> TrustedStore:
        """The store that knows that an ECU runs a release of this counter; called after the commit."""
        if counter <= self.counters.get(serial, 0):
            return self
        return msgspec.structs.replace(self, counters={**self.counters, serial: counter})

    def dump(self) -> bytes:
        """Its JSON form."""
        return msgspec.json.encode(self.to_obj())

    @classmethod
    def load(cls, raw: bytes) -> TrustedStore:
        """Read the JSON form. Raises StoreUnreadable: then nothing is trusted, rather than anything."""
        if len(raw) > MOST_STORE_BYTES:
            raise StoreUnreadable(f"{len(raw)} bytes, at most {MOST_STORE_BYTES} are read")
        try:
            store = cls.from_obj(decode_json(raw))
        except BadMessage as error:
            raise StoreUnreadable(error.message) from error
        for at in store.times.values():
            if at.tzinfo is None:
                raise StoreUnreadable("a signed time has no time zone")
        for state in (store.director, store.image):
            state.read_root()
        return store


def provision(*, director_root: bytes, image_root: bytes) -> TrustedStore:
    """The store of a new truck, from the two roots that it is given. Raises MetadataRefused.

    Any version will do, an expired one too: the newer ones are found from it.
    """
    director = _self_signed(director_root, "director/root")
    image = _self_signed(image_root, "image/root")
    if set(director.signed.keys) & set(image.signed.keys):
        raise Unreadable("image/root", "shares a key with the director's: one theft would take both")
    return TrustedStore(
        director=RepositoryState(root=director_root.decode()), image=RepositoryState(root=image_root.decode())
    )


def _self_signed(raw: bytes, where: str) -> Metadata[Root]:
    root = read(raw, Root, where, MOST_ROOT_BYTES)
    check_root_signed(root.signed, root, Root.type, where)
    return root
