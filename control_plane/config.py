"""The office's configuration: one frozen object, checked when it is made.

Where a value comes from, the later wins: the default, a TOML file, the environment (`QUARRY_` and the
key in capitals), the command line. An unknown key or a bad value refuses to start and names the key.
There are no secrets in it: those are made at first start and live in 0600 files in the data folder.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import re
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
CLIENT_CERTIFICATES = ("off", "required")
_HOST_NAME = re.compile(r"([A-Za-z0-9.:-]{1,253})?")
MOST_FILE_BYTES = 64 * 1024


@dataclass(frozen=True, kw_only=True)
class OfficeConfig:
    """How one office process runs. Times are in seconds; port 0 means any that is free."""

    data: Path
    http_host: str = "127.0.0.1"
    http_port: int = 8080
    mqtt_host: str = "127.0.0.1"
    mqtt_port: int = 1883
    # TLS on the broker's side, and whether it asks trucks for client certificates ("off" or "required").
    mqtt_tls: bool = False
    mqtt_client_certificates: str = "off"
    # The name by which trucks reach the broker; its certificate and key where a given one is used (PEM).
    mqtt_public_host: str = ""
    mqtt_certificate: str = ""
    mqtt_certificate_key: str = ""
    # Who signs trucks' certificates, where it is not an authority of this office's own (PEM).
    ca_certificate: str = ""
    ca_key: str = ""
    # How long a truck's certificate is good, and for how long after that it may still be renewed.
    certificate_life_s: float = 90 * 24 * 3600.0
    certificate_grace_s: float = 90 * 24 * 3600.0
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
    # A 0600 file with the key of the director's role `time`: trucks may ask what time it is. Empty: not.
    director_time_key: str = ""
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
        _check_host("http_host", self.http_host, beyond_loopback=False)
        _check_host("mqtt_host", self.mqtt_host, beyond_loopback=self.mqtt_tls)
        self._check_certificates()
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
        if self.director_time_key and not self.director:
            raise ConfigError("director_time_key: it is used with director = true only")
        if self.kill_at and self.kill_at not in KILL_POINTS:
            raise ConfigError(f"kill_at {self.kill_at!r} is not one of {', '.join(sorted(KILL_POINTS))}")

    def _check_certificates(self) -> None:
        if self.mqtt_client_certificates not in CLIENT_CERTIFICATES:
            raise ConfigError(
                f"mqtt_client_certificates {self.mqtt_client_certificates!r} is not one of"
                f" {', '.join(CLIENT_CERTIFICATES)}"
            )
        if self.mqtt_client_certificates == "required" and not self.mqtt_tls:
            raise ConfigError("mqtt_client_certificates: certificates need mqtt_tls = true")
        for one, other in (("mqtt_certificate", "mqtt_certificate_key"), ("ca_certificate", "ca_key")):
            if bool(getattr(self, one)) != bool(getattr(self, other)):
                raise ConfigError(f"{one} and {other} go together: one of them is missing")
        if self.mqtt_certificate and not self.mqtt_tls:
            raise ConfigError("mqtt_certificate: it is used with mqtt_tls = true only")
        if not _HOST_NAME.fullmatch(self.mqtt_public_host):
            raise ConfigError(f"mqtt_public_host {self.mqtt_public_host!r} is no name of a host")
        if ipaddress.ip_address(self.mqtt_host).is_unspecified and not self.mqtt_public_host:
            raise ConfigError(f"mqtt_public_host is missing: trucks can't connect to {self.mqtt_host}")
        _check(self, "certificate_life_s", 3600, 825 * 24 * 3600)
        _check(self, "certificate_grace_s", 0, 3 * 365 * 24 * 3600)

    def reached(self, point: str) -> None:
        """A point where a crash would hurt most. Ends the process without a word if it is `kill_at`."""
        assert point in KILL_POINTS
        if point == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


def _check(config: OfficeConfig, key: str, least: float, most: float) -> None:
    value = getattr(config, key)
    if not least <= value <= most:
        raise ConfigError(f"{key} {value} is not {least:g} to {most:g}")


def _check_host(key: str, value: str, *, beyond_loopback: bool) -> None:
    try:
        loopback = ipaddress.ip_address(value).is_loopback
    except ValueError as error:
        raise ConfigError(f"{key} {value!r} is not an IP address of this machine") from error
    if not loopback and not beyond_loopback:
        raise ConfigError(
            f"{key} {value}: beyond loopback tokens and images would travel without TLS",
            advice="Listen on 127.0.0.1 and put a TLS proxy in front; set public_url to its address."
            " The broker may listen elsewhere with mqtt_tls = true.",
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
