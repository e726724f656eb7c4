"""Where metadata files come from: the office over the truck's links, or a USB bundle's folder.

What comes is believed in nothing; here it is only bounded. One byte more than wanted is taken, so that the
verification sees that there was more, and then the connection is ended. A file has a time limit, by its
size and the lowest rate, beside the one between two bytes: who trickles bytes is cut off by name.
"""

from __future__ import annotations

import os
import ssl
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

import httpx

from edge_agent.addresses import check_safe
from edge_agent.delivery.links import ANY_WAY, Way, client_of
from edge_agent.threads import finish_in_thread
from edge_agent.trust.trusted_time import fails_on_dates
from shared.since_310 import timeout
from shared.trust.uptane.errors import Attack, MetadataRefused, Unreadable
from shared.trust.uptane.steps import Wanted


class OfficeUnreached(MetadataRefused):
    """Nobody who could have the metadata was reached, or no answer of an office came."""

    code = "office_unreached"
    attack = Attack.DROP_REQUEST
    retryable = True
    advice = "Nothing to do: it is tried again. Look at the link if it stays so."


class WrongDates(OfficeUnreached):
    """TLS failed on the dates of a certificate alone: this truck's clock may be wrong."""

    code = "tls_dates"
    attack = Attack.FREEZE
    advice = "Set trust.time_url, or the truck's clock; if that is right, renew the office's certificate."


class LinkCut(MetadataRefused):
    """An answer began and did not come to its end."""

    code = "metadata_link_cut"
    attack = Attack.DROP_REQUEST
    retryable = True
    advice = "Nothing to do: it is tried again. If it repeats, somebody may cut the link on purpose."


class SlowRetrieval(MetadataRefused):
    """An answer came so slowly that it would keep the truck from anything newer."""

    code = "slow_retrieval"
    attack = Attack.SLOW_RETRIEVAL
    retryable = True
    advice = "It is tried again. If the link is not that slow, look who answers in the office's place."


class Source(Protocol):
    """One way to metadata; bytes, or None where there is no such file."""

    async def fetch(self, wanted: Wanted) -> bytes | None:
        """Raises MetadataRefused of this module where nothing can be said about the file."""
        ...


@dataclass(frozen=True, kw_only=True)
class FetchLimits:
    """Bounds of one file, in seconds and bytes per second."""

    connect_s: float = 15.0
    idle_s: float = 30.0
    file_s: float = 60.0
    least_bytes_per_s: float = 512.0

    def whole_s(self, most_bytes: int) -> float:
        """How long a file of so many bytes may take."""
        return self.file_s + most_bytes / self.least_bytes_per_s


@dataclass(frozen=True, kw_only=True)
class OfficeSource:
    """The office: `/repo/director/{device_id}/...` and `/repo/image/...` below `base`, by our token.

    `tls` is asked at each file: a time that was proved meanwhile changes what certificates are good.
    """

    base: str
    device_id: str
    token: str
    tls: Callable[[], ssl.SSLContext | bool]
    allow_plain: bool = False
    ways: Sequence[Way] = (ANY_WAY,)
    proxy: httpx.Proxy | None = None
    limits: FetchLimits = FetchLimits()

    def address(self, wanted: Wanted) -> str:
        """Where a file is."""
        whose = f"director/{self.device_id}" if wanted.repository == "director" else "image"
        return f"{self.base.rstrip('/')}/repo/{whose}/{quote('/'.join(_parts(wanted)))}"

    async def fetch(self, wanted: Wanted) -> bytes | None:
        """At most one byte more than wanted. Raises OfficeUnreached, WrongDates, LinkCut, SlowRetrieval."""
        where = f"{wanted.repository}/{wanted.name}"
        address = check_safe(self.address(wanted), allow_plain=self.allow_plain, what="office.url")
        tls = await finish_in_thread(self.tls)
        waits = httpx.Timeout(self.limits.connect_s, read=self.limits.idle_s)
        lost: list[str] = []
        for way in self.ways:
            if not way.is_up():
                lost.append(f"{way.name} is down")
                continue
            async with client_of(way, tls=tls, timeout=waits, proxy=self.proxy) as client:
                try:
                    async with timeout(self.limits.whole_s(wanted.most_bytes)):
                        return await self._receive(client, address, wanted, where)
                except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                    if fails_on_dates(error):
                        raise WrongDates(where, str(error)) from error
                    lost.append(f"{way.name}: {type(error).__name__}: {error}")
                except (httpx.ReadTimeout, TimeoutError) as error:
                    raise SlowRetrieval(where, "the answer did not come in the time it may take") from error
                except (httpx.HTTPError, httpx.InvalidURL) as error:
                    raise LinkCut(where, f"{type(error).__name__}: {error}") from error
        raise OfficeUnreached(where, "; ".join(lost) or "there is no link")

    async def _receive(
        self, client: httpx.AsyncClient, address: httpx.URL, wanted: Wanted, where: str
    ) -> bytes | None:
        headers = {"Accept-Encoding": "identity", "Authorization": f"Bearer {self.token}"}
        raw = bytearray()
        async with client.stream("GET", address, headers=headers) as answer:
            if answer.status_code in (404, 410):
                return None
            if answer.status_code != 200:
                raise OfficeUnreached(where, f"the office answered {answer.status_code}")
            if answer.headers.get("content-type", "").startswith("text/html"):
                raise OfficeUnreached(where, "a web page came: something on the way wants a log-in")
            if answer.headers.get("content-encoding", "identity") != "identity":
                raise OfficeUnreached(where, "something on the way packed the answer")
            async for chunk in answer.aiter_raw():
                raw += chunk
                if len(raw) > wanted.most_bytes:
                    break
        return bytes(raw[: wanted.most_bytes + 1])


@dataclass(frozen=True, kw_only=True)
class BundleSource:
    """A USB bundle: the folders `director` and `image` below `folder`, with the names that are served."""

    folder: Path

    async def fetch(self, wanted: Wanted) -> bytes | None:
        """At most one byte more than wanted. Raises LinkCut for a stick that can't be read."""
        return await finish_in_thread(self.read, wanted)

    def read(self, wanted: Wanted) -> bytes | None:
        """The same; blocks."""
        where = f"{wanted.repository}/{wanted.name}"
        path = self.folder.joinpath(wanted.repository, *_parts(wanted))
        try:
            # A link may lead anywhere, and a pipe would block us.
            if not path.resolve().is_relative_to(self.folder.resolve()):
                raise Unreadable(where, "leads out of the bundle")
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            with os.fdopen(descriptor, "rb") as file:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise Unreadable(where, "is no regular file")
                return file.read(wanted.most_bytes + 1)
        except FileNotFoundError:
            return None
        except (OSError, RuntimeError) as error:
            raise LinkCut(where, f"the bundle can't be read: {error}") from error


def _parts(wanted: Wanted) -> list[str]:
    """A name's parts. Raises Unreadable for one that would leave its folder."""
    parts = wanted.name.split("/")
    if any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts):
        raise Unreadable(f"{wanted.repository}/{wanted.name[:200]!r}", "is no name of a file")
    return parts
