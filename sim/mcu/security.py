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
from sim.mcu.memory import Area
from sim.mcu.profile import Nrc, Refused, Sid, require_length

SEED_BYTES = 16
KEY_BYTES = 16
SECRET_BYTES = 32
MOST_TRIES = 3

_TRIED = struct.pack("<I", 0x5452_4945)
_CLEARED = struct.pack("<I", 0x434C_5244)


def key_of(secret: bytes, seed: bytes) -> bytes:
    """The key that belongs to a seed: HMAC-SHA256(secret, seed), its first 16 bytes."""
    return hmac.digest(secret, seed, hashlib.sha256)[:KEY_BYTES]


class SecurityAccess:
    """Seed, key, tries and delay of one ECU; `state` is where it keeps them, in whole sectors."""

    sid = Sid.SECURITY
    sub_functions = frozenset({0x01, 0x02})

    def __init__(
        self, flash: Flash, state: Area, secret: bytes, *, delay_s: float, clock: Callable[[], float]
    ) -> None:
        if len(secret) != SECRET_BYTES:
            raise ValueError(f"a security secret has {SECRET_BYTES} bytes, this one {len(secret)}")
        self._flash = flash
        self._state = state
        self._secret = secret
        self._delay_s = delay_s
        self._clock = clock
        self._seed: bytes | None = None
        self._locked_until: float | None = None
        self.unlocked = False

    def power_on(self) -> None:
        """Read what earlier tries left; too many of them begin the delay again."""
        self.lock()
        sectors = self._flash.memory.sectors_of(self._state.start, self._state.size)
        if any(self._flash.is_torn(one) for one in sectors):
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

    def serve(self, body: bytes) -> bytes:
        """Answer `27 01`, `27 02 key`; raises Refused."""
        require_length(body, 1 if body[0] == 0x01 else 1 + KEY_BYTES)
        if self.is_delayed():
            raise Refused(Nrc.TIME_DELAY)
        if body[0] == 0x01:
            return bytes([Sid.SECURITY + 0x40, 0x01]) + self.seed()
        if not self.awaits_key:
            raise Refused(Nrc.SEQUENCE_ERROR)
        if not self.try_key(body[1:]):
            raise Refused(Nrc.EXCEEDED_ATTEMPTS if self.is_delayed() else Nrc.INVALID_KEY)
        return bytes([Sid.SECURITY + 0x40, 0x02])

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
        content = self._flash.read(self._state.start, self._state.size)
        step = self._flash.memory.word_bytes
        return [content[at : at + step] for at in range(0, len(content), step)]

    def _tries(self) -> int:
        """Words since the last cleared one; what is neither counts as a try."""
        tries = 0
        for word in self._words():
            if word == self._word(b""):
                break
            tries = 0 if word == self._word(_CLEARED) else tries + 1
        return tries

    def _word(self, value: bytes) -> bytes:
        """A whole flash word."""
        return value.ljust(self._flash.memory.word_bytes, b"\xff")

    def _append(self, word: bytes) -> None:
        words, erased = self._words(), self._word(b"")
        if erased not in words:
            self._rewrite(self._tries())
            words = self._words()
        self._flash.write(self._state.start + words.index(erased) * len(erased), self._word(word))

    def _rewrite(self, tries: int) -> None:
        for sector in self._flash.memory.sectors_of(self._state.start, self._state.size):
            self._flash.erase(sector)
        if tries:
            self._flash.write(self._state.start, self._word(_TRIED) * tries)
