"""A program that makes keys: its time and its output are bounded, and nothing of it survives."""

from __future__ import annotations

import hashlib
import hmac
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from firmware_flashers import security
from firmware_flashers.credentials import read_credentials
from firmware_flashers.security_helper import HelperCommand, HelperFailed
from firmware_flashers.uds_profile import UdsProfile
from shared.errors import ConfigError

SEED = bytes(range(16))


@pytest.fixture
def helper(tmp_path: Path) -> Any:
    """A program of these lines of Python."""

    def make(body: str, *, timeout_s: float = 20.0) -> HelperCommand:
        path = tmp_path / "helper.py"
        path.write_text(body)
        return HelperCommand(argv=(sys.executable, "-I", "-S", str(path)), timeout_s=timeout_s)

    return make


def test_it_gets_the_seed_and_gives_the_key(helper: Any) -> None:
    command = helper(
        "import sys, hashlib, hmac\n"
        "seed = bytes.fromhex(sys.stdin.read())\n"
        "print(hmac.digest(b'secret', seed, hashlib.sha256).hex())\n"
    )
    assert command.key(SEED) == hmac.digest(b"secret", SEED, hashlib.sha256)


def test_what_must_be_kept_meanwhile_is(helper: Any) -> None:
    kept: list[float] = []
    command = helper("import time; time.sleep(0.8); print('00')")
    assert command.key(SEED, meanwhile=lambda: kept.append(time.monotonic())) == b"\x00"
    assert len(kept) >= 3


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("import sys; sys.exit(3)", "ended with 3"),
        ("print('aabb'); raise SystemExit(1)", "ended with 1"),
        ("", "no key"),
        ("print('abc')", "no key"),
        ("print('xyz0')", "no key"),
        ("print('00 11')", "no key"),
        ("print('00' * 300)", "no key"),
        ("print('00' * 10_000)", "too much"),
        ("while True: print('00')", "too much"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "ended with -9"),
    ],
)
def test_what_gives_no_key_is_told(helper: Any, body: str, said: str) -> None:
    with pytest.raises(HelperFailed, match=said) as caught:
        helper(body).key(SEED)
    assert not caught.value.retryable
    assert SEED.hex() not in caught.value.message


@pytest.mark.parametrize(
    "body",
    [
        "import time; time.sleep(60)",
        "import os, time; os.close(1); time.sleep(60)",
        "import time, sys; sys.stdout.write('0'); sys.stdout.flush(); time.sleep(60)",
    ],
    ids=["silent", "closed", "half"],
)
def test_one_that_does_not_end_is_killed(helper: Any, body: str) -> None:
    begun = time.monotonic()
    with pytest.raises(HelperFailed):
        helper(body, timeout_s=0.5).key(SEED)
    assert time.monotonic() - begun < 30  # far from the 60 s that it would sleep


def test_what_it_started_is_killed_with_it(helper: Any, tmp_path: Path) -> None:
    command = helper(
        "import os, subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n"
        "time.sleep(60)\n",
        timeout_s=3.0,
    )
    with pytest.raises(HelperFailed):
        command.key(SEED)
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 20
    while is_running(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_an_interrupt_ends_it(helper: Any) -> None:
    class Stop(Exception):
        pass

    def stop() -> None:
        raise Stop

    with pytest.raises(Stop):
        helper("import time; time.sleep(60)").key(SEED, meanwhile=stop)


@pytest.mark.parametrize(
    ("argv", "timeout_s"),
    [
        ((), 5.0),
        (("make-key",), 5.0),
        (("/bin/true", ""), 5.0),
        (("/bin/true",), 0.0),
        (("/bin/true",), 61.0),
    ],
)
def test_a_command_that_can_not_be_is_refused(argv: tuple[str, ...], timeout_s: float) -> None:
    with pytest.raises(ConfigError, match="security_command"):
        HelperCommand(argv=argv, timeout_s=timeout_s)


def test_a_program_that_is_not_there_is_told() -> None:
    with pytest.raises(HelperFailed, match="can't be started"):
        HelperCommand(argv=("/nonexistent/make-key",)).key(SEED)


# -- which credentials a profile's word needs


@pytest.mark.parametrize(
    ("word", "given", "named"),
    [
        ("hmac-sha256", {}, "security_secret_file"),
        ("hmac-sha256", {"command": ("/bin/true",)}, "security_command|security_secret_file"),
        ("command", {}, "security_command"),
        ("command", {"command": ("true",)}, "security_command"),
        ("certificate", {}, "security_certificate_file"),
        ("certificate", {"certificate_file": Path("/x")}, "security_key_file"),
        (
            "certificate",
            {"certificate_file": Path("/x"), "key_file": Path("/y")},
            "security_certificate_file",
        ),
        ("none", {"command": ("/bin/true",)}, "security_command"),
    ],
)
def test_a_setting_that_is_missing_or_in_vain_is_named(word: str, given: Any, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        read_credentials(word, **given)


def test_nothing_is_needed_for_an_ecu_without_access() -> None:
    assert read_credentials("none") is None
    assert read_credentials("command", command=("/bin/true",)) == HelperCommand(argv=("/bin/true",))


# -- algorithms of one's own


class Xor:
    seed_bytes = 4

    def key(self, seed: bytes, secret: bytes) -> bytes:
        return bytes(a ^ b for a, b in zip(seed, secret, strict=False))


def test_an_algorithm_is_registered_by_name(monkeypatch: Any) -> None:
    monkeypatch.setattr(security, "_algorithms", dict(security._algorithms))
    with pytest.raises(ConfigError, match="xor-4"):
        UdsProfile(security="xor-4")
    security.register("xor-4", Xor())
    assert UdsProfile(security="xor-4").security == "xor-4"
    with pytest.raises(ConfigError, match="registered already"):
        security.register("xor-4", Xor())


@pytest.mark.parametrize("name", ["", "Xor", "a b", "command", "certificate", "none", "hmac-sha256"])
def test_a_name_that_can_not_be_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="security"):
        security.register(name, Xor())
