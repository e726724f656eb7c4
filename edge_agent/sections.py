"""Reads a TOML table key by key; whatever is missing, wrong or unknown is named with its file and key."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any, TypeVar

from shared.errors import ConfigError
from shared.since_310 import tomllib

MOST_CONFIG_BYTES = 256 * 1024
T = TypeVar("T")


class Section:
    """One table of a TOML file. Each read takes its key; `done` refuses what nobody asked for."""

    def __init__(self, file: Path, name: str, table: dict[str, Any]) -> None:
        self.file = file
        self._name = name
        self._left = dict(table)

    @classmethod
    def of_file(cls, file: Path) -> Section:
        """The top table of a file. Raises ConfigError when it can't be read or is no TOML."""
        try:
            with file.open("rb") as opened:
                raw = opened.read(MOST_CONFIG_BYTES + 1)
        except OSError as error:
            raise ConfigError(
                f"{file}: can't be read: {error.strerror}",
                advice="Name a configuration file; `quarry agent init --out FILE` writes an example.",
            ) from error
        if len(raw) > MOST_CONFIG_BYTES:
            raise ConfigError(f"{file}: is over {MOST_CONFIG_BYTES} bytes")
        try:
            return cls(file, "", tomllib.loads(raw.decode()))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ConfigError(f"{file}: is not TOML: {error}") from error

    def key(self, key: str) -> str:
        """The full name of a key, as a person finds it."""
        return f"{self._name}.{key}" if self._name else key

    def wrong(self, key: str, why: str) -> ConfigError:
        """The error for a value that can't be."""
        return ConfigError(f"{self.file}: {self.key(key)}: {why}")

    def has(self, key: str) -> bool:
        """Whether the key is there and not read yet."""
        return key in self._left

    def _take(self, key: str, kind: type[T], word: str, *, needed: bool) -> T | None:
        if key not in self._left:
            if needed:
                raise self.wrong(key, "is missing")
            return None
        value = self._left.pop(key)
        # To Python a bool is an int; to a person `port = true` is a mistake.
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.wrong(key, f"must be {word}, not {value!r}"[:300])
        return value

    def text(self, key: str) -> str:
        """A text that must be there and not be empty."""
        return self._checked_text(key, self._take(key, str, "a text", needed=True) or "")

    def maybe_text(self, key: str) -> str | None:
        """A text, or None when the key is not there."""
        value = self._take(key, str, "a text", needed=False)
        return None if value is None else self._checked_text(key, value)

    def _checked_text(self, key: str, value: str) -> str:
        if not value.strip() or not value.isprintable():
            raise self.wrong(key, f"must not be empty or hold control characters: {value[:80]!r}")
        return value

    def one_of(self, key: str, words: Collection[str]) -> str:
        """One of `words`."""
        value = self.text(key)
        if value not in words:
            raise self.wrong(key, f"must be one of {', '.join(sorted(words))}, not {value!r}")
        return value

    def path(self, key: str) -> Path:
        """A path; a relative one counts from the folder of the configuration file."""
        return self._absolute(self.text(key))

    def maybe_path(self, key: str) -> Path | None:
        """A path, or None when the key is not there."""
        value = self.maybe_text(key)
        return None if value is None else self._absolute(value)

    def paths(self, key: str) -> tuple[Path, ...]:
        """A list of at least one path."""
        found = self._take(key, list, "a list of paths", needed=True) or []
        if not found or not all(isinstance(one, str) and one for one in found):
            raise self.wrong(key, "must be a list of at least one path")
        return tuple(self._absolute(one) for one in found)

    def maybe_words(self, key: str) -> tuple[str, ...] | None:
        """A program and its arguments, or None when the key is not there."""
        found = self._take(key, list, "a list of texts", needed=False)
        if found is None:
            return None
        if not found or not all(isinstance(one, str) and one and one.isprintable() for one in found):
            raise self.wrong(key, "must be a program and its arguments, each a text")
        return tuple(found)

    def _absolute(self, value: str) -> Path:
        return self.file.absolute().parent / Path(value).expanduser()

    def whole(self, key: str, least: int, most: int, default: int | None = None) -> int:
        """A whole number from `least` to `most`; it must be there unless there is a default."""
        value = self._take(key, int, "a whole number", needed=default is None)
        if value is None:
            assert default is not None
            return default
        if not least <= value <= most:
            raise self.wrong(key, f"must be {least} to {most}, not {value}")
        return value

    def maybe_whole(self, key: str, least: int, most: int) -> int | None:
        """A whole number, or None when the key is not there."""
        return self.whole(key, least, most) if self.has(key) else None

    def number(self, key: str, least: float, most: float, default: float) -> float:
        """A number from `least` to `most`, whole or not."""
        if key not in self._left:
            return default
        value = self._left.pop(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.wrong(key, f"must be a number, not {value!r}"[:300])
        if not least <= value <= most:
            raise self.wrong(key, f"must be {least:g} to {most:g}, not {value:g}")
        return float(value)

    def maybe_number(self, key: str, least: float, most: float) -> float | None:
        """A number, or None when the key is not there."""
        return self.number(key, least, most, 0.0) if self.has(key) else None

    def wholes(self, key: str, least: int, most: int, many: int) -> tuple[int, ...]:
        """A list of 1 to `many` different whole numbers from `least` to `most`."""
        found = self._take(key, list, "a list of whole numbers", needed=True) or []
        if not all(
            isinstance(one, int) and not isinstance(one, bool) and least <= one <= most for one in found
        ):
            raise self.wrong(key, f"must be a list of whole numbers from {least} to {most}")
        if not 1 <= len(set(found)) == len(found) <= many:
            raise self.wrong(key, f"must be a list of 1 to {many} different numbers")
        return tuple(found)

    def maybe_yes(self, key: str) -> bool | None:
        """A yes (true) or no (false), or None when the key is not there."""
        return self._take(key, bool, "true or false", needed=False)

    def yes(self, key: str, *, default: bool) -> bool:
        """A yes (true) or no (false)."""
        value = self.maybe_yes(key)
        return default if value is None else value

    def section(self, key: str) -> Section:
        """A table that must be there."""
        table = self._take(key, dict, "a section", needed=True)
        return Section(self.file, self.key(key), table or {})

    def maybe_section(self, key: str) -> Section:
        """A table; one that is not there is like an empty one."""
        return Section(self.file, self.key(key), self._take(key, dict, "a section", needed=False) or {})

    def sections(self, key: str, most: int) -> list[Section]:
        """From 1 to `most` tables, `[[key]]` each."""
        tables = self._take(key, list, f"sections [[{key}]]", needed=True) or []
        if not 1 <= len(tables) <= most or not all(isinstance(one, dict) for one in tables):
            raise self.wrong(key, f"must be 1 to {most} sections [[{key}]]")
        return [Section(self.file, f"{self.key(key)}[{n}]", one) for n, one in enumerate(tables)]

    def names(self) -> tuple[str, ...]:
        """The keys that nobody has read yet."""
        return tuple(self._left)

    def rest(self) -> dict[str, Any]:
        """All keys that are left, taken as they are."""
        left, self._left = self._left, {}
        return left

    def done(self) -> None:
        """Raise ConfigError for the first key that nobody has read."""
        for key in self._left:
            raise self.wrong(key, "there is no such key")
