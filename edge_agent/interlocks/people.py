"""What people say at the truck: holds, and an operator's consent. Files, so that no network is needed.

Holds are the agent's own hold file (`hold`), and every file of a folder that other programs of the gateway
lay holds in by name (blasting, refuelling), where the configuration names one. Consent is one file, which
says who gave it; it ends by the boot-time clock and with a reboot, so that no change of the wall clock
prolongs it. It is given at the truck only: an unsigned message must not stand for somebody who looks at
the machine. What can't be read is held, and is no consent.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path

from edge_agent.clock import Clock
from edge_agent.errors import EdgeError
from edge_agent.interlocks.hold import read_hold
from edge_agent.interlocks.safety import NOBODY, Consent, People
from edge_agent.safe_files import sync_folder, write_whole
from shared.errors import BadMessage
from shared.since_310 import timeout
from shared.wire import decode_json

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
MOST_FILE_BYTES = 4096
MOST_HOLDS = 32
MOST_CONSENT_S = 24 * 3600.0
READ_TIMEOUT_S = 2.0


class BadConsent(EdgeError):
    """A consent that can't be: nobody's, or for too long."""

    code = "bad_consent"
    advice = "Say who consents, and for how many hours."


class ConsentFailed(EdgeError):
    """The consent can't be written or taken away."""

    code = "consent_failed"
    advice = "Run it as the agent's user or as root, and check the disk that holds the agent's data."


@dataclass(frozen=True, kw_only=True)
class Gates:
    """Where people's words are. Every method but `read` blocks for local files."""

    data_dir: Path
    clock: Clock
    holds_folder: Path | None = None
    boot_id: Path = BOOT_ID

    async def read(self) -> People:
        """What people have said; never raises."""
        try:
            async with timeout(READ_TIMEOUT_S):
                return await asyncio.to_thread(self.look)
        except TimeoutError:
            return People(holds=None)

    def look(self) -> People:
        """The same, blocking."""
        consent = self._consent()
        held = read_hold(self.data_dir)
        words = [] if held is None else [f"{held.by}, {held.why}"]
        if self.holds_folder is None:
            return People(holds=tuple(words), holds_watched=False, consent=consent)
        try:
            words += sorted(path.name for path in self.holds_folder.iterdir())
        except OSError:
            return People(holds=None, consent=consent)
        shown = (word if word.isprintable() else "a file without a proper name" for word in words)
        return People(holds=tuple(shown)[:MOST_HOLDS], consent=consent)

    def consent_to(self, *, by: str, seconds: float, job_id: str | None = None) -> None:
        """Write an operator's consent, for `job_id` or for any job, good from now on.

        Raises BadConsent, ConsentFailed.
        """
        if not by.strip() or not by.isprintable() or len(by) > 100:
            raise BadConsent("the operator's name must be 1 to 100 printable characters")
        if not 0 < seconds <= MOST_CONSENT_S:
            raise BadConsent(f"a consent is for up to {MOST_CONSENT_S / 3600:g} hours")
        now = self.clock.boot_s()
        said = {
            "by": by,
            "job_id": job_id,
            "boot_id": self._boot(),
            "given_boot_s": now,
            "until_boot_s": now + seconds,
        }
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_whole(self._path, json.dumps(said).encode() + b"\n")
        except OSError as error:
            raise ConsentFailed(f"{self._path} can't be written: {error.strerror}") from error

    def withdraw_consent(self) -> None:
        """End it. Raises ConsentFailed."""
        try:
            self._path.unlink(missing_ok=True)
            sync_folder(self.data_dir)
        except OSError as error:
            raise ConsentFailed(f"{self._path} can't be taken away: {error.strerror}") from error

    @property
    def _path(self) -> Path:
        return self.data_dir / "consent.json"

    def _consent(self) -> Consent | None:
        try:
            with self._path.open("rb") as file:
                said = decode_json(file.read(MOST_FILE_BYTES))
            boot = self._boot()
        except (OSError, BadMessage, ConsentFailed):
            return None
        if not isinstance(said, dict) or said.get("boot_id") != boot:
            return None
        by, job_id = said.get("by"), said.get("job_id")
        given, until = said.get("given_boot_s"), said.get("until_boot_s")
        if not isinstance(by, str) or not isinstance(job_id, str | None):
            return None
        if not isinstance(given, float) or not isinstance(until, float):
            return None
        now = self.clock.boot_s()
        if not (given <= now and until - given <= MOST_CONSENT_S):
            return None
        return Consent(by=by, job_id=job_id, seconds_left=until - now)

    def _boot(self) -> str:
        try:
            return self.boot_id.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConsentFailed(f"{self.boot_id} can't be read") from error


async def ask(gates: Gates | None) -> People:
    """What people have said; without a place for it, nothing."""
    return NOBODY if gates is None else await gates.read()
