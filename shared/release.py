"""What a firmware is: for which ECU kind and hardware, which version, which bytes.

In this first form a release is one firmware for one component. The value here is what the signed
document says (see shared.trust); both ends match it against the component's own identity.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from shared.errors import OtaError

_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+_-]{0,63}")
_WORD = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
MAX_IMAGE_BYTES = 64 * 1024 * 1024
"""The largest image that is accepted anywhere; every read of one is bounded by it."""


class BadRelease(OtaError):
    """A firmware is described with values that can't be."""

    code = "bad_release"
    advice = "Correct the named value and sign the firmware again."


class Incompatible(OtaError):
    """A firmware is not for this component."""

    code = "incompatible"
    advice = "Choose a firmware that is built for this component's kind and hardware revision."


@dataclass(frozen=True, kw_only=True)
class FirmwareSpec:
    """One firmware, exactly.

    `kind` is the ECU's product kind ("brake-controller"), `hardware` the revisions that it runs
    on, `version` the maker's word for it, `release_counter` a number that only grows and orders
    versions of one kind; `length` is in bytes, `sha256` in lower-case hex.
    """

    kind: str
    hardware: tuple[str, ...]
    version: str
    release_counter: int
    length: int
    sha256: str

    def __post_init__(self) -> None:
        """Raises BadRelease that names the value."""
        if not _WORD.fullmatch(self.kind):
            raise BadRelease(f"kind {self.kind[:80]!r} is not 1 to 64 of letters, digits, . _ -")
        if not self.hardware:
            raise BadRelease("no hardware revision is named: a firmware must say where it runs")
        for one in self.hardware:
            if not _WORD.fullmatch(one):
                raise BadRelease(f"hardware {one[:80]!r} is not 1 to 64 of letters, digits, . _ -")
        if not _VERSION.fullmatch(self.version):
            raise BadRelease(f"version {self.version[:80]!r} is not 1 to 64 of letters, digits, . + _ -")
        if self.release_counter < 0:
            raise BadRelease(f"release_counter {self.release_counter} is negative")
        if not 0 < self.length <= MAX_IMAGE_BYTES:
            raise BadRelease(f"length {self.length} is not 1 to {MAX_IMAGE_BYTES} bytes")
        if not _SHA256.fullmatch(self.sha256):
            raise BadRelease(f"sha256 {self.sha256[:80]!r} is not 64 lower-case hex digits")

    @property
    def target_path(self) -> str:
        """Its name among signed targets: unique, readable, and changed when the bytes change."""
        return f"{self.kind}/{self.version}/{self.sha256}.bin"

    def check_fits(self, *, kind: str, hardware: str) -> None:
        """Raise Incompatible unless the firmware is for a component of this kind and revision."""
        if kind != self.kind:
            raise Incompatible(f"firmware {self.version} is for {self.kind}, the component is {kind}")
        if hardware not in self.hardware:
            raise Incompatible(
                f"firmware {self.kind} {self.version} runs on hardware {', '.join(self.hardware)}; "
                f"the component is {hardware}"
            )
