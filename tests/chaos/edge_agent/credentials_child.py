"""Kills itself at every line of the writers of the credentials, in forks, and says what was left.

Run as `python credentials_child.py FOLDER`; prints one JSON object: for an enrolment's last write and a
renewal's, what each kill left ("old", "new", or what is wrong).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import ssl
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edge_agent import credentials, safe_files
from edge_agent.credentials import (
    Credentials,
    Enrolled,
    Renewing,
    change_credentials,
    read_credentials,
    write_credentials,
)
from edge_agent.office.certificates import check_ours, new_client_key, show_pair

TRACED = {str(module.__file__) for module in (credentials, safe_files)}
MOST_LINES = 400


def killed_at(line: int, act: Callable[[], None]) -> None:
    left = line

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in TRACED:
            return None
        if event == "line":
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    act()
    os._exit(0)


def certificate(key_pem: str) -> str:
    key = serialization.load_pem_private_key(key_pem.encode(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "truck-1")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM).decode()


def enrolled(key: str, secret: str) -> Enrolled:
    return Enrolled(
        device_id="truck-1",
        mqtt_host="h",
        mqtt_port=1,
        http_token=secret * 40,
        mqtt_password=secret * 40,
        client_key=key,
        certificate=certificate(key),
    )


def judge(folder: Path, old: Credentials, new: Credentials) -> str:
    """What is in force, after the truck has used it as it does at each connection."""
    found = read_credentials(folder)
    if found.enrolled is not None:
        check_ours(found.enrolled.certificate, found.enrolled.client_key, "truck-1")
        show_pair(
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), found.enrolled.client_key, found.enrolled.certificate
        )
    path = folder / "credentials.json"
    if path.exists() and path.stat().st_mode & 0o077:
        return "open to others"
    if found == old:
        return "old"
    return "new" if found == new else f"neither: {found!r}"


def every_kill(folder: Path, old: Credentials, new: Credentials) -> list[str]:
    def act() -> None:
        change_credentials(folder, lambda _: new)

    found: list[str] = []
    for line in range(MOST_LINES):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        if old != Credentials():
            write_credentials(folder, old)
        pid = os.fork()
        if pid == 0:
            killed_at(line, act)
        _, status = os.waitpid(pid, 0)
        found.append(judge(folder, old, new))
        # Whatever was left, the next write goes through.
        act()
        if judge(folder, old, new) != "new":
            found.append("stuck")
        if not os.WIFSIGNALED(status):
            return found
    raise AssertionError("there is no end")


def main(folder: Path) -> None:
    first, second = new_client_key(), new_client_key()
    before = Credentials(enrolled=enrolled(first, "a"), renewing=Renewing(client_key=second))
    assert before.enrolled is not None
    renewed = msgspec.structs.replace(before.enrolled, client_key=second, certificate=certificate(second))
    said = {
        "enrolment": every_kill(folder / "a", Credentials(), Credentials(enrolled=enrolled(first, "a"))),
        "renewal": every_kill(folder / "b", before, Credentials(enrolled=renewed)),
        "next key": every_kill(folder / "c", msgspec.structs.replace(before, renewing=None), before),
    }
    print(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
