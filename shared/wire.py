"""How values become bytes on the wire and back: versioned JSON whose unknown fields are kept.

A newer peer may send fields that this program has never heard of. They are kept in `extra` at
the level where they stood and are written out again when the value is encoded, so that a message
that passes through an older program loses nothing. Everything else that is not as declared is
refused with `BadMessage`, which names the place.
"""

from __future__ import annotations

from typing import Any

import msgspec

from shared.errors import BadMessage
from shared.since_310 import Self

MAX_MESSAGE_BYTES = 128 * 1024
"""The largest message that either end reads or writes (MQTT payload, bus value)."""


class Wire(msgspec.Struct, frozen=True, kw_only=True):
    """Base of every value that travels: declared fields, and whatever else came with them."""

    extra: dict[str, Any] = {}

    def to_obj(self) -> dict[str, Any]:
        """The value as plain JSON types; unset optional fields (None) are left out."""
        out: dict[str, Any] = dict(self.extra)
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if name != "extra" and value is not None:
                out[name] = _plain(value)
        return out

    def to_json(self) -> bytes:
        """Encode; raises BadMessage when the result is larger than MAX_MESSAGE_BYTES."""
        raw = msgspec.json.encode(self.to_obj())
        if len(raw) > MAX_MESSAGE_BYTES:
            raise BadMessage(f"{type(self).__name__} of {len(raw)} bytes is over {MAX_MESSAGE_BYTES}")
        return raw

    @classmethod
    def from_obj(cls, obj: object) -> Self:
        """Read plain JSON types. Raises BadMessage that names the field."""
        if not isinstance(obj, dict):
            raise BadMessage(f"{cls.__name__}: expected an object, got {type(obj).__name__}")
        try:
            return msgspec.convert(_fold(cls, obj), cls)
        except msgspec.ValidationError as error:
            raise BadMessage(f"{cls.__name__}: {error}") from error

    @classmethod
    def from_json(cls, raw: bytes) -> Self:
        """Decode one message. Raises BadMessage for anything but a whole, valid one."""
        if len(raw) > MAX_MESSAGE_BYTES:
            raise BadMessage(f"{cls.__name__} of {len(raw)} bytes is over {MAX_MESSAGE_BYTES}")
        return cls.from_obj(decode_json(raw))


def decode_json(raw: bytes) -> object:
    """Any JSON value; raises BadMessage when the bytes are not JSON."""
    try:
        value: object = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadMessage(f"not JSON: {error}") from error
    return value


def _plain(value: object) -> object:
    if isinstance(value, Wire):
        return value.to_obj()
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return msgspec.to_builtins(value)


def _inner(kind: msgspec.inspect.Type) -> type[Wire] | None:
    """The Wire class inside a field's type, be it bare, optional or a sequence."""
    match kind:
        case msgspec.inspect.StructType(cls=cls) if issubclass(cls, Wire):
            return cls
        case msgspec.inspect.UnionType(types=types):
            return next((found for one in types if (found := _inner(one))), None)
        case msgspec.inspect.VarTupleType(item_type=item) | msgspec.inspect.ListType(item_type=item):
            return _inner(item)
    return None


_SHAPES: dict[type[Wire], dict[str, type[Wire] | None]] = {}


def _shape(cls: type[Wire]) -> dict[str, type[Wire] | None]:
    """Each declared field of `cls` and the Wire class inside it; one entry a class, kept."""
    shape = _SHAPES.get(cls)
    if shape is None:
        info = msgspec.inspect.type_info(cls)
        assert isinstance(info, msgspec.inspect.StructType)
        shape = {f.name: _inner(f.type) for f in info.fields if f.name != "extra"}
        _SHAPES[cls] = shape
    return shape


def _fold(cls: type[Wire], obj: dict[str, Any]) -> dict[str, Any]:
    """Move unknown fields of `obj`, at every level, into `extra`."""
    shape = _shape(cls)
    out: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for name, value in obj.items():
        if name not in shape:
            extra[name] = value
            continue
        inner = shape[name]
        if inner is not None and isinstance(value, dict):
            out[name] = _fold(inner, value)
        elif inner is not None and isinstance(value, list):
            out[name] = [_fold(inner, v) if isinstance(v, dict) else v for v in value]
        else:
            out[name] = value
    out["extra"] = extra
    return out
