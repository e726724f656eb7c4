"""A program of the owner's that makes security keys, so that the secret never enters this process.

The program is started without a shell, gets the seed as hex digits and a newline on its standard input,
prints the key as hex digits, and ends with 0. It may ask a smart card (PKCS#11), a TPM or a key server.
What it runs comes from a component's settings, never from a profile. It has `timeout_s` seconds and may
print `MOST_OUTPUT_BYTES`; then it is killed, with everything that it started.
"""

from __future__ import annotations

import os
import re
import selectors
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from firmware_flashers.base import AccessDenied
from shared.errors import ConfigError

MOST_OUTPUT_BYTES = 4096
MOST_KEY_BYTES = 256
SLICE_S = 0.25
ENDING_S = 0.005
_HEX = re.compile(rb"(?:[0-9A-Fa-f]{2})+")
ADVICE = "Run the security command by hand with a seed on its standard input, and see what it says."


class HelperFailed(AccessDenied):
    """The security command gave no key; the ECU was not sent one."""

    code = "security_command"
    advice = ADVICE


@dataclass(frozen=True, kw_only=True)
class HelperCommand:
    """`argv` begins with the program's absolute path."""

    argv: tuple[str, ...]
    timeout_s: float = 5.0

    def __post_init__(self) -> None:
        """Raises ConfigError that names the key."""
        if not self.argv or not all(isinstance(one, str) and one for one in self.argv):
            raise ConfigError("security_command is not a list of words that begins with a program's path")
        if not Path(self.argv[0]).is_absolute():
            raise ConfigError(f"security_command {self.argv[0]!r} is not an absolute path")
        if not 0 < self.timeout_s <= 60:
            raise ConfigError(f"security_command_timeout_s is {self.timeout_s!r}, not a number in (0, 60]")

    def key(self, seed: bytes, *, meanwhile: Callable[[], None] = lambda: None) -> bytes:
        """The key for `seed`; `meanwhile` is called several times a second. Raises HelperFailed.

        What `meanwhile` raises ends the program too.
        """
        try:
            program = subprocess.Popen(
                self.argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                bufsize=0,
            )
        except (OSError, ValueError) as error:
            raise HelperFailed(f"the security command {self.argv[0]} can't be started: {error}") from error
        try:
            said = self._converse(program, seed, meanwhile)
        finally:
            _end(program)
        if program.returncode != 0:
            raise HelperFailed(f"the security command {self.argv[0]} ended with {program.returncode}")
        if not _HEX.fullmatch(said.strip()) or len(said.strip()) > 2 * MOST_KEY_BYTES:
            raise HelperFailed(f"the security command {self.argv[0]} printed no key in hex digits")
        return bytes.fromhex(said.strip().decode("ascii"))

    def _converse(
        self, program: subprocess.Popen[bytes], seed: bytes, meanwhile: Callable[[], None]
    ) -> bytes:
        """Give the seed, take what is printed until the program ends."""
        assert program.stdin is not None
        assert program.stdout is not None
        # A pipe takes this much at once, read or not; a program that has ended already is seen below.
        with suppress(BrokenPipeError):
            program.stdin.write(seed.hex().encode("ascii") + b"\n")
        with suppress(BrokenPipeError):
            program.stdin.close()
        said = b""
        # The machine's own time: a program does not live in a simulated wire's.
        deadline = time.monotonic() + self.timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(program.stdout, selectors.EVENT_READ)
            while True:
                meanwhile()
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    raise HelperFailed(
                        f"the security command {self.argv[0]} gave no key in {self.timeout_s:g} s"
                    )
                if not selector.select(min(left_s, SLICE_S)):
                    continue
                chunk = os.read(program.stdout.fileno(), MOST_OUTPUT_BYTES)
                said += chunk
                if len(said) > MOST_OUTPUT_BYTES:
                    raise HelperFailed(f"the security command {self.argv[0]} prints too much")
                if not chunk:
                    break
        # Not reaped yet: as long as it is not, its number is no other program's when its group is killed.
        while os.waitid(os.P_PID, program.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            if time.monotonic() >= deadline:
                raise HelperFailed(f"the security command {self.argv[0]} does not end")
            meanwhile()
            time.sleep(ENDING_S)
        return said


def _end(program: subprocess.Popen[bytes]) -> None:
    """Nothing of the program's survives it."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(program.pid, signal.SIGKILL)
    program.wait()
    if program.stdout is not None:
        program.stdout.close()
    if program.stdin is not None and not program.stdin.closed:
        with suppress(BrokenPipeError):
            program.stdin.close()
