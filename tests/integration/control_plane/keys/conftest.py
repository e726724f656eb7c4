"""A PKCS #11 token in software, and a Vault that answers as its documentation says and nothing else."""

from __future__ import annotations

import base64
import fcntl
import http.server
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cli.can_kernel.apt import Apt, unpack
from cli.can_kernel.choice import Broken, Unavailable
from cli.can_kernel.kernel import cache_folder

PIN = "834201"
LABEL = "director"
LIBRARY = "usr/lib/softhsm/libsofthsm2.so"


@dataclass(frozen=True, kw_only=True)
class Token:
    """A SoftHSM token with EC keys 1 and 2 (P-256); `publics` are their public halves by id."""

    library: str
    publics: dict[int, str]

    def reference(self, keyid: int = 1, **more: Any) -> dict[str, Any]:
        """As the key file has it; its PIN is in `pin` beside it."""
        signer = f"hsm:{keyid}?label={LABEL}"
        said = {"signer": signer, "public_key": self.publics[keyid], "library": self.library}
        return {**said, "pin_file": "pin", **more}


@pytest.fixture(scope="session")
def softhsm(request: pytest.FixtureRequest) -> Path:
    """Where SoftHSM is: installed, or Debian's packages unpacked in this checkout's cache."""
    if importlib.util.find_spec("pkcs11") is None:
        pytest.skip("no PKCS #11 here: python-pkcs11 (the extra `pkcs11`) is not installed")
    if shutil.which("softhsm2-util") is not None and (Path("/") / LIBRARY).exists():
        return Path("/")
    folder = cache_folder(request.config.rootpath).parent.parent / "softhsm"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "whole").exists():
            try:
                for package in Apt(folder).fetch(["softhsm2", "libsofthsm2"], folder / "packages"):
                    unpack(package, folder / "root")
            except (Unavailable, Broken) as error:
                pytest.skip(f"no PKCS #11 token here: {error.message}. {error.advice}")
            (folder / "whole").touch()
    return folder / "root"


@pytest.fixture(scope="session")
def token(softhsm: Path, tmp_path_factory: pytest.TempPathFactory) -> Token:
    """Made by other processes, as a person does it with the vendor's tools."""
    folder = tmp_path_factory.mktemp("softhsm")
    (folder / "tokens").mkdir()
    (folder / "softhsm2.conf").write_text(
        f"directories.tokendir = {folder / 'tokens'}\nobjectstore.backend = file\nlog.level = ERROR\n"
    )
    os.environ["SOFTHSM2_CONF"] = str(folder / "softhsm2.conf")
    library = str(softhsm / LIBRARY)
    pins = ["--so-pin", f"so-{PIN}", "--pin", PIN]
    util = str(softhsm / "usr/bin/softhsm2-util")
    _run(util, "--init-token", "--free", "--label", LABEL, *pins, "--module", library)
    made = _run(sys.executable, "-c", _MAKE, library, LABEL, PIN)
    publics = {int(keyid): pem for keyid, pem in json.loads(made).items()}
    return Token(library=library, publics=publics)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


_MAKE = """
import json, sys
import pkcs11
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key
from pkcs11.util import ec
library, label, pin = sys.argv[1:]
lib = pkcs11.lib(library)
token = lib.get_token(token_label=label)
made = {}
with token.open(rw=True, user_pin=pin) as session:
    for keyid in (1, 2):
        params = session.create_domain_parameters(
            pkcs11.KeyType.EC, {pkcs11.Attribute.EC_PARAMS: ec.encode_named_curve_parameters("secp256r1")},
            local=True)
        public, _ = params.generate_keypair(store=True, id=bytes([keyid]), label=f"key-{keyid}")
        key = load_der_public_key(ec.encode_ec_public_key(public))
        made[keyid] = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
print(json.dumps(made))
"""


@dataclass(kw_only=True)
class Vault:
    """The transit engine of a Vault: what it was asked, and how it answers. `spoil` changes an answer."""

    url: str = ""
    token: str = "hvs.of-the-office"
    keys: dict[str, list[Any]] = field(default_factory=dict)
    asked: list[dict[str, Any]] = field(default_factory=list)
    spoil: Callable[[http.server.BaseHTTPRequestHandler], bool] = lambda _: False

    def answer(self, path: str, token: str | None, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """As the API's documentation has it; what it does not name is refused."""
        if token != self.token:
            return 403, {"errors": ["permission denied"]}
        mount, _, name = path.removeprefix("/v1/").partition("/sign/")
        if mount != "transit" or name not in self.keys:
            return 400, {"errors": ["signing key not found"]}
        known = {"input", "key_version", "hash_algorithm", "prehashed", "marshaling_algorithm"}
        if not body.keys() <= known:
            return 400, {"errors": [f"unknown fields {sorted(body.keys() - known)}"]}
        version = body.get("key_version", len(self.keys[name]))
        key, payload = self.keys[name][version - 1], base64.b64decode(body["input"], validate=True)
        if isinstance(key, Ed25519PrivateKey):
            made = key.sign(payload)
        else:
            expected = ("sha2-256", "asn1", False)
            fields = ("hash_algorithm", "marshaling_algorithm", "prehashed")
            if tuple(body.get(one) for one in fields) != expected:
                return 400, {"errors": ["not as the test expects"]}
            made = key.sign(payload, ec.ECDSA(hashes.SHA256()))
        self.asked.append(body)
        return 200, {"data": {"signature": f"vault:v{version}:{base64.b64encode(made).decode()}"}}

    def show(self, path: str, token: str | None) -> tuple[int, dict[str, Any]]:
        """`GET /v1/transit/keys/NAME`, of what it answers the fields that are read."""
        if token != self.token:
            return 403, {"errors": ["permission denied"]}
        mount, _, name = path.removeprefix("/v1/").partition("/keys/")
        if mount != "transit" or name not in self.keys:
            return 404, {"errors": []}
        publics = [key.public_key() for key in self.keys[name]]
        is_ed = isinstance(self.keys[name][0], Ed25519PrivateKey)
        said = {
            str(number): {"name": "ed25519" if is_ed else "P-256", "public_key": _public(key)}
            for number, key in enumerate(publics, start=1)
        }
        kind = "ed25519" if is_ed else "ecdsa-p256"
        return 200, {"data": {"type": kind, "latest_version": len(publics), "keys": said}}


def _public(key: Any) -> str:
    """As Vault shows it."""
    if isinstance(key, ec.EllipticCurvePublicKey):
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        return key.public_bytes(serialization.Encoding.PEM, form).decode()
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return base64.b64encode(raw).decode()


@pytest.fixture
def vault() -> Iterator[Vault]:
    """A Vault on loopback with the keys `ed` and `ec`."""
    stub = Vault(keys={"ed": [Ed25519PrivateKey.generate()], "ec": [ec.generate_private_key(ec.SECP256R1())]})

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if stub.spoil(self):
                return
            status, said = stub.show(self.path, self.headers.get("X-Vault-Token"))
            reply(self, status, json.dumps(said).encode())

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["Content-Length"]))
            if stub.spoil(self):
                return
            status, said = stub.answer(self.path, self.headers.get("X-Vault-Token"), json.loads(raw))
            reply(self, status, json.dumps(said).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    stub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def reply(handler: http.server.BaseHTTPRequestHandler, status: int, raw: bytes) -> None:
    """A whole answer."""
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(raw)))
    handler.end_headers()
    handler.wfile.write(raw)
