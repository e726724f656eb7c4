"""The parts of the configuration about what travels: downloads with their links, and the queues."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from edge_agent.addresses import is_loopback
from edge_agent.delivery.budget import BudgetLimits
from edge_agent.delivery.links import ANY_WAY, Way
from edge_agent.sections import Section
from edge_agent.store.queue_bounds import QueueLimits

MIB = 1024 * 1024
MOST_MIB = 1024 * 1024
MOST_WAYS = 8
MOST_CREDENTIALS_BYTES = 1024


@dataclass(frozen=True, kw_only=True)
class Proxy:
    """The one proxy that images come through; the password comes from a 0600 file, never from the URL."""

    url: str
    user: str | None = None
    password: str | None = field(default=None, repr=False)

    def for_httpx(self) -> httpx.Proxy:
        """As httpx takes it."""
        auth = (self.user, self.password or "") if self.user is not None else None
        return httpx.Proxy(self.url, auth=auth)


@dataclass(frozen=True, kw_only=True)
class Downloads:
    """Bounds of the image folder (bytes), of a silent link (seconds), and of what links carry (bytes)."""

    most_stored_bytes: int
    free_margin_bytes: int
    idle_timeout_s: float
    job_bytes: int | None = None
    day_bytes: int | None = None
    bytes_per_s: float | None = None
    proxy: Proxy | None = None
    local_folders: tuple[Path, ...] = ()
    ways: tuple[Way, ...] = (ANY_WAY,)

    @property
    def budget(self) -> BudgetLimits:
        """What a job, a day and each link may cost."""
        return BudgetLimits(
            job_bytes=self.job_bytes,
            day_bytes=self.day_bytes,
            links={way.name: way.day_bytes for way in self.ways},
        )


def read_downloads(section: Section) -> Downloads:
    """The section [downloads]. Raises ConfigError that names the key."""
    rate_kib = section.maybe_whole("most_kib_per_s", 1, 10 * MIB)
    downloads = Downloads(
        most_stored_bytes=section.whole("most_stored_mib", 64, MOST_MIB, 512) * MIB,
        free_margin_bytes=section.whole("free_margin_mib", 1, MOST_MIB, 16) * MIB,
        idle_timeout_s=section.number("idle_timeout_s", 1, 3600, 60),
        job_bytes=_mib(section, "most_mib_per_job"),
        day_bytes=_mib(section, "most_mib_per_day"),
        bytes_per_s=None if rate_kib is None else rate_kib * 1024.0,
        proxy=_proxy(section),
        local_folders=section.paths("local_folders") if section.has("local_folders") else (),
        ways=_ways(section),
    )
    section.done()
    return downloads


def read_queue(section: Section) -> QueueLimits:
    """The section [queue]. Raises ConfigError that names the key."""
    usual = QueueLimits()
    limits = QueueLimits(
        most_statuses=section.whole("most_statuses", 100, 1_000_000, usual.most_statuses),
        most_status_bytes=section.whole("most_status_mib", 1, 1024, usual.most_status_bytes // MIB) * MIB,
        most_samples=section.whole("most_samples", 100, 10_000_000, usual.most_samples),
        most_telemetry_bytes=section.whole("most_telemetry_mib", 1, 1024, usual.most_telemetry_bytes // MIB)
        * MIB,
        write_every_s=section.number("write_every_s", 1, 600, usual.write_every_s),
    )
    section.done()
    return limits


def _mib(section: Section, key: str) -> int | None:
    value = section.maybe_whole(key, 0, MOST_MIB)
    return None if value is None else value * MIB


def _ways(section: Section) -> tuple[Way, ...]:
    if not section.has("link"):
        return (ANY_WAY,)
    ways: list[Way] = []
    for one in section.sections("link", MOST_WAYS):
        way = Way(
            name=one.text("name"),
            interface=one.maybe_text("interface"),
            address=one.maybe_text("address"),
            day_bytes=_mib(one, "most_mib_per_day"),
            image_bytes=_mib(one, "most_mib_per_image"),
        )
        if way.name in [other.name for other in ways]:
            raise one.wrong("name", f"{way.name!r} is there twice")
        if way.interface is not None and len(way.interface.encode()) > 15:
            raise one.wrong("interface", "an interface's name has at most 15 bytes")
        one.done()
        ways.append(way)
    return tuple(ways)


def _proxy(section: Section) -> Proxy | None:
    secret = section.maybe_path("proxy_credentials_file")
    url = section.maybe_text("proxy")
    if url is None:
        if secret is not None:
            raise section.wrong("proxy_credentials_file", "there is no proxy that it could be for")
        return None
    try:
        read = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise section.wrong("proxy", str(error)) from error
    if read.scheme not in ("http", "https") or not read.host or read.userinfo:
        raise section.wrong("proxy", "must be http(s)://HOST:PORT, without a password")
    if secret is None:
        return Proxy(url=url)
    if read.scheme == "http" and not is_loopback(read.host):
        raise section.wrong("proxy", "a password is told to a proxy over https only")
    try:
        with secret.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(MOST_CREDENTIALS_BYTES).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise section.wrong("proxy_credentials_file", f"{secret} can't be read: {error}") from error
    user, colon, password = text.partition(":")
    if stat.S_IMODE(mode) & 0o077 or not colon or not user:
        raise section.wrong("proxy_credentials_file", "must hold USER:PASSWORD and be readable by us alone")
    return Proxy(url=url, user=user, password=password)
