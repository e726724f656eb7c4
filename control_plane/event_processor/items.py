"""PURE: what a bus message from a truck holds, taken apart into items that stand or fall alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import msgspec

from control_plane.bus.base import BusMessage
from shared.errors import BadMessage
from shared.messages import FromDevice, Hello, Manifest, Status, salvage_statuses
from shared.wire import decode_json


@dataclass(frozen=True, kw_only=True)
class Item:
    """One thing that a truck said, readable: a status of a batch, a hello or a manifest."""

    device_id: str
    store_id: str
    received_at: datetime
    content: Status | Hello | Manifest
    raw: bytes

    @property
    def kind(self) -> str:
        """The kind of message that it came in, as in its topic."""
        match self.content:
            case Status():
                return "update"
            case Hello():
                return "hello"
            case Manifest():
                return "manifest"


@dataclass(frozen=True, kw_only=True)
class Bad:
    """Something that can't be taken over, for the dead letters.

    `message_id` is set when a truck waits for the word on it; `reference` is kept to try it again.
    """

    device_id: str
    kind: str
    reason: str
    raw: bytes
    message_id: str | None = None
    job_id: str | None = None
    store_id: str | None = None

    @property
    def letter_id(self) -> str:
        """What tells its letter from others: a repeat of the same bytes is the same letter."""
        return self.message_id or hashlib.sha256(self.raw).hexdigest()


def bad_item(item: Item, reason: str) -> Bad:
    """A readable item that the office can't take over."""
    status = item.content if isinstance(item.content, Status) else None
    return Bad(
        device_id=item.device_id,
        kind=item.kind,
        reason=reason,
        raw=item.raw,
        message_id=None if status is None else status.message_id,
        job_id=None if status is None else status.job_id,
        store_id=item.store_id,
    )


def take_apart(messages: Sequence[BusMessage]) -> tuple[list[Item], list[Bad]]:
    """The items of a batch of bus messages in their order, and what can't be read."""
    items: list[Item] = []
    bad: list[Bad] = []
    for message in messages:
        try:
            outer = FromDevice.from_obj(decode_json(message.payload))
            raw = outer.payload.encode("latin-1")
        except (BadMessage, UnicodeEncodeError) as error:
            bad.append(
                Bad(device_id=message.key[:64], kind="unknown", reason=str(error), raw=message.payload)
            )
            continue
        try:
            found, broken = _read(outer, raw)
        except BadMessage as error:
            bad.append(Bad(device_id=outer.device_id, kind=outer.kind, reason=error.message, raw=raw))
            continue
        items += found
        bad += broken
    return items, bad


def _read(outer: FromDevice, raw: bytes) -> tuple[list[Item], list[Bad]]:
    """Raises BadMessage when nothing of it can be read."""
    match outer.kind:
        case "update":
            store_id, statuses, broken = salvage_statuses(raw)
            return (
                [_item(outer, store_id, one, msgspec.json.encode(one.to_obj())) for one in statuses],
                [
                    Bad(
                        device_id=outer.device_id,
                        kind="update",
                        reason=reason,
                        raw=part,
                        message_id=message_id,
                        store_id=store_id,
                    )
                    for message_id, reason, part in broken
                ],
            )
        case "hello":
            hello = Hello.from_json(raw)
            return [_item(outer, hello.store_id, hello, raw)], []
        case "manifest":
            manifest = Manifest.from_json(raw)
            return [_item(outer, manifest.store_id, manifest, raw)], []
        case _:
            raise BadMessage(f"nothing is done with messages of kind {outer.kind!r}")


def _item(outer: FromDevice, store_id: str, content: Status | Hello | Manifest, raw: bytes) -> Item:
    return Item(
        device_id=outer.device_id,
        store_id=store_id,
        received_at=outer.received_at,
        content=content,
        raw=raw,
    )
