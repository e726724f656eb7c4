"""From a profile's `security` and a component's settings to what opens the ECU."""

from __future__ import annotations

from pathlib import Path

from firmware_flashers import security as words
from firmware_flashers.security import Secret, read_secret
from firmware_flashers.security_helper import HelperCommand
from firmware_flashers.uds_auth import ClientCertificate, read_certificate
from shared.errors import ConfigError

Credentials = Secret | HelperCommand | ClientCertificate | None
"""None opens an ECU that asks for nothing."""


def read_credentials(
    security: str,
    *,
    secret_file: Path | None = None,
    command: tuple[str, ...] | None = None,
    certificate_file: Path | None = None,
    key_file: Path | None = None,
) -> Credentials:
    """What `security` needs, from the settings `security_secret_file`, `security_command`,
    `security_certificate_file` and `security_key_file`.

    Raises ConfigError that names the setting: for one that is missing, can't be read, or is given in vain.
    """
    given = {
        "security_secret_file": secret_file,
        "security_command": command,
        "security_certificate_file": certificate_file,
        "security_key_file": key_file,
    }
    match security:
        case words.NONE:
            needed: tuple[str, ...] = ()
        case words.COMMAND:
            needed = ("security_command",)
        case words.CERTIFICATE:
            needed = ("security_certificate_file", "security_key_file")
        case _:
            needed = ("security_secret_file",)
    for key, value in given.items():
        if key in needed and value is None:
            raise ConfigError(f'{key} is missing: the profile\'s security is "{security}"')
        if key not in needed and value is not None:
            raise ConfigError(f'{key} is given, but the profile\'s security is "{security}"')
    if command is not None:
        return HelperCommand(argv=tuple(command))
    if certificate_file is not None and key_file is not None:
        return read_certificate(certificate_file, key_file)
    return None if secret_file is None else read_secret(secret_file)
