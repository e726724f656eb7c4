"""May these bytes be flashed to this component? Only what a provisioned key signed, and exactly that.

Asked after the download and again right before flashing, of the very bytes that will be sent. The
signed document decides; the command's own words only select and must agree with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path

from securesystemslib.signer import Key

from edge_agent.clock import Clock
from edge_agent.errors import DocumentMismatch, ImageMissing, OlderRelease
from edge_agent.trust.counters import Counters
from firmware_flashers.base import FirmwareImage
from shared.messages import CommandTarget
from shared.release import FirmwareSpec
from shared.since_310 import UTC
from shared.trust.document import verify_document
from shared.trust.image import ImageCheck, check_image

CHUNK_BYTES = 256 * 1024
_BEFORE_ANY_EXPIRY = datetime(1970, 1, 1, tzinfo=UTC)


class Verifier:
    """`keys` are the provisioned public keys by key id; `threshold` of them must have signed."""

    def __init__(
        self, *, keys: Mapping[str, Key], clock: Clock, counters: Counters, threshold: int = 1
    ) -> None:
        if threshold < 1:
            raise ValueError("a threshold below 1 would trust anything")
        self._keys = keys
        self._threshold = threshold
        self._clock = clock
        self._counters = counters

    def check_target(
        self, target: CommandTarget, *, kind: str, hardware: str, begun: bool = False
    ) -> FirmwareSpec:
        """The firmware that was signed for this target and fits a component of `kind` and `hardware`.

        `begun`: the ECU may have been erased for it already, so that only its authority is asked, not
        whether its time is over or another release came since: not finishing would strand the ECU.

        Raises TrustError (BadDocument, Unsigned, Expired, DocumentMismatch, OlderRelease,
        CountersUnknown) or Incompatible.
        """
        spec = verify_document(
            target.document.encode(),
            self._keys,
            now=_BEFORE_ANY_EXPIRY if begun else self._clock.now(),
            threshold=self._threshold,
        )
        for name, signed, said in (
            ("version", spec.version, target.version),
            ("sha256", spec.sha256, target.sha256),
            ("length", spec.length, target.length),
        ):
            if signed != said:
                raise DocumentMismatch(f"{name}: the command says {said}, {signed} was signed")
        spec.check_fits(kind=kind, hardware=hardware)
        if not begun:
            self.check_counter(target.component, spec)
        return spec

    async def check_file(self, path: Path, spec: FirmwareSpec) -> None:
        """Length and hash of a file, in a thread. Raises WrongImage or ImageMissing."""

        def act() -> None:
            try:
                check_image(_chunks(path), spec)
            except OSError as error:
                raise ImageMissing(f"the image can't be read: {error}") from error

        await asyncio.to_thread(act)

    async def load(self, path: Path, spec: FirmwareSpec, document: bytes) -> FirmwareImage:
        """The image in memory, checked as it lies there, and what its ECU verifies of it.

        Raises WrongImage or ImageMissing.
        """

        def act() -> bytes:
            check = ImageCheck(spec)
            parts: list[bytes] = []
            try:
                for chunk in _chunks(path):
                    check.feed(chunk)
                    parts.append(chunk)
            except OSError as error:
                raise ImageMissing(f"the image can't be read: {error}") from error
            check.finish()
            return b"".join(parts)

        data = await asyncio.to_thread(act)
        return FirmwareImage(spec=spec, data=data, document=document)

    def check_counter(self, component: str, spec: FirmwareSpec) -> None:
        """Raises OlderRelease, and CountersUnknown when nobody can tell."""
        highest = self._counters.highest(component)
        if spec.release_counter < highest:
            raise OlderRelease(
                f"{spec.kind} {spec.version} has release counter {spec.release_counter}, "
                f"{component} ran {highest} already"
            )

    async def ran(self, component: str, spec: FirmwareSpec) -> None:
        """Remember that the component runs this firmware now: older ones are refused from here on."""
        await self._counters.raise_to(component, spec.release_counter)


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
