"""Security access (ISO 14229-1:2020, clause 10.4) whose count of wrong keys survives resets and power cuts.

Each try is written to the bootloader's state sector before its key is looked at, so that cutting the
power can't buy more tries. A part has no clock over a reset: the delay then begins anew.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import struct
from collections.abc import Callable

from sim.mcu.flash import Flash
from sim.mcu.memory import WORD

SEED_BYTES = 16
KEY_BYTES = 16
SECRET_BYTES = 32
MOST_TRIES = 3

_TRIED = struct.pack("<I", 0x5452_4945)
_CLEARED = struct.pack("<I", 0x434C_5244)
_ERASED = b"\xff" * WORD


def key_of(secret: bytes, seed: bytes) -> bytes:
    """The key that belongs to a seed: HMAC-SHA256(secret, seed), its first 16 bytes."""
    return hmac.digest(secret, seed, hashlib.sha256)[:KEY_BYTES]


class SecurityAccess:
    """Seed, key, tries and delay of one ECU."""

    def __init__(self, flash: Flash, secret: bytes, *, delay_s: float, clock: Callable[[], float]) -> None:
        if len(secret) != SECRET_BYTES:
            raise ValueError(f"a security secret has {SECRET_BYTES} bytes, this one {len(secret)}")
        self._flash = flash
        self._secret = secret
        self._delay_s = delay_s
        self._clock = clock
        self._seed: bytes | None = None
        self._locked_until: float | None = None
        self.unlocked = False

    def power_on(self) -> None:
        """Read what earlier tries left; too many of them begin the delay again."""
        self.lock()
        area = self._flash.memory.state
        if any(self._flash.is_torn(one) for one in self._flash.memory.sectors_of(area.start, area.size)):
            # Whoever cut the power while a try was written gets the worst that it can have been.
            self._rewrite(MOST_TRIES)
        self._locked_until = self._clock() + self._delay_s if self._tries() >= MOST_TRIES else None

    def lock(self) -> None:
        """Forget the seed and the unlocking."""
        self._seed = None
        self.unlocked = False

    def is_delayed(self) -> bool:
        """Whether the delay after too many tries runs; clears the count when it is over."""
        if self._locked_until is None:
            return False
        if self._clock() < self._locked_until:
            return True
        self._locked_until = None
        self._append(_CLEARED)
        return False

    def seed(self) -> bytes:
        """A fresh seed, or zeros when it is unlocked already."""
        if self.unlocked:
            return bytes(SEED_BYTES)
        self._seed = secrets.token_bytes(SEED_BYTES)
        return self._seed

    @property
    def awaits_key(self) -> bool:
        return self._seed is not None

    def try_key(self, key: bytes) -> bool:
        """Use the seed up. False: wrong, and `is_delayed` says whether that was the last try."""
        assert self._seed is not None
        seed, self._seed = self._seed, None
        self._append(_TRIED)
        if hmac.compare_digest(key, key_of(self._secret, seed)):
            self._append(_CLEARED)
            self.unlocked = True
            return True
        if self._tries() >= MOST_TRIES:
            self._locked_until = self._clock() + self._delay_s
        return False

    def _words(self) -> list[bytes]:
        area = self._flash.memory.state
        content = self._flash.read(area.start, area.size)
        return [content[at : at + WORD] for at in range(0, len(content), WORD)]

    def _tries(self) -> int:
        """Words since the last cleared one; what is neither counts as a try."""
        tries = 0
        for word in self._words():
            if word == _ERASED:
                break
            tries = 0 if word == _CLEARED else tries + 1
        return tries

    def _append(self, word: bytes) -> None:
        words = self._words()
        if _ERASED not in words:
            self._rewrite(self._tries())
            words = self._words()
        self._flash.write(self._flash.memory.state.start + words.index(_ERASED) * WORD, word)

    def _rewrite(self, tries: int) -> None:
        area = self._flash.memory.state
        for sector in self._flash.memory.sectors_of(area.start, area.size):
            self._flash.erase(sector)
        if tries:
            self._flash.write(area.start, _TRIED * tries)
