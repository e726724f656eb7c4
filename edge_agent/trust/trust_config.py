"""The part of `[trust]` that switches the Uptane trust chain on: two root files, and the time policy.

Without `director_root` and `image_root` nothing of it is used. One without the other refuses to start:
half of a cross-check is none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

from edge_agent.clock import BUILT_AT
from edge_agent.safe_files import read_bounded
from edge_agent.sections import Section
from firmware_flashers.jetson_settings import JetsonSettings
from firmware_flashers.registry import Component
from shared.trust.document import TrustError
from shared.trust.uptane.roles import MOST_ROOT_BYTES
from shared.trust.uptane.store import provision
from shared.trust.uptane.time_policy import MOST_GRACE, TimePolicy

MOST_SERIAL_CHARS = 64
GATEWAY = "gateway"
"""Kind and hardware that the gateway reports of itself where it is no component; its serial by default."""

_KEYS = ("time_url", "token_when_behind", "clock_tolerance_s", "grace_days", "gateway_serial", "serials")


@dataclass(frozen=True, kw_only=True)
class Roots:
    """The two roots that a new truck trusts, byte for byte."""

    director: bytes
    image: bytes


@dataclass(frozen=True, kw_only=True)
class UptaneTrust:
    """The trust chain's settings. `serials` by component: those that are named; see `serial_of`.

    `time_url` answers time questions over plain HTTP, since TLS fails on wrong dates; None: nobody does.
    """

    roots: Roots
    policy: TimePolicy
    time_url: str | None = None
    gateway_serial: str = GATEWAY
    serials: Mapping[str, str]

    def serial_of(self, component: str) -> str:
        """The serial by which the office's inventory knows a component: its name unless one is configured."""
        return self.serials.get(component, component)


def read_uptane(section: Section) -> UptaneTrust | None:
    """The trust chain's keys of [trust]; None when neither root is named. Raises ConfigError."""
    director, image = section.maybe_path("director_root"), section.maybe_path("image_root")
    if director is None and image is None:
        for key in _KEYS:
            if section.has(key):
                raise section.wrong(key, "is of the trust chain: name director_root and image_root, too")
        return None
    if director is None or image is None:
        missing = "director_root" if director is None else "image_root"
        raise section.wrong(missing, "is missing: the trust chain needs both root files, or neither")
    roots = Roots(
        director=_root(section, "director_root", director), image=_root(section, "image_root", image)
    )
    try:
        provision(director_root=roots.director, image_root=roots.image)
    except TrustError as error:
        key = "image_root" if error.message.startswith("image/") else "director_root"
        raise section.wrong(key, f"{error.message}. {error.advice}") from error
    time_url = section.maybe_text("time_url")
    if time_url is not None and (urlsplit(time_url).scheme != "http" or not urlsplit(time_url).hostname):
        raise section.wrong("time_url", "must be an http:// address: TLS would fail where it is needed")
    return UptaneTrust(
        roots=roots,
        policy=TimePolicy(
            built_at=BUILT_AT,
            tolerance=timedelta(seconds=section.number("clock_tolerance_s", 0, 86400, 600)),
            grace=timedelta(days=section.number("grace_days", 0, MOST_GRACE.days, 0)),
            token_when_behind=section.yes("token_when_behind", default=False),
        ),
        time_url=time_url,
        gateway_serial=_serial(section, "gateway_serial", section.maybe_text("gateway_serial") or GATEWAY),
        serials=_serials(section.maybe_section("serials")),
    )


def check_serials(top: Section, trust: UptaneTrust, components: Sequence[Component]) -> None:
    """Raise ConfigError unless the serials are of components, and each ECU's its own."""
    names = [one.component for one in components]
    for component in trust.serials:
        if component not in names:
            raise top.wrong(f"trust.serials.{component}", "there is no such component")
    taken: dict[str, str] = {}
    if not any(isinstance(one, JetsonSettings) for one in components):
        taken[trust.gateway_serial] = GATEWAY
    for name in names:
        serial = trust.serial_of(name)
        if serial in taken:
            raise top.wrong(f"trust.serials.{name}", f"{taken[serial]} has the serial {serial!r}, too")
        taken[serial] = name


def _root(section: Section, key: str, path: Path) -> bytes:
    try:
        return read_bounded(path, MOST_ROOT_BYTES)
    except OSError as error:
        raise section.wrong(key, f"{path} can't be read: {error.strerror}") from error
    except ValueError as error:
        raise section.wrong(key, str(error)) from error


def _serials(section: Section) -> dict[str, str]:
    serials = {name: _serial(section, name, section.text(name)) for name in section.names()}
    section.done()
    return serials


def _serial(section: Section, key: str, serial: str) -> str:
    if len(serial) > MOST_SERIAL_CHARS:
        raise section.wrong(key, f"a serial has at most {MOST_SERIAL_CHARS} characters")
    return serial
