"""The broker's own certificate and the office's way to it, where the broker speaks TLS.

A given certificate stays where the operator has it. Else the authority makes one, in one file with its key
(`DATA/broker.pem`, 0600), so that a reload never finds a key and a certificate of two different times; it is
made anew when half of its life is over. The broker reads both again with each change of its accounts.
"""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from control_plane.access.authority import Authority
from control_plane.access.service import AccessService
from control_plane.config import OfficeConfig
from control_plane.embedded.nats import BrokerTls
from control_plane.secret_files import create_secret
from shared.certificates import MOST_CHAIN_BYTES
from shared.errors import ConfigError
from shared.logs import get_log

log = get_log("control_plane.access")

BROKER_LIFE = timedelta(days=180)
OFFICE_LIFE = timedelta(days=1)
"""It is shown at once, and another one is made for the next connection."""
LOOK_EVERY_S = 6 * 3600.0


class BrokerCertificates:
    """Files of the TLS side; all of it blocks. `trucks_ca` is whom trucks believe the broker by, PEM."""

    def __init__(
        self,
        config: OfficeConfig,
        authority: Authority,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._authority = authority
        self._clock = clock
        self._given = bool(config.mqtt_certificate)
        self._own = config.data / "broker.pem"
        self._clients_ca = config.data / "broker-clients-ca.pem"
        self._office = config.data / "office-client.pem"
        asked = config.mqtt_client_certificates == "required"
        self.tls = BrokerTls(
            certificate=Path(config.mqtt_certificate) if self._given else self._own,
            key=Path(config.mqtt_certificate_key) if self._given else self._own,
            clients_ca=self._clients_ca if asked else None,
        )
        host = ipaddress.ip_address(config.mqtt_host)
        self._hosts = {config.mqtt_public_host or str(host), "localhost", "127.0.0.1", "::1"}
        self.trucks_ca = "" if self._given else authority.chain
        self._seen = b""

    def prepare(self) -> bool:
        """Make what is missing or old; whether the broker has to read its files again.

        Raises ConfigError for a given certificate that can't be used.
        """
        # Whom clients' certificates must be signed by: the signer itself, none above it.
        create_secret(self._clients_ca, _first(self._authority.chain.encode()), replace=True)
        if not self._given:
            self._make_when_due()
        raw = self._certificate()
        changed, self._seen = raw != self._seen, raw
        return changed

    def office_context(self) -> ssl.SSLContext:
        """How the office connects: the broker must have this very certificate, whatever its names say."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.load_verify_locations(cadata=_first(self._certificate()).decode())
        if self.tls.clients_ca is not None:
            pair = self._authority.for_office(now=self._clock(), life=OFFICE_LIFE)
            create_secret(self._office, pair.key + pair.certificate, replace=True)
            context.load_cert_chain(self._office)
        return context

    def _make_when_due(self) -> None:
        now = self._clock()
        try:
            old = x509.load_pem_x509_certificate(_first(self._own.read_bytes()))
            names = old.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            said = {*names.get_values_for_type(x509.DNSName)}
            said |= {str(one) for one in names.get_values_for_type(x509.IPAddress)}
            signed = _first(self._authority.chain.encode())
            old.verify_directly_issued_by(x509.load_pem_x509_certificate(signed))
            if said == self._hosts and now < old.not_valid_after_utc - BROKER_LIFE / 2:
                return
        except (OSError, ValueError, TypeError, x509.ExtensionNotFound, InvalidSignature) as error:
            log.info("access.broker_certificate_due", why=str(error) or type(error).__name__)
        pair = self._authority.for_broker(sorted(self._hosts), now=now, life=BROKER_LIFE)
        create_secret(self._own, pair.key + pair.certificate, replace=True)
        log.info("access.broker_certificate_made", not_after=pair.not_after.isoformat())

    def _certificate(self) -> bytes:
        try:
            with self.tls.certificate.open("rb") as file:
                raw = file.read(MOST_CHAIN_BYTES + 1)
            x509.load_pem_x509_certificate(_first(raw))
        except (OSError, ValueError) as error:
            raise ConfigError(f"mqtt_certificate: {self.tls.certificate} can't be used: {error}") from error
        return raw


class BrokerWatch:
    """Keeps the broker's certificate fresh: a step of a loop."""

    def __init__(self, certificates: BrokerCertificates, access: AccessService) -> None:
        self._certificates = certificates
        self._access = access

    async def step(self) -> float:
        """Have the broker read its files again when they changed. Raises Unavailable."""
        if await asyncio.to_thread(self._certificates.prepare):
            await self._access.load_accounts()
        return LOOK_EVERY_S


def own_host(host: str) -> str:
    """Where a process of this machine finds a server that listens on `host`."""
    address = ipaddress.ip_address(host)
    if not address.is_unspecified:
        return host
    return "127.0.0.1" if address.version == 4 else "::1"


def _first(pem: bytes) -> bytes:
    """The first certificate of a file, which may hold a key before it. Raises ValueError."""
    begin, end = pem.index(b"-----BEGIN CERTIFICATE-----"), b"-----END CERTIFICATE-----\n"
    return pem[begin : pem.index(end, begin) + len(end)]
