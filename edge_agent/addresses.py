"""Which addresses the agent speaks to: never in the clear beyond loopback unless it was told so."""

from __future__ import annotations

import ipaddress
import ssl
from pathlib import Path

import httpx

from shared.errors import ConfigError, OtaError


class UnsafeAddress(OtaError):
    """An address that the agent does not speak to; nothing was sent."""

    code = "unsafe_address"
    advice = "Give an https address, or set office.allow_plain = true in the agent's configuration."


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine, by its name or its address; never asks a name server."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def check_safe(url: str, *, allow_plain: bool, what: str) -> httpx.URL:
    """Read an address. Raises UnsafeAddress for no http(s) address, or a plain one beyond loopback."""
    try:
        read = httpx.URL(url)
    except (httpx.InvalidURL, TypeError) as error:
        raise UnsafeAddress(f"{what} {url[:200]!r} is no address: {error}") from error
    if read.scheme not in ("http", "https") or not read.host:
        raise UnsafeAddress(f"{what} {url[:200]!r} is not an http or https address")
    if read.scheme == "http" and not allow_plain and not is_loopback(read.host):
        raise UnsafeAddress(f"{what} {read.scheme}://{read.host} is not encrypted")
    return read


def through(url: str, origin: str | None) -> str:
    """The same path and query at another scheme, host and port; unchanged without an `origin`."""
    if origin is None:
        return url
    try:
        return str(httpx.URL(origin).copy_with(raw_path=httpx.URL(url).raw_path))
    except httpx.InvalidURL as error:
        raise UnsafeAddress(f"the image's address {url[:200]!r} is no address: {error}") from error


def tls_context(ca_file: Path | None, ca_pem: str = "") -> ssl.SSLContext:
    """What servers are believed by: the configured authority alone, or else the system's. Blocks.

    `ca_pem` are authorities that the office named; with any, the system's do not count. Raises ConfigError.
    """
    try:
        if not ca_pem:
            return ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
        context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file), cadata=ca_pem)
    except (OSError, ValueError) as error:
        what = "the authority that the office named" if ca_pem else f"office.ca_file: {ca_file}"
        raise ConfigError(f"{what} holds no certificates: {error}") from error
    # The named one may be signed by another: it is believed all the same (the default from Python 3.13 on).
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context
