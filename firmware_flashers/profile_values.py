"""Checks that the values of every profile share; each refusal names the key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from firmware_flashers.base import MemoryRange
from shared.errors import ConfigError

MOST_SECONDS = 3600


def refuse_unknown(given: Mapping[str, Any], known: type, where: str) -> None:
    """Raise ConfigError for a key that the dataclass `known` has not; `where` ends with a dot."""
    names = {one.name for one in fields(known)}
    for key in given:
        if key not in names:
            raise ConfigError(f"{where}{key} is not a known key; known are {', '.join(sorted(names))}")


def check_timing(timing: Any) -> None:
    """Raise ConfigError unless every field of a dataclass of times and counts is a number of its kind."""
    for one in fields(timing):
        value = getattr(timing, one.name)
        kinds = (int,) if one.type == "int" else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value <= MOST_SECONDS:
            raise ConfigError(f"profile.timing.{one.name} is {value!r}, not a number in (0, {MOST_SECONDS}]")


def memory_range(key: str, value: Any) -> MemoryRange:
    """`[start, end]` of a TOML file."""
    numbers = isinstance(value, list) and all(
        isinstance(one, int) and not isinstance(one, bool) for one in value
    )
    if not numbers or len(value) != 2:
        raise ConfigError(f"{key} is not [start, end]")
    return MemoryRange(start=value[0], end=value[1])
