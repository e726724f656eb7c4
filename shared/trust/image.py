"""Are these the signed bytes? Length first, so that an endless image is refused unhashed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from shared.release import FirmwareSpec
from shared.trust.document import WrongImage


class ImageCheck:
    """Checks an image chunk by chunk as it is read; memory use is that of one chunk."""

    def __init__(self, spec: FirmwareSpec) -> None:
        self._spec = spec
        self._hash = hashlib.sha256()
        self._seen = 0

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes. Raises WrongImage as soon as there are more than were signed."""
        self._seen += len(chunk)
        if self._seen > self._spec.length:
            raise WrongImage(f"the image is longer than the {self._spec.length} bytes that were signed")
        self._hash.update(chunk)

    def finish(self) -> None:
        """Raise WrongImage unless exactly the signed bytes were fed."""
        if self._seen != self._spec.length:
            raise WrongImage(f"the image has {self._seen} bytes, {self._spec.length} were signed")
        if self._hash.hexdigest() != self._spec.sha256:
            raise WrongImage(
                f"the image's SHA-256 is {self._hash.hexdigest()}, {self._spec.sha256} was signed"
            )


def check_image(chunks: Iterable[bytes], spec: FirmwareSpec) -> None:
    """Raise WrongImage unless `chunks` together are exactly the image that `spec` describes."""
    check = ImageCheck(spec)
    for chunk in chunks:
        check.feed(chunk)
    check.finish()
