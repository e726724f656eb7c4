"""What a verification allows to be installed, and its form on the truck's disk.

A truck keeps it with its trusted store from the moment of verification: an ECU whose flash has begun is
finished after a restart even when the metadata has expired or was replaced since.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from shared.trust.document import BadDocument
from shared.trust.uptane.ecu_document import MOST_ECU_DOCUMENT_BYTES, check_ecu_document
from shared.trust.uptane.errors import BadReleaseDocument, StoreUnreadable
from shared.trust.uptane.matching import Assignment
from shared.trust.uptane.release_document import MOST_RELEASE_BYTES, ReleaseSpec, read_release
from shared.trust.uptane.vehicle import Vehicle

_Document = Annotated[str, Meta(max_length=MOST_ECU_DOCUMENT_BYTES)]


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    v: Literal[1] = 1
    release: Annotated[str, Meta(max_length=MOST_RELEASE_BYTES)]
    serials: Annotated[tuple[str, ...], Meta(max_length=64)]
    expires: Annotated[datetime, Meta(tz=True)]
    documents: Annotated[dict[str, _Document], Meta(max_length=64)] = {}
    """ECUs' own documents, by their image's SHA-256."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What may be installed, wholly verified; in the order in which it goes.

    `expires` is the earliest of all expiries that it depends on (see time_policy.may_begin).
    """

    release: ReleaseSpec
    assignments: tuple[Assignment, ...]
    expires: datetime

    def dump(self) -> bytes:
        """Its JSON form."""
        return msgspec.json.encode(
            _Kept(
                release=self.release.dump().decode(),
                serials=tuple(one.ecu.serial for one in self.assignments),
                expires=self.expires,
                documents={
                    one.spec.sha256: one.document.decode()
                    for one in self.assignments
                    if one.document is not None
                },
            )
        )


def load_selection(raw: bytes, vehicle: Vehicle) -> Selection:
    """Read what `dump` wrote, for the same truck. Raises StoreUnreadable."""
    try:
        kept = msgspec.json.decode(raw, type=_Kept)
        release = read_release(kept.release.encode())
    except (msgspec.DecodeError, UnicodeDecodeError, BadReleaseDocument) as error:
        raise StoreUnreadable(f"the kept selection can't be read: {error}") from error
    made: list[Assignment] = []
    for serial in kept.serials:
        ecu = vehicle.by_serial(serial)
        target = release.target_for(ecu.kind, ecu.hardware) if ecu is not None else None
        if ecu is None or target is None:
            raise StoreUnreadable(f"the kept selection names {serial[:80]!r}, which this truck has not")
        document = kept.documents.get(target.sha256)
        try:
            raw_document = None if document is None else check_ecu_document(document.encode(), target.spec)
        except BadDocument as error:
            raise StoreUnreadable(f"the kept selection can't be read: {error}") from error
        made.append(Assignment(ecu=ecu, spec=target.spec, target=target, document=raw_document))
    return Selection(release=release, assignments=tuple(made), expires=kept.expires)
