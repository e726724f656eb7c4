"""The office's configuration: one frozen object, checked when it is made.

Where a value comes from, the later wins: the default, a TOML file, the environment (`QUARRY_` and the
key in capitals), the command line. An unknown key or a bad value refuses to start and names the key.
There are no secrets in it: those are made at first start and live in 0600 files in the data folder.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import signal
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import msgspec

from shared.errors import ConfigError

PREFIX = "QUARRY_"
OF_OTHERS = frozenset(
    {
        *("QUARRY_PYTHON", "QUARRY_DATA", "QUARRY_OFFICE", "QUARRY_TOKEN_FILE"),
        *("QUARRY_ENROLMENT_TOKEN", "QUARRY_KEY_PASSPHRASE"),
    }
)
"""Names with our prefix that are read elsewhere: by the launcher and by options of the command line."""
KILL_POINTS = frozenset(
    {
        "outbox.before_publish",
        "outbox.before_mark",
        "dispatcher.before_publish",
        "event_processor.before_ack",
    }
)
"""Where a test may have the process killed (SIGKILL), by `kill_at`."""
LOG_LEVELS = ("debug", "info", "warning", "error")
MOST_FILE_BYTES = 64 * 1024


@dataclass(frozen=True, kw_only=True)
class OfficeConfig:
    """How one office process runs. Times are in seconds; port 0 means any that is free."""

    data: Path
    http_host: str = "127.0.0.1"
    http_port: int = 8080
    mqtt_host: str = "127.0.0.1"
    mqtt_port: int = 1883
    # How trucks and operators reach the HTTP side, when a proxy stands in front of it.
    public_url: str = ""
    # PEM files of the public keys that sign firmware: with any, the office refuses what none signed.
    firmware_keys: tuple[str, ...] = ()
    # The director (control_plane/director): off unless wanted. Its online keys (a 0600 file of PEM), the
    # folder with every N.root.json of its repository, and the image repository's first root.
    director: bool = False
    director_key: str = ""
    director_roots: str = ""
    director_image_root: str = ""
    director_life_s: float = 24 * 3600.0
    log_level: str = "info"
    database_connections: int = 10
    # Commands to trucks: in the long run, and at once.
    send_rate_per_s: float = 20.0
    send_burst: int = 20
    resend_first_s: float = 5.0
    resend_most_s: float = 300.0
    # How long a download URL is good, and how long a truck may wait before it begins.
    url_for_s: float = 6 * 3600.0
    command_for_s: float = 24 * 3600.0
    keep_sent_events_s: float = 24 * 3600.0
    bus_most_waiting: int = 100_000
    kill_at: str = ""

    def __post_init__(self) -> None:
        """Raises ConfigError that names the key."""
        for key in ("http_host", "mqtt_host"):
            _check_host(key, getattr(self, key))
        _check(self, "http_port", 0, 65535)
        _check(self, "mqtt_port", 0, 65535)
        _check(self, "database_connections", 4, 40)
        _check(self, "send_rate_per_s", 0.01, 10_000)
        _check(self, "send_burst", 1, 10_000)
        _check(self, "resend_first_s", 0.1, 3600)
        _check(self, "resend_most_s", self.resend_first_s, 24 * 3600)
        _check(self, "url_for_s", 60, 7 * 24 * 3600)
        _check(self, "command_for_s", 60, 90 * 24 * 3600)
        _check(self, "director_life_s", 60, 30 * 24 * 3600)
        _check(self, "keep_sent_events_s", 0, 365 * 24 * 3600)
        _check(self, "bus_most_waiting", 100, 10_000_000)
        if self.log_level not in LOG_LEVELS:
            raise ConfigError(f"log_level {self.log_level!r} is not one of {', '.join(LOG_LEVELS)}")
        if self.public_url and not self.public_url.startswith(("http://", "https://")):
            raise ConfigError(f"public_url {self.public_url!r} does not begin with http:// or https://")
        for key in ("director_key", "director_roots", "director_image_root"):
            if self.director and not getattr(self, key):
                raise ConfigError(f"{key} is missing, and director is on")
        if self.kill_at and self.kill_at not in KILL_POINTS:
            raise ConfigError(f"kill_at {self.kill_at!r} is not one of {', '.join(sorted(KILL_POINTS))}")

    def reached(self, point: str) -> None:
        """A point where a crash would hurt most. Ends the process without a word if it is `kill_at`."""
        assert point in KILL_POINTS
        if point == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


def _check(config: OfficeConfig, key: str, least: float, most: float) -> None:
    value = getattr(config, key)
    if not least <= value <= most:
        raise ConfigError(f"{key} {value} is not {least:g} to {most:g}")


def _check_host(key: str, value: str) -> None:
    try:
        loopback = ipaddress.ip_address(value).is_loopback
    except ValueError as error:
        raise ConfigError(f"{key} {value!r} is not an IP address of this machine") from error
    if not loopback:
        raise ConfigError(
            f"{key} {value}: beyond loopback tokens and images would travel without TLS",
            advice="Listen on 127.0.0.1 and put a TLS proxy in front; set public_url to its address.",
        )


def load_config(
    *,
    data: Path,
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    **given: Any,
) -> OfficeConfig:
    """The configuration from all its sources; `given` is the command line, None where it says nothing.

    Raises ConfigError.
    """
    kinds = get_type_hints(OfficeConfig)
    values: dict[str, Any] = {}
    if file is not None:
        for key, value in _read_toml(file).items():
            values[key] = _typed(kinds, key, value, f"{file}", strict=True)
    for name, text in sorted((environment or {}).items()):
        if name.startswith(PREFIX) and name not in OF_OTHERS:
            values[name.removeprefix(PREFIX).lower()] = _typed(
                kinds, name.removeprefix(PREFIX).lower(), text, f"the environment's {name}", strict=False
            )
    known = {field.name for field in dataclasses.fields(OfficeConfig)}
    assert given.keys() <= known
    values.update({key: value for key, value in given.items() if value is not None})
    return OfficeConfig(data=data.absolute(), **values)


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as opened:
            raw = opened.read(MOST_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"the configuration {file} can't be read: {error.strerror}") from error
    if len(raw) > MOST_FILE_BYTES:
        raise ConfigError(f"the configuration {file} is over {MOST_FILE_BYTES} bytes")
    try:
        return tomllib.loads(raw.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the configuration {file} is not TOML: {error}") from error


def _typed(kinds: Mapping[str, Any], key: str, value: object, source: str, *, strict: bool) -> object:
    """One value as the type that its key has; the data folder is the command line's alone."""
    if key not in kinds or key == "data":
        raise ConfigError(f"{source}: there is no key {key!r}")
    try:
        converted: object = msgspec.convert(value, kinds[key], strict=strict)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: {key} is not as it must be: {error}") from error
    return converted
