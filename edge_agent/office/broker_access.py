"""How this truck connects to its broker: the address, and TLS with the certificate that is in force now."""

from __future__ import annotations

import ssl
from functools import partial

from edge_agent.addresses import tls_context
from edge_agent.config import AgentConfig
from edge_agent.credentials import Enrolled, who_we_are
from edge_agent.office.certificates import show_pair
from edge_agent.office.mqtt_connection import Broker
from edge_agent.trust.trusted_time import TrustedTime, tls_by


def broker_of(config: AgentConfig, us: Enrolled, time: TrustedTime | None = None) -> Broker:
    """The broker; with `time`, the dates of its certificate are judged by what was proved.

    Raises ConfigError where the connection would be in the clear and must not be.
    """
    office = config.office
    host = office.mqtt_host or us.mqtt_host
    _wants_tls(config, us)
    return Broker(
        host=host,
        port=office.mqtt_port or us.mqtt_port,
        device_id=us.device_id,
        password=us.mqtt_password,
        tls=partial(broker_context, config, time),
    )


def broker_context(config: AgentConfig, time: TrustedTime | None = None) -> ssl.SSLContext | None:
    """How the next connection is made, by the credentials on the disk; None: in the clear. Blocks.

    Raises ConfigError, NotEnrolled and BadCertificate.
    """
    us = who_we_are(config)
    if not _wants_tls(config, us):
        return None
    ca_file = config.office.ca_file
    context = tls_context(ca_file, us.mqtt_ca) if time is None else tls_by(ca_file, time, us.mqtt_ca)
    if us.certificate:
        show_pair(context, us.client_key, us.certificate + us.ca_chain)
    return context


def _wants_tls(config: AgentConfig, us: Enrolled) -> bool:
    """What the configuration says; else TLS where the office says so, or the broker is beyond loopback."""
    wanted = config.office.wants_tls(config.office.mqtt_host or us.mqtt_host)
    return wanted if config.office.mqtt_tls is not None else wanted or us.mqtt_tls
