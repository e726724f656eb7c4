"""Deltas at the release desk: from the older builds that trucks run to the new one.

Made here and not in the office: here the builds come from, the search needs seventeen times an image in
memory for a while, and C code; the office stays small, and only applies what it is given. A delta is never
signed: whoever makes an image of one compares it with the signed hash.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tuf.api.metadata import TargetFile

from cli import delta_child
from cli.office import UPLOAD_TIMEOUT_S, OfficeClient, OfficeRefused
from cli.release_files import read_file
from cli.repository_folder import RepositoryFolder
from shared.errors import OtaError
from shared.release import MAX_IMAGE_BYTES
from shared.trust.document import spec_of
from shared.trust.uptane.matching import RELEASES
from shared.trust.uptane.repository import Repository
from shared.trust.uptane.repository_edit import targets_roles

MOST_BASES = 3
"""So many of the newest older images are bases, unless it is said otherwise."""
MOST_SHARE = 0.6
"""Of the image's bytes. Trucks fetch images as they are; what is hardly shorter is not worth its keeping."""


SEARCHED_WITHIN_S = 180.0
"""For one delta: seconds for a MiB, minutes for tens of them."""


class DeltaNotMade(OtaError):
    """There is no delta between these two images; trucks fetch the whole one."""

    code = "delta_not_made"
    advice = "Nothing to do: trucks fetch the whole image."


@dataclass(frozen=True, kw_only=True)
class Made:
    """What became of one base: the delta's length in bytes, or why there is none."""

    base: str
    base_sha256: str
    image_length: int
    length: int | None = None
    why: str = ""

    def __str__(self) -> str:
        if self.length is None:
            return f"no delta from {self.base}: {self.why}"
        return f"delta from {self.base}: {self.length} bytes of {self.image_length}"


def worthwhile_delta(base: bytes, image: bytes) -> bytes:
    """The delta from `base` to `image`. Raises DeltaNotMade, also where it saves or takes too much."""
    if base == image:
        raise DeltaNotMade("it is the same image")
    delta = _searched(base, image)
    if len(delta) > MOST_SHARE * len(image):
        raise DeltaNotMade(f"it would have {len(delta)} bytes of {len(image)}")
    return delta


def _searched(base: bytes, image: bytes) -> bytes:
    with TemporaryDirectory(prefix="quarry-delta-") as name:
        folder = Path(name)
        files = [folder / "base", folder / "image", folder / "delta"]
        files[0].write_bytes(base)
        files[1].write_bytes(image)
        command = [sys.executable, "-P", "-m", "cli.delta_child", *map(str, files)]
        try:
            done = subprocess.run(command, capture_output=True, check=False, timeout=SEARCHED_WITHIN_S)
        except subprocess.TimeoutExpired as error:
            raise DeltaNotMade(f"the search takes more than {SEARCHED_WITHIN_S:.0f} s") from error
        match done.returncode:
            case 0:
                return files[2].read_bytes()
            case delta_child.NO_LIBRARY:
                raise DeltaNotMade(
                    "bsdiff4 is not installed", advice="Install the extra `release` of quarry-ota."
                )
            case code:
                said = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
                raise DeltaNotMade(said[:300] or f"the search ended with {code}")


def add_deltas(
    held: RepositoryFolder,
    repository: Repository,
    target: TargetFile,
    image: bytes,
    *,
    most: int = MOST_BASES,
    bases: Sequence[Path] = (),
) -> list[Made]:
    """Make deltas to a target of an image repository, and leave them where `publish` puts them out.

    From the files `bases`, or else from the newest `most` older images of its kind that the repository has.
    What can't be made is said and is no error: a release goes out without it. Raises FileTrouble.
    """
    found = _files(bases) if bases else _older(held, repository, target, most)
    return [_made(name, base, image, held.keep_delta) for name, base in found]


def send_deltas(client: OfficeClient, image: bytes, bases: Sequence[Path]) -> list[Made]:
    """Make deltas from files to an image that the office has, and give them to it.

    One that can't be made, or that the office refuses (it has no such base), is said and is no error.
    Raises FileTrouble or OfficeUnreachable.
    """

    def send(base_sha256: str, sha256: str, delta: bytes) -> None:
        hashes = {"base_sha256": base_sha256, "sha256": sha256}
        client.call("PUT", "/deltas", params=hashes, content=delta, timeout=UPLOAD_TIMEOUT_S)

    return [_made(name, base, image, send) for name, base in _files(bases)]


def _files(paths: Sequence[Path]) -> list[tuple[str, bytes]]:
    return [(path.name, read_file(path, MAX_IMAGE_BYTES)) for path in paths]


def _made(name: str, base: bytes, image: bytes, keep: Callable[[str, str, bytes], None]) -> Made:
    base_sha256, sha256 = hashlib.sha256(base).hexdigest(), hashlib.sha256(image).hexdigest()
    length, why = None, ""
    try:
        delta = worthwhile_delta(base, image)
        keep(base_sha256, sha256, delta)
        length = len(delta)
    except (DeltaNotMade, OfficeRefused) as error:
        why = error.message
    return Made(base=name, base_sha256=base_sha256, image_length=len(image), length=length, why=why)


def _older(
    held: RepositoryFolder, repository: Repository, target: TargetFile, most: int
) -> list[tuple[str, bytes]]:
    """Older images of the target's kind, published or drafted, the newest first; lost files are left out."""
    new = spec_of(target.path, target)
    older: list[tuple[int, TargetFile]] = []
    for role in targets_roles(repository):
        metadata = repository.coming(role)
        for path, one in ({} if metadata is None else metadata.signed.targets).items():
            if path.startswith(RELEASES):
                continue
            spec = spec_of(path, one)
            shares = set(spec.hardware) & set(new.hardware)
            if spec.kind == new.kind and shares and spec.release_counter < new.release_counter:
                older.append((spec.release_counter, one))
    found: list[tuple[str, bytes]] = []
    for _, one in sorted(older, key=lambda item: item[0], reverse=True):
        if len(found) == most:
            break
        image = held.read_image(one)
        if image is not None:
            found.append((one.path, image))
    return found
