"""An image's address that is a file at the truck (a USB stick, a disk that was brought): the same trust.

The signed document decides, the image is copied into the image folder and hashed there, interlocks and
counters hold. (`quarry agent install-file` copies at once, see `local_image`.) Only
regular files below the folders that the configuration names are read, so that an office that lies can't
have other files of the gateway hashed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from edge_agent.errors import LinkLost
from shared.errors import OtaError
from shared.trust.document import WrongImage


class LocalFileRefused(OtaError):
    """A file that is not read from where it lies."""

    code = "local_file_refused"
    advice = "Copy the file below one of downloads.local_folders of the agent's configuration."


def is_local(url: str) -> bool:
    """Whether an image's address is a file at the truck."""
    return url.startswith("file:")


def open_local(url: str, folders: Collection[Path], *, length: int) -> BinaryIO:
    """The file of a `file:` address, opened. Blocks.

    Raises LocalFileRefused; LinkLost while it is not there (a stick that was pulled comes back); and
    WrongImage when it is not `length` bytes long.
    """
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise LocalFileRefused(f"{url[:200]!r} is on another machine")
    try:
        path = Path(unquote(parts.path)).resolve(strict=True)
        if not any(path.is_relative_to(folder.resolve()) for folder in folders):
            raise LocalFileRefused(f"{path} is in none of the folders that local files come from")
        # Resolved, so that a link that is put there meanwhile is one too many; a pipe must not block us.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (OSError, ValueError, RuntimeError) as error:
        raise LinkLost(f"the file {parts.path[:200]!r} can't be read: {error}") from error
    about = os.fstat(descriptor)
    if not stat.S_ISREG(about.st_mode):
        os.close(descriptor)
        raise LocalFileRefused(f"{path} is no regular file")
    if about.st_size != length:
        os.close(descriptor)
        raise WrongImage(f"{path} has {about.st_size} bytes, {length} were signed")
    return os.fdopen(descriptor, "rb")
