"""Who this truck is to its office, and the secrets that prove it: `DATA/credentials.json`, 0600, one file.

A certificate and its private key stand in it together with all the rest, and it is replaced whole: so a
crash leaves the old pair or the new one, never half of each. `enrolled` is what is in force, `pending` what
an enrolment asked for last, `renewing` the key of a certificate that is asked for.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from edge_agent.config import AgentConfig
from edge_agent.safe_files import make_folder, write_whole
from shared.certificates import MOST_CHAIN_BYTES
from shared.errors import ConfigError, OtaError

MOST_CREDENTIALS_BYTES = 128 * 1024
LOCKED_FOR_S = 10.0
LOOK_EVERY_S = 0.02

Secret = Annotated[str, Meta(min_length=32, max_length=200)]
KeyPem = Annotated[str, Meta(max_length=2000)]
CertificatePem = Annotated[str, Meta(max_length=8000)]
ChainPem = Annotated[str, Meta(max_length=MOST_CHAIN_BYTES)]


class NotEnrolled(OtaError):
    """The truck has no credentials yet."""

    code = "not_enrolled"
    advice = "Run `quarry agent enroll --config FILE --token TOKEN` with a token of the office."


class Enrolled(msgspec.Struct, frozen=True, kw_only=True):
    """Who this truck is to its office, and what it shows the broker.

    `mqtt_tls`: the broker speaks TLS only; `mqtt_ca` whom to believe it by (PEM), empty: as the
    configuration says. `certificate` (PEM) is for `client_key`; both are empty where the office gave none.
    """

    device_id: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$", max_length=64)]
    mqtt_host: Annotated[str, Meta(min_length=1, max_length=253)]
    mqtt_port: Annotated[int, Meta(ge=1, le=65535)]
    http_token: Secret
    mqtt_password: Secret
    mqtt_tls: bool = False
    mqtt_ca: ChainPem = ""
    client_key: KeyPem = ""
    certificate: CertificatePem = ""
    ca_chain: ChainPem = ""

    def __repr__(self) -> str:
        return f"Enrolled(device_id={self.device_id!r}, mqtt={self.mqtt_host}:{self.mqtt_port})"


class Pending(msgspec.Struct, frozen=True, kw_only=True):
    """What the office was asked: secrets and key, and the SHA-256 of the token that they went with."""

    token_sha256: str
    http_token: str
    mqtt_password: str
    client_key: KeyPem = ""

    def __repr__(self) -> str:
        return "Pending(...)"


class Renewing(msgspec.Struct, frozen=True, kw_only=True):
    """The key of the next certificate, made and kept before the office hears of it."""

    client_key: KeyPem

    def __repr__(self) -> str:
        return "Renewing(...)"


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """The whole file."""

    enrolled: Enrolled | None = None
    pending: Pending | None = None
    renewing: Renewing | None = None


def credentials_path(data_dir: Path) -> Path:
    """Where a truck keeps its credentials."""
    return data_dir / "credentials.json"


def read_credentials(data_dir: Path) -> Credentials:
    """What is on the disk; empty when there is nothing. Blocks.

    Raises ConfigError when the file is not ours to trust: unreadable, or readable by others.
    """
    path = credentials_path(data_dir)
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise ConfigError(
                    f"{path} can be read by others", advice=f"Run chmod 600 {path}, or enrol afresh."
                )
            return msgspec.json.decode(file.read(MOST_CREDENTIALS_BYTES), type=Credentials)
    except FileNotFoundError:
        return Credentials()
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} can't be read: {error}", advice="Remove the file and enrol this truck afresh."
        ) from error


def write_credentials(data_dir: Path, credentials: Credentials) -> None:
    """Replace the file in one step, safe on the disk when this returns. Blocks. Raises OSError."""
    make_folder(data_dir)
    raw = msgspec.json.format(msgspec.json.encode(credentials), indent=1) + b"\n"
    write_whole(credentials_path(data_dir), raw)


def change_credentials(data_dir: Path, change: Callable[[Credentials], Credentials]) -> Credentials:
    """Read, change and write, while nobody else does: an enrolment may meet a renewal. Blocks.

    Raises what `change` raises (nothing is written then), ConfigError, and OSError.
    """
    make_folder(data_dir)
    with _locked(data_dir / "credentials.lock"):
        before = read_credentials(data_dir)
        after = change(before)
        if after != before:
            write_credentials(data_dir, after)
        return after


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        until = time.monotonic() + LOCKED_FOR_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > until:
                    raise ConfigError(
                        f"another program holds {path}", advice="Let it end, then run this again."
                    ) from error
                time.sleep(LOOK_EVERY_S)
        yield
    finally:
        os.close(descriptor)


def who_we_are(config: AgentConfig) -> Enrolled:
    """The enrolment in force. Blocks.

    Raises NotEnrolled, or ConfigError when the configuration says that this is another truck.
    """
    enrolled = read_credentials(config.data_dir).enrolled
    if enrolled is None:
        raise NotEnrolled(f"this truck is not enrolled: {credentials_path(config.data_dir)} says nothing")
    if config.device_id not in (None, enrolled.device_id):
        raise ConfigError(
            f"{config.source}: device_id is {config.device_id}, the office enrolled {enrolled.device_id}"
        )
    return enrolled
